package nftables

import (
	"flag"
	"fmt"
	"iter"
	"math/rand/v2"
	"net/netip"
	"slices"
	"strings"
	"sync/atomic"
	"testing"

	networkingv1 "k8s.io/api/networking/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/util/intstr"

	"github.com/weir-net/weir/conf"
	"github.com/weir-net/weir/netfilter/nftnl"
	"github.com/weir-net/weir/policy"
	"github.com/weir-net/weir/policy/policytest"
	"github.com/weir-net/weir/policy/ruleset"
)

var (
	cases = flag.Int("cases", 300, "on how many random clusters the lowered rules are compared with the ruleset")
	seed  = flag.Uint64("seed", 0, "compare them on the cluster of that seed only")
)

// TestLoweredRulesDoWhatTheRulesetMeans: on random clusters, the lowered rules allow the same packets as the ruleset.
//
// To replay one cluster: go test ./netfilter/nftables -run TestLoweredRules -seed N
func TestLoweredRulesDoWhatTheRulesetMeans(t *testing.T) {
	if *seed != 0 {
		compare(t, new(lowering), *seed)
		return
	}
	var packets atomic.Int64
	policytest.OnAllProcessors(t, 1, *cases, func(seeds iter.Seq[uint64]) {
		var m lowering
		for seed := range seeds {
			packets.Add(int64(compare(t, &m, seed)))
		}
	})
	if !t.Failed() {
		fmt.Printf("oracle-nftables: %d cases, %d packets, 0 differences\n", *cases, packets.Load())
	}
}

func compare(t *testing.T, m *lowering, seed uint64) int {
	r := rand.New(rand.NewPCG(seed, 9))
	state := policytest.State(r)
	packets := policytest.At(state, policytest.Probes(r, state, 3))
	rules := policytest.Bounds(r).Merge(policy.Compile(state), nil)
	by, err := ruleset.NewSimulator(rules)
	if err != nil {
		panic(err)
	}
	kernel := newModel(m.lower(rules))
	for _, p := range packets {
		if got, want := kernel.allows(p), by.Allows(p); got != want {
			t.Errorf("seed %d: %+v passes: %v; by the ruleset: %v", seed, p, got, want)
			break
		}
	}
	return len(packets)
}

// TestNoStepOpens: during a change, no packet passes that both the old and the new state deny. This is also true for a
// packet whose first look-ups come before a transaction, and whose other look-ups come after it. If a packet is
// allowed before and after a transaction, it also passes while sets of networks still have their old elements.
func TestNoStepOpens(t *testing.T) {
	several, most := 0, 0
	for seed := range uint64(60) {
		r := rand.New(rand.NewPCG(seed, 1))
		s := policytest.State(r)
		var m lowering
		old := policytest.Bounds(r).Merge(policy.Compile(s), nil)
		first := m.lower(old)
		have, kernel := makePlan(state{}, first, false).next, newModel(first)
		for range 3 {
			next := policytest.Change(r, s)
			now := policytest.Bounds(r).Merge(policy.Compile(next), nil)
			want := m.lower(now)
			last := newModel(want)
			packets := policytest.Packets(next)
			denied := slices.DeleteFunc(slices.Clone(packets), func(p ruleset.Packet) bool {
				return kernel.allows(p) || last.allows(p)
			})
			states, count := statesOf(have, want)
			if count > 1 {
				several++
			}
			most = max(most, count)
			for i := range count {
				p := makePlan(have, nth(states, i), false)
				after := kernel.then(nth(states, i))
				for _, packet := range denied {
					if step, ok := opens(kernel, after, packet); ok {
						t.Fatalf("seed %d: %+v passes transaction %d of %d after %d look-ups", seed, packet, i+1, count, step)
					}
				}
				for _, packet := range packets {
					if kernel.allows(packet) && after.allows(packet) && dropped(kernel, after, packet) {
						t.Fatalf("seed %d: %+v is dropped during transaction %d of %d", seed, packet, i+1, count)
					}
				}
				have.advance(p)
				kernel = after
			}
			if p := makePlan(have, want, false); !p.batch.Empty() {
				t.Fatalf("seed %d: something is left to be done after the last transaction", seed)
			}
			s = next
		}
	}
	t.Logf("%d of 180 changes had several transactions, at most %d", several, most)
}

// opens reports whether the packet passes during or after the transaction between the two models. If the packet
// passes, lookups is the number of its look-ups before the transaction.
func opens(before, after *model, p ruleset.Packet) (lookups int, yes bool) {
	for ; ; lookups++ {
		yes, all := before.allowsWhile(p, after, lookups, lookups)
		if yes {
			return lookups, true
		}
		if all <= lookups {
			return lookups, after.allows(p) || opensLate(before, after, p)
		}
	}
}

// opensLate reports whether the packet passes during the transaction because sets of networks change later than all
// other parts.
func opensLate(before, after *model, p ruleset.Packet) bool {
	if !before.differsInNetworks(after) {
		return false
	}
	between := before.beforeNetworks(after)
	for lookups := 0; ; lookups++ {
		yes, made := between.allowsWhile(p, after, 0, lookups)
		for networks := lookups; !yes && networks <= made; {
			var by int
			networks++
			yes, by = before.allowsWhile(p, after, lookups, networks)
			made = max(made, by)
		}
		if yes || made <= lookups {
			return yes
		}
	}
}

// dropped reports whether the new rules drop the packet while sets of networks still have their old elements.
func dropped(before, after *model, p ruleset.Packet) bool {
	if !before.differsInNetworks(after) {
		return false
	}
	between := before.beforeNetworks(after)
	for lookups := 0; ; lookups++ {
		passes, made := between.allowsWhile(p, after, 0, lookups)
		if !passes || made <= lookups {
			return !passes
		}
	}
}

// TestALeftClassGetsOtherRules: a pod moves from one class to another. Another pod stays in the old class. In the same
// change, the old class's chain gets rules that look up another set. If both the old and the new state deny a sender's
// packets to the moving pod, these packets are also dropped during the change.
func TestALeftClassGetsOtherRules(t *testing.T) {
	for try := range 60 {
		state := func(kind, peer string) policy.State {
			var s policy.State
			for i, pod := range []struct{ name, kind string }{{"moves", kind}, {"stays", "four"}} {
				a := netip.AddrFrom4([4]byte{10, 88, 0, byte(2 + i)})
				s.Endpoints = append(s.Endpoints, policy.Endpoint{
					ID: pod.name + ":eth0", Pod: policy.PodRef{Namespace: "x", Name: pod.name},
					Addresses: []policy.Address{{Addr: a, Subnet: netip.MustParsePrefix("10.88.0.0/24")}},
				})
				s.Pods = append(s.Pods, policy.Pod{
					Namespace: "x", Name: pod.name, Labels: map[string]string{"in": "yes", "kind": pod.kind},
					Addresses: []netip.Addr{a},
				})
			}
			s.Pods = append(s.Pods, policy.Pod{
				Namespace: "x", Name: "sender", Labels: map[string]string{"peer": peer},
				Addresses: []netip.Addr{netip.MustParseAddr("10.77.0.9")},
			})
			selected := map[string]string{"in": "yes"}
			for i, pods := range []map[string]string{selected, selected, selected, {"kind": "four"}, {"kind": "five"}} {
				from := &metav1.LabelSelector{MatchLabels: map[string]string{"peer": fmt.Sprint(i, "-", try)}}
				s.Policies = append(s.Policies, policytest.Letting(fmt.Sprint("p", i), pods,
					[]networkingv1.NetworkPolicyPeer{{PodSelector: from}}))
			}
			return s
		}
		lower := func(m *lowering, s policy.State) lowered {
			return m.lower(ruleset.UsualBounds().Merge(policy.Compile(s), nil))
		}
		var m lowering
		first := lower(&m, state("four", "none"))
		have, kernel := makePlan([len(conf.Families)]kernelTable{}, first, false).next, newModel(first)
		want := lower(&m, state("five", fmt.Sprint(3, "-", try)))
		p := ruleset.Packet{
			In: "eth0", Out: conf.Bridge, Src: netip.MustParseAddr("10.77.0.9"), Dst: netip.MustParseAddr("10.88.0.2"),
			Proto: ruleset.TCP, Port: 80,
		}
		if kernel.allows(p) || newModel(want).allows(p) {
			t.Fatal("one of the states allows the packet")
		}
		states, count := statesOf(have, want)
		for i := range count {
			after := kernel.then(nth(states, i))
			if lookups, yes := opens(kernel, after, p); yes {
				t.Errorf("try %d: the packet passes transaction %d of %d after %d look-ups", try, i+1, count, lookups)
			}
			have.advance(makePlan(have, nth(states, i), false))
			kernel = after
		}
	}
}

// TestTransactions: if a change only denies packets that were allowed, or only allows packets that were denied, the
// driver makes it in one transaction. If a change of sets does both, it takes several transactions, and the first
// transaction only denies packets.
func TestTransactions(t *testing.T) {
	type entries map[string]string // addresses, by the name of the set
	roles := map[string]ruleset.SetRole{
		"weir-sel-A": ruleset.Peers, "weir-sel-B": ruleset.Peers, conf.ChainedSet: ruleset.Checked,
	}
	with := func(all entries) lowered {
		r := policy.Compile(policy.State{})
		for name, role := range roles {
			s := ruleset.Set{Name: name, Kind: ruleset.Addresses, Role: role}
			for _, a := range strings.Fields(all[name]) {
				s.Entries = s.Entries.With(ruleset.Entry{Element: ruleset.Element{Prefix: netip.MustParsePrefix(a + "/32")}})
			}
			r.Sets = append(r.Sets, s)
		}
		return new(lowering).lower(r)
	}
	const a, b = "10.0.0.1", "10.0.0.2"
	for name, c := range map[string]struct{ was, now, between entries }{
		"less":          {entries{"weir-sel-A": a, "weir-sel-B": b}, entries{}, nil},
		"more":          {entries{}, entries{"weir-sel-A": a, "weir-sel-B": b}, nil},
		"one set":       {entries{"weir-sel-A": a}, entries{"weir-sel-A": b}, entries{}},
		"less and more": {entries{"weir-sel-A": a}, entries{"weir-sel-B": b}, entries{}},
		"more checks": {
			entries{}, entries{conf.ChainedSet: a, "weir-sel-B": b}, entries{conf.ChainedSet: a},
		},
		"fewer checks": {
			entries{"weir-sel-A": a, conf.ChainedSet: b}, entries{}, entries{conf.ChainedSet: b},
		},
	} {
		have, want := makePlan(state{}, with(c.was), false).next, with(c.now)
		states, count := statesOf(have, want)
		var between []string
		for i := range count {
			p := makePlan(have, nth(states, i), false)
			if have.advance(p); i < count-1 && !p.batch.Empty() {
				for set := range roles {
					for e := range have[conf.IPv4].sets[set].entries.All() {
						between = append(between, set+" "+e.Prefix.Addr().String())
					}
				}
			}
		}
		var wanted []string
		for set, address := range c.between {
			wanted = append(wanted, set+" "+address)
		}
		if !slices.Equal(between, wanted) || (c.between == nil) != (count == 1) {
			t.Errorf("%s: %d states, in between %q, want %q", name, count, between, wanted)
		}
		if p := makePlan(have, want, false); !p.batch.Empty() {
			t.Errorf("%s: something is left to be done", name)
		}
	}
}

// TestInterruptedChangesStand: after each transaction of a change, weir's chains count as complete. So if the agent is
// killed between two transactions, the next agent keeps the rules while it doesn't know the policies yet.
func TestInterruptedChangesStand(t *testing.T) {
	labelled := func(app string) policy.State {
		s := policy.State{Endpoints: []policy.Endpoint{{
			ID: "c:eth0", Pod: policy.PodRef{Namespace: "x", Name: "pod"},
			Addresses: []policy.Address{{
				Addr: netip.MustParseAddr("10.88.0.2"), Subnet: netip.MustParsePrefix("10.88.0.0/24"),
			}},
		}}}
		s.Pods = []policy.Pod{{Namespace: "x", Name: "pod", Labels: map[string]string{"app": app}}}
		for port, app := range map[int]string{80: "a", 90: "b"} {
			number := intstr.FromInt(port)
			ports := []networkingv1.NetworkPolicyPort{{Port: &number}}
			np := policytest.Letting(app, map[string]string{"app": app}, nil, ports...)
			np.Spec.Egress = []networkingv1.NetworkPolicyEgressRule{{Ports: ports}}
			s.Policies = append(s.Policies, np)
		}
		return s
	}
	was, now := labelled("a"), labelled("b")
	have := makePlan(state{}, new(lowering).lower(policy.Compile(was)), false).next
	want, closed := new(lowering).lower(policy.Compile(now)), new(lowering).lower(policy.Compile(policy.State{}))
	states, count := statesOf(have, want)
	staged := 0
	for i := range count {
		have.advance(makePlan(have, nth(states, i), false))
		for class := range have[conf.IPv4].chains {
			if strings.Contains(class, "BOTH") {
				staged++
			}
		}
		if !have[conf.IPv4].stands(closed[conf.IPv4]) {
			t.Errorf("after transaction %d of %d, the chains don't count as complete", i+1, count)
		}
	}
	if staged == 0 {
		t.Error("no pod was on its way between two classes")
	}
}

// TestTemporaryChainsNameTheirDirection: the name of a temporary chain begins like the names of the classes' chains of
// its direction.
func TestTemporaryChainsNameTheirDirection(t *testing.T) {
	at := ruleset.Element{Prefix: netip.MustParsePrefix("10.0.0.1/32")}
	leadsTo := func(chain string) ruleset.Entries {
		return ruleset.EntriesOf(ruleset.Entry{Element: at, Comment: withVerdict(chain, "")})
	}
	for _, f := range conf.Families {
		for name, begin := range map[string]string{
			f.Set(conf.IngressMap): "WEIR-IN-BOTH-", f.Set(conf.EgressMap): "WEIR-EG-BOTH-",
		} {
			c := change{
				have:  kernelTable{sets: map[string]kernelSet{name: {entries: leadsTo("OLD")}}},
				want:  &table{family: f, sets: []set{{Set: nftnl.Set{Name: name}, entries: leadsTo("NEW")}}},
				steps: map[string]map[ruleset.Element]step{name: {at: movesPods}}, both: map[[2]string]chain{},
			}
			c.stage(name)
			if k := c.both[[2]string{"OLD", "NEW"}]; !strings.HasPrefix(k.Name, begin) {
				t.Errorf("%s: the chain %q doesn't begin with %s", name, k.Name, begin)
			}
		}
	}
}
