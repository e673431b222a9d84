package reach_test

import (
	"fmt"
	"net/netip"
	"testing"
	"time"

	networkingv1 "k8s.io/api/networking/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/util/intstr"

	"github.com/weir-net/weir/policy"
	"github.com/weir-net/weir/policy/reach"
)

func large() policy.State {
	var s policy.State
	address := netip.MustParseAddr("10.0.0.1")
	port := func(n int32) []networkingv1.NetworkPolicyPort {
		p := intstr.FromInt32(n)
		return []networkingv1.NetworkPolicyPort{{Port: &p}}
	}
	labels := func(key, value string) *metav1.LabelSelector {
		return &metav1.LabelSelector{MatchLabels: map[string]string{key: value}}
	}
	for n := range 100 {
		namespace := fmt.Sprint("ns-", n)
		s.Namespaces = append(s.Namespaces, policy.Namespace{
			Name: namespace, Labels: map[string]string{"kubernetes.io/metadata.name": namespace, "team": fmt.Sprint(n % 7)},
		})
		for w := range 20 {
			for i := range 5 {
				s.Pods = append(s.Pods, policy.Pod{
					Namespace: namespace, Name: fmt.Sprintf("app-%d-%d", w, i), Addresses: []netip.Addr{address},
					Labels: map[string]string{
						"app": fmt.Sprint("app-", w), "tier": fmt.Sprint(w % 3), "apps.kubernetes.io/pod-index": fmt.Sprint(i),
					},
				})
				address = address.Next()
			}
		}
		for i := range 10 {
			np := &networkingv1.NetworkPolicy{}
			np.Namespace, np.Name = namespace, fmt.Sprint("np-", i)
			np.Spec.PodSelector = *labels("app", fmt.Sprint("app-", i))
			np.Spec.Ingress = []networkingv1.NetworkPolicyIngressRule{
				{Ports: port(int32(8000 + i)), From: []networkingv1.NetworkPolicyPeer{{PodSelector: labels("tier", "1")}}},
				{Ports: port(9090), From: []networkingv1.NetworkPolicyPeer{{NamespaceSelector: labels("team", fmt.Sprint(i%7))}}},
				{From: []networkingv1.NetworkPolicyPeer{{IPBlock: &networkingv1.IPBlock{CIDR: fmt.Sprintf("172.16.%d.0/24", i)}}}},
			}
			s.Policies = append(s.Policies, np)
		}
	}
	return s
}

// TestLarge: 10,000 pods become 2,000 parties (pods that no policy can tell apart), and the addresses outside of the
// cluster become 11 parties. The test logs how long the matrix and a difference take, but doesn't limit the time.
func TestLarge(t *testing.T) {
	s := large()
	began := time.Now()
	m := reach.New(s, nil)
	rows := m.Rows()
	took := time.Since(began)
	t.Logf("%d pods, %d policies: %d parties, %d rows in %s", len(s.Pods), len(s.Policies), len(m.Parties), len(rows),
		took)
	if len(m.Parties) != 2000+11 {
		t.Errorf("%d parties", len(m.Parties))
	}
	after := s
	after.Policies = after.Policies[1:]
	began = time.Now()
	d := reach.Compare(s, after, nil)
	t.Logf("the difference: %d rows opened, %d closed in %s", len(d.Opened), len(d.Closed), time.Since(began))
	if len(d.Opened) == 0 || len(d.Closed) != 0 {
		t.Errorf("%d rows opened, %d closed", len(d.Opened), len(d.Closed))
	}
}
