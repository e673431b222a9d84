//go:build bench

package bench_test

import (
	"fmt"
	"maps"
	"net/netip"
	"slices"

	corev1 "k8s.io/api/core/v1"
	networkingv1 "k8s.io/api/networking/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/util/intstr"

	"github.com/weir-net/weir/conf"
	"github.com/weir-net/weir/policy"
)

type workload struct {
	local  int                     // number of the node's pods
	groups map[string][]netip.Addr // addresses of pods, by a label that these pods have
	allows []allow
}

type allow struct {
	egress      bool
	pods, peers string // keys of workload.groups
	ports       []portRange
	blocks      []string // ipBlocks as further peers; their ports are blockPorts
	blockPorts  []portRange
}

type portRange struct{ first, last int }

const namespace = "bench"

var web = []portRange{{80, 80}}

func newWorkload(local int) *workload {
	return &workload{local: local, groups: map[string][]netip.Addr{"client": {clientAddr}, "server": {serverAddr}}}
}

func elsewhere(i int) netip.Addr { return netip.AddrFrom4([4]byte{10, 89, byte(i >> 8), byte(i)}) }

func (w *workload) peer(i int) string {
	name := fmt.Sprintf("peer-%d", i)
	if w.groups[name] == nil {
		w.groups[name] = []netip.Addr{elsewhere(i)}
	}
	return name
}

func (w *workload) other(i int) string {
	name := fmt.Sprintf("local-%d", i)
	w.groups[name] = []netip.Addr{localPod(i)}
	return name
}

// add adds policies. The policies for the measured traffic must be added last, so that they are at the end of lists of
// rules.
func (w *workload) add(all ...allow) { w.allows = append(w.allows, all...) }

// classes returns a node on which each pod has its own class in the chosen directions: no two pods are isolated by the
// same policies. No policy isolates the client for ingress, or the server for egress.
func classes(local int, ingress, egress bool) *workload {
	w := newWorkload(local)
	for i := 2; i < local; i++ {
		if ingress {
			w.add(allow{pods: w.other(i), peers: w.peer(i), ports: web})
		}
		if egress {
			w.add(allow{egress: true, pods: w.other(i), peers: w.peer(i), ports: web})
		}
	}
	w.permit(ingress, egress)
	return w
}

func oneClass(local int) *workload {
	w := newWorkload(local)
	for i := range local {
		w.groups["all"] = append(w.groups["all"], localPod(i))
	}
	w.add(allow{pods: "all", peers: "client", ports: web})
	return w
}

// beside returns a node on which policies isolate all pods except client and server.
func beside(local int) *workload {
	w := classes(local, true, true)
	w.allows = w.allows[:len(w.allows)-2]
	return w
}

func (w *workload) permit(ingress, egress bool) {
	if egress {
		w.add(allow{egress: true, pods: "client", peers: "server", ports: web})
	}
	if ingress {
		w.add(allow{pods: "server", peers: "client", ports: web})
	}
}

// spread returns a node with as many policies as the parameter policies says. One after the other, the policies isolate
// the node's pods, except the client. Each isolated pod has its own class (see classes).
func spread(policies, local int) *workload {
	w := newWorkload(local)
	for i := range policies - 1 {
		pods := "server"
		if k := i%(local-1) + 2; k < local {
			pods = w.other(k)
		}
		w.add(allow{pods: pods, peers: w.peer(i % 2000), ports: web})
	}
	w.permit(policies > 0, false)
	return w
}

func selectors(policies int) *workload {
	w := newWorkload(10)
	for i := range policies - 1 {
		w.add(allow{pods: "server", peers: w.peer(i), ports: web})
	}
	w.permit(true, false)
	return w
}

func ports(policies int) *workload {
	w := newWorkload(10)
	for i := range policies - 1 {
		w.add(allow{pods: "server", peers: w.peer(i), ports: []portRange{{1000 + i, 1000 + i}}})
	}
	w.permit(true, false)
	return w
}

// mixed returns a node with policies like those in Red Hat's tests of policies at scale (kube-burner-ocp,
// cmd/config/network-policy/ingress-np.yml).
func mixed(policies int) *workload {
	w := newWorkload(10)
	ports, blockPorts := []portRange{}, []portRange{}
	for k := range 5 {
		ranged := portRange{5000 + 10*k, 5005 + 10*k}
		ports = append(ports, portRange{80 + k, 80 + k}, ranged)
		blockPorts = append(blockPorts, portRange{1001 + k, 1001 + k}, ranged)
	}
	for i := range policies {
		name := fmt.Sprintf("mix-%d", i)
		for k := range 25 {
			w.groups[name] = append(w.groups[name], elsewhere((i*7+k*101)%2400))
		}
		a := allow{pods: "server", peers: name, ports: ports, blockPorts: blockPorts}
		for k := range 5 {
			a.blocks = append(a.blocks, fmt.Sprintf("%d.%d.0.0/16", 172+k, (i+k)%256))
		}
		w.add(a)
	}
	w.groups[fmt.Sprintf("mix-%d", policies-1)][0] = clientAddr
	return w
}

func (w *workload) state() policy.State {
	labels := map[netip.Addr]map[string]string{}
	for i := range w.local {
		labels[localPod(i)] = map[string]string{}
	}
	for group, addrs := range w.groups {
		for _, a := range addrs {
			if labels[a] == nil {
				labels[a] = map[string]string{}
			}
			labels[a][group] = ""
		}
	}
	var s policy.State
	s.Namespaces = []policy.Namespace{{Name: namespace}}
	for _, a := range slices.SortedFunc(maps.Keys(labels), netip.Addr.Compare) {
		s.Pods = append(s.Pods, policy.Pod{
			Namespace: namespace, Name: "pod-" + a.String(), Labels: labels[a], Addresses: []netip.Addr{a},
		})
	}
	for i := range w.local {
		a := localPod(i)
		s.Endpoints = append(s.Endpoints, policy.Endpoint{
			ID: a.String() + ":eth0", Enforcement: conf.Strict,
			Pod:       policy.PodRef{Namespace: namespace, Name: "pod-" + a.String()},
			Addresses: []policy.Address{{Addr: a, Subnet: podSubnet}},
		})
	}
	for i, a := range w.allows {
		s.Policies = append(s.Policies, a.networkPolicy(fmt.Sprintf("policy-%05d", i)))
	}
	return s
}

func (a allow) networkPolicy(name string) *networkingv1.NetworkPolicy {
	selected := func(group string) metav1.LabelSelector {
		return metav1.LabelSelector{MatchLabels: map[string]string{group: ""}}
	}
	peers := selected(a.peers)
	terms := []term{{[]networkingv1.NetworkPolicyPeer{{PodSelector: &peers}}, policyPorts(a.ports)}}
	if len(a.blocks) > 0 {
		t := term{ports: policyPorts(a.blockPorts)}
		for _, b := range a.blocks {
			t.peers = append(t.peers, networkingv1.NetworkPolicyPeer{IPBlock: &networkingv1.IPBlock{CIDR: b}})
		}
		terms = append(terms, t)
	}
	np := &networkingv1.NetworkPolicy{
		ObjectMeta: metav1.ObjectMeta{Namespace: namespace, Name: name},
		Spec:       networkingv1.NetworkPolicySpec{PodSelector: selected(a.pods)},
	}
	for _, t := range terms {
		if a.egress {
			np.Spec.Egress = append(np.Spec.Egress, networkingv1.NetworkPolicyEgressRule{To: t.peers, Ports: t.ports})
		} else {
			np.Spec.Ingress = append(np.Spec.Ingress, networkingv1.NetworkPolicyIngressRule{From: t.peers, Ports: t.ports})
		}
	}
	np.Spec.PolicyTypes = []networkingv1.PolicyType{networkingv1.PolicyTypeIngress}
	if a.egress {
		np.Spec.PolicyTypes = []networkingv1.PolicyType{networkingv1.PolicyTypeEgress}
	}
	return np
}

type term struct {
	peers []networkingv1.NetworkPolicyPeer
	ports []networkingv1.NetworkPolicyPort
}

func policyPorts(ranges []portRange) (all []networkingv1.NetworkPolicyPort) {
	for _, proto := range []corev1.Protocol{corev1.ProtocolTCP, corev1.ProtocolUDP} {
		for _, r := range ranges {
			first, last := intstr.FromInt32(int32(r.first)), int32(r.last)
			p := networkingv1.NetworkPolicyPort{Protocol: &proto, Port: &first}
			if r.last > r.first {
				p.EndPort = &last
			}
			all = append(all, p)
		}
	}
	return all
}
