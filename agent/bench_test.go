package agent

import (
	"context"
	"fmt"
	"log/slog"
	"net/netip"
	"runtime"
	"testing"

	"github.com/containernetworking/plugins/pkg/netlinksafe"
	"github.com/vishvananda/netns"
	"golang.org/x/sys/unix"
	corev1 "k8s.io/api/core/v1"
	networkingv1 "k8s.io/api/networking/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/util/intstr"

	"github.com/weir-net/weir/conf"
	"github.com/weir-net/weir/endpoint"
	"github.com/weir-net/weir/netfilter"
	"github.com/weir-net/weir/netfilter/iptables"
	"github.com/weir-net/weir/policy"
	"github.com/weir-net/weir/policy/ruleset"
)

func large(policies int) (*policy.Objects, map[string]endpoint.Endpoint) {
	o, endpoints := &policy.Objects{}, map[string]endpoint.Endpoint{}
	for i := range 500 {
		name := fmt.Sprint("ns-", i)
		o.Namespaces = append(o.Namespaces,
			policy.Namespace{Name: name, Labels: map[string]string{corev1.LabelMetadataName: name, "team": fmt.Sprint(i % 20)}})
	}
	for i := range 100 {
		o.Nodes = append(o.Nodes, node(fmt.Sprint("n", i), fmt.Sprint("172.20.0.", i+1), fmt.Sprintf("100.96.%d.0/24", i)))
	}
	for i := range 5000 {
		p := policy.Pod{
			Namespace: fmt.Sprint("ns-", i/7%500), Name: fmt.Sprint("p", i), UID: fmt.Sprint(i),
			Labels:    map[string]string{"app": fmt.Sprint("a", i%10), "pod-template-hash": "abcdef"},
			Ports:     []policy.NamedPort{{Name: "http", Proto: ruleset.TCP, Number: 8080}},
			NodeName:  fmt.Sprint("n", i%100),
			Addresses: []netip.Addr{netip.AddrFrom4([4]byte{100, 96, byte(i % 100), byte(2 + i/100)})},
		}
		o.Pods = append(o.Pods, p)
		if i%100 == 0 {
			e := endpoint.Endpoint{
				ContainerID: p.Name, IfName: "eth0", MAC: "0a:58:0a:58:00:02", HostIf: "weirp" + p.UID, Enforcement: conf.Strict,
				Pod: endpoint.Pod{Namespace: p.Namespace, Name: p.Name, UID: p.UID},
				Addresses: []endpoint.Address{{
					Addr:    p.Addresses[0],
					Subnet:  netip.MustParsePrefix("100.96.0.0/24"),
					Gateway: netip.MustParseAddr("100.96.0.1"),
				}},
			}
			endpoints[e.ID()] = e
		}
	}
	for i := range policies {
		port := intstr.FromInt32(80)
		if i%2 == 0 {
			port = intstr.FromString("http")
		}
		np := allow(fmt.Sprint("np", i),
			&metav1.LabelSelector{MatchLabels: map[string]string{"app": fmt.Sprint("a", i/500%10)}},
			networkingv1.NetworkPolicyPeer{
				PodSelector: &metav1.LabelSelector{MatchLabels: map[string]string{"app": fmt.Sprint("a", i%10)}},
			},
			networkingv1.NetworkPolicyPeer{
				NamespaceSelector: &metav1.LabelSelector{MatchLabels: map[string]string{"team": fmt.Sprint(i % 20)}},
			})
		np.Namespace = fmt.Sprint("ns-", i%500)
		np.Spec.Ingress[0].Ports = []networkingv1.NetworkPolicyPort{{Port: &port}}
		o.Policies = append(o.Policies, np)
	}
	return o, endpoints
}

// BenchmarkPodEvent measures the agent's work when a pod of another node begins or ends. Peers of this node's
// policies select the pod. The benchmark needs root.
func BenchmarkPodEvent(b *testing.B) {
	for _, policies := range []int{1000, 10000} {
		b.Run(fmt.Sprintf("pods=5000/policies=%d", policies), func(b *testing.B) {
			runtime.LockOSThread() // the kernel removes the namespace when the thread ends
			ns, err := netns.New()
			if err != nil {
				b.Fatal(err)
			}
			defer func() { _ = ns.Close() }()
			driver, err := iptables.New(b.Context())
			if err != nil {
				b.Fatal(err)
			}
			defer driver.Close()
			links, err := netlinksafe.NewHandle(unix.NETLINK_ROUTE)
			if err != nil {
				b.Fatal(err)
			}
			defer links.Close()
			objects, endpoints := large(policies)
			a := newAgent(Options{Source: newCluster(), Log: slog.New(slog.DiscardHandler)}, driver, links)
			a.records.endpoints, a.records.complete = endpoints, true
			// With walking true, the agent begins no search for connections to cut. The search would run on a thread
			// outside of the namespace.
			a.cutting.walking = true
			a.takeUpdate(policy.Difference(policy.Objects{}, *objects), nil)
			a.reconcile(b.Context(), netfilter.All)
			a.records.endpoints, a.records.copied = endpoints, nil
			a.reconcile(b.Context(), netfilter.Trust)
			b.ReportAllocs()
			changes := a.stats.Changes
			events := 0
			for b.Loop() {
				d, p := policy.NewDelta(), &objects.Pods[1]
				name := policy.Name{Namespace: p.Namespace, Name: p.Name}
				if d.Pods[name] = []*policy.Pod{p}; events%2 == 0 {
					d.Pods[name] = nil
				}
				events++
				a.takeUpdate(d, nil)
				a.reconcile(context.Background(), netfilter.Trust)
			}
			if err := a.faults.now[partKernel]; err != nil || a.stats.Changes-changes != events {
				b.Errorf("%d changes after %d events, %v", a.stats.Changes-changes, events, err)
			}
		})
	}
}

// BenchmarkEventOfNoConcern measures the agent's work when a pod of another node changes. No peer of this node's
// policies selects the pod.
func BenchmarkEventOfNoConcern(b *testing.B) {
	objects, endpoints := large(1000)
	o := Options{Source: newCluster(), Log: slog.New(slog.DiscardHandler)}
	a := newAgent(o, &iptables.Driver{}, netlinksafe.Handle{})
	a.records.endpoints, a.records.complete = endpoints, true
	a.takeUpdate(policy.Difference(policy.Objects{}, *objects), nil)
	p := objects.Pods[33]
	p.Labels = map[string]string{"other": ""}
	first := policy.NewDelta()
	first.Pods[policy.Name{Namespace: p.Namespace, Name: p.Name}] = []*policy.Pod{&p}
	a.takeUpdate(first, nil)
	a.present()
	b.ReportAllocs()
	i := 0
	for b.Loop() {
		i++
		p := p
		p.UID = fmt.Sprint(i)
		d := policy.NewDelta()
		d.Pods[policy.Name{Namespace: p.Namespace, Name: p.Name}] = []*policy.Pod{&p}
		if a.takeUpdate(d, nil).reconcile {
			b.Fatal("the event leaves work")
		}
	}
}
