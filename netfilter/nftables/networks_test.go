package nftables

import (
	"net"
	"net/netip"
	"strings"
	"testing"

	networkingv1 "k8s.io/api/networking/v1"

	"github.com/weir-net/weir/conf"
	"github.com/weir-net/weir/netfilter"
	"github.com/weir-net/weir/policy"
	"github.com/weir-net/weir/policy/policytest"
	"github.com/weir-net/weir/policy/ruleset"
	"github.com/weir-net/weir/test/nodetest"
)

// sending returns a state with the pod 10.88.0.2, which may send packets to these networks only.
func sending(name string, networks ...string) policy.State {
	s := policy.State{Endpoints: []policy.Endpoint{{
		ID: "c:eth0", Pod: policy.PodRef{Namespace: "x", Name: "pod"},
		Addresses: []policy.Address{{
			Addr: netip.MustParseAddr("10.88.0.2"), Subnet: netip.MustParsePrefix("10.88.0.0/24"),
		}},
	}}}
	s.Pods = []policy.Pod{{Namespace: "x", Name: "pod"}}
	np := policytest.Letting(name, nil, nil)
	np.Spec.PolicyTypes = []networkingv1.PolicyType{networkingv1.PolicyTypeEgress}
	np.Spec.Ingress, np.Spec.Egress = nil, []networkingv1.NetworkPolicyEgressRule{{}}
	for _, n := range networks {
		np.Spec.Egress[0].To = append(np.Spec.Egress[0].To,
			networkingv1.NetworkPolicyPeer{IPBlock: &networkingv1.IPBlock{CIDR: n}})
	}
	s.Policies = []*networkingv1.NetworkPolicy{np}
	return s
}

// TestNetworksAreFilledBeforeRules: while the table is made, and while a policy gets other networks, the kernel drops
// no packet that the policy allows before and afterwards.
func TestNetworksAreFilledBeforeRules(t *testing.T) {
	if !nodetest.Isolated(t) {
		return
	}
	const from, to, others = "10.88.0.2", "10.88.0.3", 2
	nodetest.RunEach(t, "ip link set lo up", "ip address add "+from+"/24 dev lo", "ip address add "+to+"/24 dev lo")
	stop, done := make(chan struct{}), make(chan error, others)
	for range others {
		go func() { done <- flood(from, to+":9999", stop) }()
	}
	drops := func() (n int) {
		for line := range strings.Lines(nodetest.Run(t, "nft", "list", "table", "ip", tableName)) {
			counted, ok := strings.CutPrefix(strings.TrimSpace(line), "counter packets ")
			if ok && strings.Contains(counted, " drop comment ") && !strings.HasPrefix(counted, "0 ") {
				n++
			}
		}
		return n
	}
	first, second := policy.Compile(sending("a", "10.88.0.0/24")), policy.Compile(sending("a", "10.88.0.0/25"))
	made, changed := 0, 0
	for range 50 {
		d := New()
		mustApply(t, d, first, netfilter.All)
		made += drops()
		for _, next := range []ruleset.Ruleset{second, first, second} {
			mustApply(t, d, next, netfilter.Trust)
		}
		changed += drops()
		if err := d.Remove(t.Context()); err != nil {
			t.Fatal(err)
		}
		d.Close()
	}
	if made+changed > 0 {
		t.Errorf("allowed packets were dropped: %d times when the table was made, %d times until the policy had changed",
			made, changed)
	}
	close(stop)
	for range others {
		if err := <-done; err != nil {
			t.Error(err)
		}
	}
}

// flood sends datagrams to the address until the channel stop is closed.
func flood(from, to string, stop chan struct{}) error {
	local := &net.UDPAddr{IP: net.ParseIP(from)}
	p, err := net.ListenUDP("udp", local)
	if err != nil {
		return err
	}
	defer func() { _ = p.Close() }()
	remote, err := net.ResolveUDPAddr("udp", to)
	if err != nil {
		return err
	}
	for {
		select {
		case <-stop:
			return nil
		default:
			_, _ = p.WriteToUDP([]byte("x"), remote) // it fails if the kernel drops the datagram
		}
	}
}

// TestStepsOfNetworks: a transaction that makes or changes rules changes no set of networks which these rules look up.
func TestStepsOfNetworks(t *testing.T) {
	networks := func(s state) (all string) {
		for name, set := range s[conf.IPv4].sets {
			if strings.HasPrefix(name, conf.BlockSets) {
				for e := range set.entries.All() {
					all += e.Prefix.String() + " "
				}
			}
		}
		return all
	}
	have := state{}
	for _, want := range []string{"10.1.0.0/16", "10.2.0.0/16"} {
		l := new(lowering).lower(policy.Compile(sending("a", want)))
		states, count := statesOf(have, l)
		p := makePlan(have, nth(states, 0), false)
		if before := networks(have); networks(p.next) == before || before == "" && len(p.next[conf.IPv4].chains) > 0 {
			t.Errorf("%s: the first of %d transactions has rules, or the sets stay %q", want, count, before)
		}
		for i := range count {
			have.advance(makePlan(have, nth(states, i), false))
		}
		if networks(have) != want+" " {
			t.Errorf("%s: in the end the sets have %q", want, networks(have))
		}
	}
}
