//go:build e2e

package e2e_test

import (
	"encoding/json"
	"flag"
	"fmt"
	"math/rand/v2"
	"net"
	"net/netip"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"

	corev1 "k8s.io/api/core/v1"
	networkingv1 "k8s.io/api/networking/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/util/intstr"
)

var randomClusters = flag.Int("random-clusters", 2, "sets of random policies of TestMatrixIsTrue")

var matrixPorts = []uint16{9000, 9001}

type connection struct {
	from, to, family string
	port             uint16
}

type connections map[connection]bool

type matrixRow struct {
	From, To []string
	Family   string
	Ports    struct {
		TCP []struct{ First, Last uint16 }
	}
}

type matrixParty struct {
	Name, Namespace string
	Pods            []string
}

func expand(rows []matrixRow, parties []matrixParty, pods map[string]map[string]string) connections {
	by := map[string][]string{}
	for _, p := range parties {
		for _, name := range p.Pods {
			if full := p.Namespace + "/" + name; pods[full] != nil {
				by[p.Name] = append(by[p.Name], full)
			}
		}
	}
	all := connections{}
	for _, r := range rows {
		for _, fromParty := range r.From {
			for _, toParty := range r.To {
				for _, from := range by[fromParty] {
					for _, to := range by[toParty] {
						for family := range pods[to] {
							for _, port := range matrixPorts {
								in := slices.ContainsFunc(r.Ports.TCP, func(p struct{ First, Last uint16 }) bool {
									return p.First <= port && port <= p.Last
								})
								if in && from != to && (r.Family == "" || r.Family == family) {
									all[connection{from, to, family, port}] = true
								}
							}
						}
					}
				}
			}
		}
	}
	return all
}

// TestMatrixIsTrue: with real packets, the connections that succeed are exactly those that "kubectl weir matrix"
// prints. The connections that new policies open or close are exactly those that "kubectl weir diff" prints.
func TestMatrixIsTrue(t *testing.T) {
	pods := startMatrixPods(t)
	seed := rand.Uint64()
	t.Logf("seed %d", seed)
	r := rand.New(rand.NewPCG(seed, 1))
	probed := applied(t, pods, randomPolicies(r, pods))
	total, differences := 0, 0
	for range *randomClusters {
		next := randomPolicies(r, pods)
		var diff struct {
			Opened, Closed []matrixRow
			Parties        []matrixParty
		}
		out, _ := weirReads(t, []int{0, 5}, next, "diff", "-f", "-", "-o", "json")
		if err := json.Unmarshal([]byte(out), &diff); err != nil {
			t.Fatalf("%v\n%s", err, out)
		}
		before := probed
		probed = applied(t, pods, next)
		var matrix struct {
			Allowed []matrixRow
			Parties []matrixParty
		}
		out, _ = weir(t, 0, "matrix", "-o", "json")
		if err := json.Unmarshal([]byte(out), &matrix); err != nil {
			t.Fatalf("%v\n%s", err, out)
		}
		total += len(pods) * (len(pods) - 1) * len(matrixPorts) * 2
		for _, c := range []struct {
			what      string
			got, want connections
		}{
			{"matrix", expand(matrix.Allowed, matrix.Parties, pods), probed},
			{"diff: opened", expand(diff.Opened, diff.Parties, pods), minus(probed, before)},
			{"diff: closed", expand(diff.Closed, diff.Parties, pods), minus(before, probed)},
		} {
			for _, more := range []struct {
				what string
				in   connections
			}{{"only there", minus(c.got, c.want)}, {"only with packets", minus(c.want, c.got)}} {
				for one := range more.in {
					differences++
					t.Errorf("%s, %s: %+v", c.what, more.what, one)
				}
			}
		}
		t.Logf("%d connections allowed, %d opened, %d closed", len(probed), len(minus(probed, before)),
			len(minus(before, probed)))
		if t.Failed() {
			t.Fatalf("the policies:\n%s", next)
		}
	}
	t.Logf("e2e-matrix: %d random clusters, %d connections, %d differences", *randomClusters, total, differences)
}

func minus(a, b connections) connections {
	all := connections{}
	for c := range a {
		if !b[c] {
			all[c] = true
		}
	}
	return all
}

var matrixNamespaces = []string{"matrix-1", "matrix-2"}

func startMatrixPods(t *testing.T) map[string]map[string]string {
	t.Helper()
	nodes := workers(t)
	var all []pod
	for i, ns := range matrixNamespaces {
		namespace(t, ns)
		kubectl(t, "label", "namespace", ns, fmt.Sprintf("team=%d", i))
		for j := range 3 {
			all = append(all, pod{
				Namespace: ns, Name: fmt.Sprintf("p%d", j), Node: nodes[(i+j)%3].name, Image: probe,
				Labels:  fmt.Sprintf(`app: "%d", tier: "%d"`, j, j%2),
				Command: `[sh, -c, "probe listen :9000 & exec probe listen :9001"]`,
			})
		}
	}
	start(t, all...)
	pods := map[string]map[string]string{}
	for _, p := range all {
		var ips []struct{ IP string }
		text := kubectl(t, "-n", p.Namespace, "get", "pod", p.Name, "-o", "jsonpath={.status.podIPs}")
		if err := json.Unmarshal([]byte(text), &ips); err != nil {
			t.Fatal(err)
		}
		by := map[string]string{}
		for _, ip := range ips {
			family := "IPv6"
			if netip.MustParseAddr(ip.IP).Is4() {
				family = "IPv4"
			}
			by[family] = ip.IP
		}
		pods[p.Namespace+"/"+p.Name] = by
	}
	return pods
}

func applied(t *testing.T, pods map[string]map[string]string, policies string) connections {
	t.Helper()
	must(t, policies, scripts+"kubectl", "apply", "-f", "-")
	for _, ns := range matrixNamespaces {
		for i := range policiesEach {
			weir(t, 0, "wait", "policy", fmt.Sprintf("%s/policy-%d", ns, i))
		}
	}
	ends := map[string]connection{}
	for name, by := range pods {
		for family, address := range by {
			for _, port := range matrixPorts {
				ends[net.JoinHostPort(address, strconv.Itoa(int(port)))] = connection{to: name, family: family, port: port}
			}
		}
	}
	all := connections{}
	var mu sync.Mutex
	var probing sync.WaitGroup
	for from := range pods {
		ns, name, _ := strings.Cut(from, "/")
		var left []string
		for address, end := range ends {
			if end.to != from {
				left = append(left, address)
			}
		}
		probing.Go(func() {
			// On a busy machine, an allowed connection may take long. So connections that fail are tried once more.
			for _, timeout := range []string{"900ms", "5s"} {
				command := append([]string{"probe", "connect", "--count=1", "--timeout=" + timeout}, left...)
				out, err := execIn(t.Context(), ns, name, command...)
				if err != nil {
					t.Error(err)
					return
				}
				left = nil
				mu.Lock()
				for _, a := range attempts(t, out) {
					end := ends[a.To]
					if end.from = from; a.OK {
						all[end] = true
					} else {
						left = append(left, a.To)
					}
				}
				mu.Unlock()
				if len(left) == 0 {
					return
				}
			}
		})
	}
	probing.Wait()
	return all
}

const policiesEach = 3 // in each namespace

func randomPolicies(r *rand.Rand, pods map[string]map[string]string) string {
	selector := func() *metav1.LabelSelector {
		s := &metav1.LabelSelector{}
		switch r.IntN(4) {
		case 0:
			s.MatchLabels = map[string]string{"app": strconv.Itoa(r.IntN(3))}
		case 1:
			s.MatchLabels = map[string]string{"tier": strconv.Itoa(r.IntN(2))}
		case 2:
			s.MatchExpressions = []metav1.LabelSelectorRequirement{{
				Key: "app", Operator: metav1.LabelSelectorOpNotIn, Values: []string{strconv.Itoa(r.IntN(3))},
			}}
		}
		return s
	}
	var addresses []string
	for _, by := range pods {
		for _, a := range by {
			addresses = append(addresses, a)
		}
	}
	slices.Sort(addresses)
	peer := func() (p networkingv1.NetworkPolicyPeer) {
		switch r.IntN(4) {
		case 0:
			a := netip.MustParseAddr(addresses[r.IntN(len(addresses))])
			p.IPBlock = &networkingv1.IPBlock{CIDR: netip.PrefixFrom(a, a.BitLen()-8*r.IntN(2)).Masked().String()}
			return p
		case 1:
			p.NamespaceSelector = &metav1.LabelSelector{MatchLabels: map[string]string{"team": strconv.Itoa(r.IntN(2))}}
		}
		if p.NamespaceSelector == nil || r.IntN(2) == 0 {
			p.PodSelector = selector()
		}
		return p
	}
	peers := func() (all []networkingv1.NetworkPolicyPeer) {
		for range r.IntN(3) {
			all = append(all, peer())
		}
		return all
	}
	ports := func() (all []networkingv1.NetworkPolicyPort) {
		tcp, end := corev1.ProtocolTCP, int32(9001)
		for range r.IntN(2) {
			port := intstr.FromInt32(9000 + r.Int32N(2))
			p := networkingv1.NetworkPolicyPort{Protocol: &tcp, Port: &port}
			if r.IntN(3) == 0 {
				p.EndPort = &end
			}
			all = append(all, p)
		}
		return all
	}
	list := networkingv1.NetworkPolicyList{TypeMeta: metav1.TypeMeta{Kind: "List", APIVersion: "v1"}}
	for _, ns := range matrixNamespaces {
		for i := range policiesEach {
			p := networkingv1.NetworkPolicy{
				TypeMeta:   metav1.TypeMeta{Kind: "NetworkPolicy", APIVersion: "networking.k8s.io/v1"},
				ObjectMeta: metav1.ObjectMeta{Namespace: ns, Name: fmt.Sprintf("policy-%d", i)},
			}
			p.Spec.PodSelector = *selector()
			if kind := r.IntN(3); kind != 0 {
				p.Spec.PolicyTypes = append(p.Spec.PolicyTypes, networkingv1.PolicyTypeIngress)
				for range r.IntN(3) {
					p.Spec.Ingress = append(p.Spec.Ingress, networkingv1.NetworkPolicyIngressRule{From: peers(), Ports: ports()})
				}
			} else {
				p.Spec.PolicyTypes = append(p.Spec.PolicyTypes, networkingv1.PolicyTypeEgress)
				for range 1 + r.IntN(2) {
					p.Spec.Egress = append(p.Spec.Egress, networkingv1.NetworkPolicyEgressRule{To: peers(), Ports: ports()})
				}
			}
			list.Items = append(list.Items, p)
		}
	}
	text, err := json.Marshal(list)
	if err != nil {
		panic(err)
	}
	return string(text)
}
