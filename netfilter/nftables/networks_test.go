package nftables

import (
	"maps"
	"net"
	"net/netip"
	"slices"
	"strings"
	"testing"

	networkingv1 "k8s.io/api/networking/v1"

	"github.com/weir-net/weir/conf"
	"github.com/weir-net/weir/netfilter"
	"github.com/weir-net/weir/netfilter/nftnl"
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
	none := sending("a")
	none.Policies = nil
	open := policy.Compile(none)
	first, second := policy.Compile(sending("a", "10.88.0.0/24")), policy.Compile(sending("a", "10.88.0.0/25"))
	for range 12 {
		d := New()
		for i, next := range []ruleset.Ruleset{first, second, open, second} {
			mustApply(t, d, next, netfilter.Trust)
			if drops() > 0 {
				t.Errorf("change %d dropped an allowed packet", i)
			}
		}
		if err := d.Remove(t.Context()); err != nil {
			t.Fatal(err)
		}
		d.Close()
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
			_, _ = p.WriteToUDP([]byte("x"), remote) // errors are ignored: for example, the socket may have no room
		}
	}
}

// TestStepsOfNetworks: the transaction that adds networks to sets comes before the transaction that changes the rules,
// maps and base chains that packets meet.
func TestStepsOfNetworks(t *testing.T) {
	networks := func(name string, role ruleset.SetRole, prefixes ...string) set {
		s := set{Set: nftnl.Set{Name: name, Layout: nftnl.Network}, role: role}
		for _, p := range prefixes {
			s.entries = s.entries.With(ruleset.Entry{Element: ruleset.Element{Prefix: netip.MustParsePrefix(p)}})
		}
		return s
	}
	verdicts := func(chains ...string) set {
		s := set{Set: nftnl.Set{Name: conf.EgressMap, Layout: nftnl.Verdicts}, role: ruleset.Members}
		for i, c := range chains {
			at := netip.PrefixFrom(netip.AddrFrom4([4]byte{10, 88, 0, byte(i)}), 32)
			s.entries = s.entries.With(ruleset.Entry{
				Element: ruleset.Element{Prefix: at}, Comment: withVerdict(c, "pod"),
			})
		}
		return s
	}
	rules := func(name string, hook *nftnl.Hook, looksUp string, port uint16) chain {
		c := chain{Chain: nftnl.Chain{Name: name, Hook: hook}, rules: []rule{
			{Rule: ruleset.Rule{
				Proto: ruleset.TCP, Ports: []ruleset.PortRange{{First: port, Last: port}},
				Sets: []ruleset.SetMatch{{Name: looksUp, By: ruleset.Source}}, Action: ruleset.Return,
			}},
			{Rule: ruleset.Rule{Action: ruleset.Drop}},
		}}
		c.sum(conf.IPv4)
		return c
	}
	hook, other := hooks[ruleset.CheckForwarded], hooks[ruleset.CheckToNode]
	with := func(parts ...any) *table {
		l := &table{}
		for _, part := range parts {
			switch part := part.(type) {
			case set:
				l.sets = append(l.sets, part)
			case chain:
				l.chains = append(l.chains, part)
			}
		}
		return l
	}
	const of, masquerading, class = "weir-net-mrg-A", "weir-networks", "WEIR-EG-A"
	base := rules("WEIR-FORWARD", &hook, of, 80)
	for name, c := range map[string]struct {
		was, now *table
		want     string // the sets and chains that each transaction changes
	}{
		"a new table": {
			with(), with(networks(of, ruleset.Peers, "10.1.0.0/16"), verdicts(class), base, rules(class, nil, of, 80)),
			"weir-net-mrg-A; WEIR-EG-A WEIR-FORWARD weir-eg",
		},
		"a table with new sets": {
			with(networks(of, ruleset.Peers, "10.1.0.0/16"), verdicts()),
			with(networks(of, ruleset.Peers, "10.2.0.0/16"), verdicts(class), base, rules(class, nil, of, 80)),
			"weir-net-mrg-A; WEIR-EG-A WEIR-FORWARD weir-eg",
		},
		"rules and networks": {
			with(networks(of, ruleset.Peers, "10.1.0.0/16"), base),
			with(networks(of, ruleset.Peers, "10.2.0.0/16"), rules("WEIR-FORWARD", &hook, of, 443)),
			"weir-net-mrg-A; WEIR-FORWARD; weir-net-mrg-A",
		},
		"networks alone": {
			with(networks(of, ruleset.Peers, "10.1.0.0/16"), base), with(networks(of, ruleset.Peers, "10.2.0.0/16"), base),
			"weir-net-mrg-A; weir-net-mrg-A",
		},
		"rules with a new set": {
			with(networks(of, ruleset.Peers, "10.1.0.0/16"), base),
			with(networks("weir-net-B", ruleset.Peers, "10.1.0.0/16"), rules("WEIR-FORWARD", &hook, "weir-net-B", 80)),
			"weir-net-B; WEIR-FORWARD weir-net-mrg-A",
		},
		"a pod is admitted": {
			with(networks(masquerading, ruleset.Checked, "10.1.0.0/29"), verdicts(), base, rules(class, nil, of, 80)),
			with(networks(masquerading, ruleset.Checked, "10.1.0.0/16"), verdicts(class), base, rules(class, nil, of, 80)),
			"weir-networks; weir-eg",
		},
		"a new base chain": {
			with(base),
			with(networks("weir-net-B", ruleset.Peers, "10.1.0.0/16"), base, rules("WEIR-INPUT", &other, "weir-net-B", 80)),
			"weir-net-B; WEIR-INPUT",
		},
		"a pod in a new class": {
			with(verdicts(), base),
			with(
				networks("weir-net-B", ruleset.Peers, "10.1.0.0/16"), verdicts(class), base,
				rules(class, nil, "weir-net-B", 80),
			),
			"WEIR-EG-A weir-net-B; weir-eg", // until the pod is in the map, no packet meets the rules of its class
		},
		"a new base chain and a new class": {
			with(verdicts(), base),
			with(
				networks("weir-net-B", ruleset.Peers, "10.1.0.0/16"), verdicts(class), base,
				rules(class, nil, "weir-net-B", 80), rules("WEIR-INPUT", &other, "weir-net-B", 80),
			),
			"WEIR-EG-A weir-net-B; WEIR-INPUT weir-eg",
		},
		"the first policy of a pod": {
			with(verdicts(""), base),
			with(
				networks("weir-net-B", ruleset.Peers, "10.1.0.0/16"), verdicts(class), base,
				rules(class, nil, "weir-net-B", 80),
			),
			"weir-net-B; WEIR-EG-A weir-eg",
		},
	} {
		have := makePlan(state{}, lowered{conf.IPv4: c.was}, false).next
		if have[conf.IPv4].exists = len(c.was.sets)+len(c.was.chains) > 0; !have[conf.IPv4].exists {
			have[conf.IPv4] = newKernelTable()
		}
		states, count := statesOf(have, lowered{conf.IPv4: c.now})
		var all []string
		for i := range count {
			before := have[conf.IPv4]
			before.sets, before.chains = maps.Clone(before.sets), maps.Clone(before.chains)
			p := makePlan(have, nth(states, i), false)
			have.advance(p)
			if now := changedIn(before, have[conf.IPv4]); now != "" {
				all = append(all, now)
			}
		}
		if got := strings.Join(all, "; "); got != c.want {
			t.Errorf("%s: the transactions change %q, want %q", name, got, c.want)
		}
	}
}

// changedIn returns the names of the sets with other elements than before, and of the chains with other rules.
func changedIn(before, after kernelTable) string {
	names := map[string]bool{}
	for name, s := range after.sets {
		names[name] = !s.entries.Equal(before.sets[name].entries)
	}
	for name, s := range before.sets {
		_, ok := after.sets[name]
		names[name] = names[name] || !ok && s.entries.Len() > 0
	}
	for name, c := range after.chains {
		names[name] = !slices.Equal(c.Sums, before.chains[name].Sums)
	}
	maps.DeleteFunc(names, func(_ string, changed bool) bool { return !changed })
	return strings.Join(slices.Sorted(maps.Keys(names)), " ")
}
