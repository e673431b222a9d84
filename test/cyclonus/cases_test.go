// Package cyclonus runs weir against all test cases of Cyclonus (github.com/mattfenwick/cyclonus). Cyclonus' own code
// makes the cases, and computes the verdict for each packet. The cluster is in memory: there is no API server.
package cyclonus

import (
	"io"
	"maps"
	"net/netip"
	"slices"
	"strings"
	"testing"

	"github.com/mattfenwick/cyclonus/pkg/connectivity"
	"github.com/mattfenwick/cyclonus/pkg/connectivity/probe"
	"github.com/mattfenwick/cyclonus/pkg/generator"
	"github.com/mattfenwick/cyclonus/pkg/kube"
	"github.com/mattfenwick/cyclonus/pkg/matcher"
	"github.com/sirupsen/logrus"
	corev1 "k8s.io/api/core/v1"
	networkingv1 "k8s.io/api/networking/v1"

	"github.com/weir-net/weir/conf"
	"github.com/weir-net/weir/policy"
	"github.com/weir-net/weir/source/objects"
)

type addresses struct {
	subnet  netip.Prefix
	gateway netip.Addr
}

var (
	ipv4 = addresses{netip.MustParsePrefix("10.88.0.0/24"), netip.MustParseAddr("10.88.0.1")}
	ipv6 = addresses{netip.MustParsePrefix("fd00:10:88::/64"), netip.MustParseAddr("fd00:10:88::1")}
)

type world struct {
	connectivity.TestCaseState
	addresses
	ips map[string]netip.Addr
}

var (
	namespaces = []string{"x", "y", "z"}
	protocols  = []corev1.Protocol{corev1.ProtocolTCP, corev1.ProtocolUDP, corev1.ProtocolSCTP}
)

// newWorld returns a cluster with the pods a, b and c in each of the namespaces x, y and z.
func newWorld(t *testing.T, in addresses) *world {
	t.Helper()
	logrus.SetOutput(io.Discard)
	k := kube.NewMockKubernetes(1)
	resources, err := probe.NewDefaultResources(k, namespaces, []string{"a", "b", "c"}, []int{80, 81}, protocols, nil,
		60, false, "registry.k8s.io")
	if err != nil {
		t.Fatal(err)
	}
	w := &world{connectivity.TestCaseState{Kubernetes: k, Resources: resources}, in, map[string]netip.Addr{}}
	w.assign()
	return w
}

func (w *world) assign() {
	for _, p := range w.Resources.Pods {
		key := p.PodString().String()
		if !w.ips[key].IsValid() {
			next := w.gateway
			for _, a := range w.ips {
				if next.Less(a) {
					next = a
				}
			}
			w.ips[key] = next.Next()
		}
		p.IP = w.ips[key].String()
	}
}

// cases returns all test cases of Cyclonus. If the pods have IPv6, IPv6 blocks replace the IPv4 blocks.
func (w *world) cases() []*generator.TestCase {
	cases := generator.NewTestCaseGenerator(true, w.ips["z/c"].String(), namespaces, nil, nil).GenerateAllTestCases()
	if w.gateway.Is4() {
		return cases
	}
	for _, c := range cases {
		for _, s := range c.Steps {
			for _, a := range s.Actions {
				if a.CreatePolicy != nil {
					toIPv6(a.CreatePolicy.Policy)
				}
				if a.UpdatePolicy != nil {
					toIPv6(a.UpdatePolicy.Policy)
				}
			}
		}
	}
	return cases
}

func toIPv6(np *networkingv1.NetworkPolicy) {
	var peers []networkingv1.NetworkPolicyPeer
	for _, r := range np.Spec.Ingress {
		peers = append(peers, r.From...)
	}
	for _, r := range np.Spec.Egress {
		peers = append(peers, r.To...)
	}
	for _, p := range peers {
		if p.IPBlock != nil {
			p.IPBlock.CIDR = strings.Replace(p.IPBlock.CIDR, "0.0.0.0/", "::/", 1)
		}
	}
}

func (w *world) step(t *testing.T, s *generator.TestStep) {
	t.Helper()
	for _, a := range s.Actions {
		var err error
		switch {
		case a.CreatePolicy != nil:
			err = w.CreatePolicy(a.CreatePolicy.Policy)
		case a.UpdatePolicy != nil:
			err = w.UpdatePolicy(a.UpdatePolicy.Policy)
		case a.DeletePolicy != nil:
			err = w.DeletePolicy(a.DeletePolicy.Namespace, a.DeletePolicy.Name)
		case a.CreateNamespace != nil:
			err = w.CreateNamespace(a.CreateNamespace.Namespace, a.CreateNamespace.Labels)
		case a.SetNamespaceLabels != nil:
			err = w.SetNamespaceLabels(a.SetNamespaceLabels.Namespace, a.SetNamespaceLabels.Labels)
		case a.DeleteNamespace != nil:
			err = w.DeleteNamespace(a.DeleteNamespace.Namespace)
		case a.CreatePod != nil:
			err = w.CreatePod(a.CreatePod.Namespace, a.CreatePod.Pod, a.CreatePod.Labels)
		case a.SetPodLabels != nil:
			err = w.SetPodLabels(a.SetPodLabels.Namespace, a.SetPodLabels.Pod, a.SetPodLabels.Labels)
		case a.DeletePod != nil:
			err = w.DeletePod(a.DeletePod.Namespace, a.DeletePod.Pod)
		default:
			t.Fatalf("an action of a kind that isn't known: %+v", a)
		}
		if err != nil {
			t.Fatal(err)
		}
	}
	w.assign()
}

func (w *world) expected(p *generator.ProbeConfig) []*probe.JobResult {
	simulated := probe.NewSimulatedRunner(matcher.BuildNetworkPolicies(true, w.Policies), &probe.JobBuilder{})
	table := simulated.RunProbeForConfig(p, w.Resources)
	var all []*probe.JobResult
	for _, key := range table.Wrapped.Keys() {
		results := table.Get(key.From, key.To).JobResults
		for _, name := range slices.Sorted(maps.Keys(results)) {
			all = append(all, results[name])
		}
	}
	return all
}

func (w *world) state(t *testing.T) policy.State {
	t.Helper()
	s := policy.State{Objects: policy.Objects{Policies: w.Policies}}
	for _, name := range slices.Sorted(maps.Keys(w.Resources.Namespaces)) {
		s.Namespaces = append(s.Namespaces, objects.Namespace(probe.KubeNamespace(name, w.Resources.Namespaces[name])))
	}
	for _, p := range w.Resources.Pods {
		pod := p.KubePod()
		pod.Status.PodIP = p.IP
		known, err := objects.Pod(pod)
		if err != nil {
			t.Fatal(err)
		}
		s.Pods = append(s.Pods, known)
		s.Endpoints = append(s.Endpoints, policy.Endpoint{
			ID: p.Namespace + "." + p.Name + ":eth0", Enforcement: conf.Strict,
			Pod:       policy.PodRef{Namespace: p.Namespace, Name: p.Name},
			Addresses: []policy.Address{{Addr: known.Addresses[0], Subnet: w.subnet}},
		})
	}
	return s
}
