package policy_test

import (
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"testing"

	networkingv1 "k8s.io/api/networking/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/util/intstr"

	"github.com/weir-net/weir/conf"
	"github.com/weir-net/weir/policy"
	"github.com/weir-net/weir/policy/ruleset"
)

// TestOthersPayLittle: one tenant (namespace) adds and deletes a policy that denies everything. If other tenants have
// policies that keep the agent busy (the variable hostile), this addition and deletion cost at most 1.5 times as much
// work as without such policies. The test takes the number of allocations as a measure of the work.
func TestOthersPayLittle(t *testing.T) {
	cost := map[string]float64{}
	for name, list := range hostile {
		e, all := city(2000)
		e.Apply(all)
		e.Ruleset()
		e.Apply(policies(list()...))
		e.Ruleset()
		deny := cityPolicy(18, 0)
		deny.Name, deny.Spec.Ingress = "deny", nil
		there, gone := policies(deny), policies(deny)
		gone.Policies[policy.Name{Namespace: deny.Namespace, Name: deny.Name}] = nil
		cost[name] = testing.AllocsPerRun(10, func() {
			for _, d := range []*policy.Delta{there, gone} {
				e.Apply(d)
				for more := true; more; more = e.HasSlice() {
					e.SliceOf(policy.SliceWork)
				}
			}
		})
	}
	for name, n := range cost {
		if n > 1.5*cost["none"] {
			t.Errorf("%s: %.0f allocations, and %.0f without", name, n, cost["none"])
		}
	}
}

// TestOneOfManyPolicies: a tenant changes one large policy. With 20 large policies, the change costs at most three
// times as much as with two.
func TestOneOfManyPolicies(t *testing.T) {
	cost := map[int]float64{}
	for _, many := range []int{2, 20} {
		e, all := city(200)
		e.Apply(all)
		e.Ruleset()
		list := hostilePolicies(1, many, 500, equals)
		e.Apply(policies(list...))
		e.Ruleset()
		toggled := 0
		cost[many] = testing.AllocsPerRun(4, func() {
			toggled++
			np := list[0].DeepCopy()
			np.Spec.PodSelector.MatchLabels = map[string]string{"app": []string{"a0", "none"}[toggled%2]}
			e.Apply(policies(np))
			e.SliceOf(policy.SliceWork)
		})
	}
	if cost[20] > 3*cost[2] {
		t.Errorf("a change beside 19 other policies takes %.0f allocations, and beside one %.0f", cost[20], cost[2])
	}
}

// TestOneOfManyClasses: if a policy changes one class (pods with the same policies), the rules of the namespace's
// other classes stay in the same memory. The rules in unchanged memory needn't be compared, so the policy costs
// little.
func TestOneOfManyClasses(t *testing.T) {
	const classes = 50
	e, d := policy.NewEngine("n0"), policy.NewDelta()
	d.Namespaces["ns"] = &policy.Namespace{Name: "ns"}
	var endpoints []policy.Endpoint
	selecting := func(i int, name string) *networkingv1.NetworkPolicy {
		np := cityPolicy(0, i)
		np.Namespace, np.Name = "ns", name
		np.Spec.PodSelector = metav1.LabelSelector{MatchLabels: map[string]string{"pod": fmt.Sprint(i)}}
		return np
	}
	for i := range classes {
		name, addr := policy.Name{Namespace: "ns", Name: fmt.Sprint("p", i)}, netip.AddrFrom4([4]byte{10, 0, 0, byte(i)})
		d.Pods[name] = []*policy.Pod{{
			Namespace: "ns", Name: name.Name, Labels: map[string]string{"pod": fmt.Sprint(i)}, Addresses: []netip.Addr{addr},
		}}
		endpoints = append(endpoints, policy.Endpoint{
			ID: name.Name, Pod: policy.PodRef{Namespace: "ns", Name: name.Name}, Enforcement: conf.Strict,
			Addresses: []policy.Address{{Addr: addr, Subnet: netip.MustParsePrefix("10.0.0.0/24")}},
		})
		d.Policies[policy.Name{Namespace: "ns", Name: name.Name}] = []*networkingv1.NetworkPolicy{selecting(i, name.Name)}
	}
	e.SetEndpoints(endpoints)
	e.Apply(d)
	before := e.Ruleset()
	e.Apply(policies(selecting(7, "another")))
	kept := 0
	for _, c := range e.Ruleset().Chains {
		for _, was := range before.Chains {
			if c.Name == was.Name && c.Hook == "" && len(c.Rules) > 0 && &c.Rules[0] == &was.Rules[0] {
				kept++
			}
		}
	}
	if kept < classes-1 {
		t.Errorf("only %d chains of %d classes kept their memory", kept, classes)
	}
}

// TestLargeSetsComeInPieces: one slice (a limited piece of work) computes only a part of a large set. No rule uses the
// set before the set is complete.
func TestLargeSetsComeInPieces(t *testing.T) {
	const blocks = 8 * policy.SliceWork
	e, all := city(1000)
	e.Apply(all)
	e.Ruleset()
	e.Apply(policies(hostilePolicy(1, 0, blocks, ipBlock)))
	large := func(r ruleset.Ruleset) (entries, rules int) {
		name := ""
		for _, s := range r.Sets {
			if s.Kind == ruleset.Networks && s.Entries.Len() > 100 {
				name, entries = s.Name, s.Entries.Len()
			}
		}
		for _, c := range r.Chains {
			for _, rule := range c.Rules {
				for _, m := range rule.Sets {
					if m.Name == name {
						rules++
					}
				}
			}
		}
		return entries, rules
	}
	last, done := 0, 0
	for n := 0; e.Changed(); n++ {
		deny := cityPolicy(2, 0)
		deny.Name, deny.Spec.Ingress = fmt.Sprint("deny", n), nil
		deny.Spec.PodSelector = metav1.LabelSelector{}
		if n < 6 {
			e.Apply(policies(deny))
		}
		r := e.SliceOf(policy.SliceWork)
		if n < 6 && !denied(r, "ns2/deny"+fmt.Sprint(n)) {
			t.Fatalf("slice %d lacks the denial that came before it", n)
		}
		entries, rules := large(r)
		switch {
		case entries-last > policy.SliceWork:
			t.Errorf("slice %d has %d entries more", n, entries-last)
		case entries < blocks && rules > 0:
			t.Errorf("slice %d has %d rules for a set with %d of %d entries", n, rules, entries, blocks)
		case n > 100:
			t.Fatal("the slices don't end")
		}
		last, done = entries, rules
	}
	if last != blocks || done == 0 {
		t.Errorf("in the end the set has %d of %d entries and %d rules", last, blocks, done)
	}
}

// TestSetsOfOthersComeInPieces: the policies of two namespaces need the same set, and the first namespace makes it.
// The first namespace's policies are deleted while the second namespace's rules still wait for more sets. Even then,
// no slice (a limited piece of work) has to make the whole set again.
func TestSetsOfOthersComeInPieces(t *testing.T) {
	e, all := city(1000)
	for _, p := range all.Pods {
		p[0].Ports = []policy.NamedPort{{Name: "http", Proto: ruleset.TCP, Number: 80}}
	}
	e.Apply(all)
	egress := func(ns int, name string, rules ...networkingv1.NetworkPolicyEgressRule) *networkingv1.NetworkPolicy {
		np := cityPolicy(ns, 0)
		np.Name, np.Spec.PodSelector, np.Spec.Ingress = name, metav1.LabelSelector{}, nil
		np.Spec.PolicyTypes, np.Spec.Egress = []networkingv1.PolicyType{"Egress"}, rules
		return np
	}
	small := networkingv1.NetworkPolicyEgressRule{}
	// The rules come in groups, and each group is at least as large as all groups before it together. So after these 10
	// rules, a rule waits until 10 rules are ready, or until all rules are ready.
	for i := range 10 {
		app := map[string]string{"app": fmt.Sprint("a", i)}
		small.To = append(small.To, networkingv1.NetworkPolicyPeer{PodSelector: &metav1.LabelSelector{MatchLabels: app}})
	}
	e.Apply(policies(egress(1, "few", small), egress(2, "few", small)))
	e.Ruleset()
	port := intstr.FromString("http")
	named := []networkingv1.NetworkPolicyPort{{Port: &port}}
	many := func(n int) networkingv1.NetworkPolicyEgressRule {
		return networkingv1.NetworkPolicyEgressRule{To: manySets(1, n).Spec.Ingress[0].From}
	}
	both := networkingv1.NetworkPolicyEgressRule{To: manySets(2, 1).Spec.Ingress[0].From, Ports: named}
	e.Apply(policies(egress(1, "many", networkingv1.NetworkPolicyEgressRule{Ports: named}, many(6)),
		egress(2, "many", both, many(8))))
	last, most := 0, 0
	for n := 0; e.Changed(); n++ {
		now := 0
		for _, s := range e.SliceOf(policy.SliceWork).Sets {
			if s.Kind == ruleset.AddressPorts {
				now = s.Entries.Len()
			}
		}
		if now-last > policy.SliceWork {
			t.Errorf("slice %d has %d entries more", n, now-last)
		}
		last, most = now, max(most, now)
		switch n {
		case 5: // the first namespace has made the set; its work for "more" lets the second namespace come first
			e.Apply(policies(egress(1, "more", many(30))))
		case 10: // the second namespace has also made the selector set that its rule (the variable both) needs
			gone := policy.NewDelta()
			for _, name := range []string{"many", "more"} {
				gone.Policies[policy.Name{Namespace: "ns1", Name: name}] = nil
			}
			e.Apply(gone)
		case 200:
			t.Fatal("the slices don't end")
		}
	}
	if last != most || most < 2*policy.SliceWork {
		t.Errorf("in the end the set has %d of %d entries", last, most)
	}
	for _, wrong := range e.Unsound() {
		t.Error(wrong)
	}
}

// TestSmallWaitsForNoLargeSet: a policy that denies everything is added while large sets of other tenants are
// incomplete. The ruleset that Engine.Small returns has this policy. Engine.Small adds nothing to the large sets.
func TestSmallWaitsForNoLargeSet(t *testing.T) {
	for name, list := range hostile {
		e, all := city(2000)
		e.Apply(all)
		e.Ruleset()
		e.Apply(policies(list()...))
		for u := e.NextUnparsed(); u != nil; u = e.NextUnparsed() {
			u.Parse()
			e.TakeParsed(u)
		}
		for n := 0; e.HasSlice() && n < 20; n++ {
			was := made(e.SliceOf(policy.SliceWork))
			if !e.HasSlice() {
				break
			}
			deny := cityPolicy(18, 0)
			deny.Name, deny.Spec.Ingress, deny.Spec.PodSelector = fmt.Sprint("deny", n), nil, metav1.LabelSelector{}
			uncounted := e.Uncounted()
			e.Apply(policies(deny))
			r := e.Small()
			if counted := uncounted - e.Uncounted(); counted > 0 {
				t.Errorf("%s: %d sets are counted for the denial after slice %d", name, counted, n)
			}
			if !denied(r, "ns18/"+deny.Name) {
				t.Fatalf("%s: the ruleset after slice %d lacks a denial that came before it", name, n)
			}
			if now := made(r); now-was > 2 { // the denial itself adds entries to class sets
				t.Errorf("%s: %d entries come with the denial after slice %d", name, now-was, n)
			}
			if !e.HasSlice() {
				t.Errorf("%s: after the denial, nothing is left of the large sets", name)
			}
		}
	}
}

func made(r ruleset.Ruleset) (entries int) {
	for _, s := range r.Sets {
		entries += s.Entries.Len()
	}
	return entries
}

// TestSlicesAreShort: one slice (a limited piece of work) looks at few addresses of a large set. When the node's
// capacity is divided, one slice decides on few demands (rules with their sets).
func TestSlicesAreShort(t *testing.T) {
	for name, policies := range map[string]*policy.Delta{
		"a large set": policies(hostilePolicy(1, 0, 1, func(int) networkingv1.NetworkPolicyPeer {
			return networkingv1.NetworkPolicyPeer{NamespaceSelector: &metav1.LabelSelector{}}
		})),
		"many demands": policies(hostilePolicies(17, 4, 1000, equals)...),
	} {
		e, all := city(10 * policy.LooksPerWork * policy.SliceWork)
		e.Apply(all)
		e.Ruleset()
		e.Apply(policies)
		for u := e.NextUnparsed(); u != nil; u = e.NextUnparsed() {
			u.Parse()
			e.TakeParsed(u)
		}
		e.SliceOf(0)
		addresses, demands, steps := 0, 0, 0
		for n := 0; e.HasSlice(); n++ {
			if n > 10_000 {
				t.Fatalf("%s: the slices don't end", name)
			}
			a, d := e.Undone()
			e.SliceOf(policy.SliceWork)
			nowA, nowD := e.Undone()
			addresses, demands = max(addresses, a-nowA), max(demands, d-nowD)
			if a+d > 0 {
				steps++
			}
		}
		if addresses > policy.LooksPerWork*policy.SliceWork || demands > policy.DividedPerWork*policy.SliceWork {
			t.Errorf("%s: a slice looks at %d addresses, and decides on %d demands", name, addresses, demands)
		}
		if steps < 5 {
			t.Errorf("%s takes only %d slices", name, steps)
		}
		whole, all := city(10 * policy.LooksPerWork * policy.SliceWork)
		whole.Apply(all)
		whole.Apply(policies)
		if !sameSets(e.Ruleset(), whole.Ruleset()) {
			t.Errorf("%s: in slices, other sets are made than at once", name)
		}
	}
}

func sameSets(a, b ruleset.Ruleset) bool {
	return slices.EqualFunc(a.Sets, b.Sets, func(a, b ruleset.Set) bool {
		return a.Name == b.Name && a.Entries.Equal(b.Entries)
	})
}

// TestRulesComeInGroups: the rules of a large policy come in few groups, because each group rewrites a chain.
func TestRulesComeInGroups(t *testing.T) {
	e, all := city(500)
	e.Apply(all)
	e.Ruleset()
	e.Apply(policies(manySets(1, 100)))
	groups, slices, before := 0, 0, 0
	for ; e.Changed(); slices++ {
		if n := ruled(e.SliceOf(policy.SliceWork), "ns1/hostile0"); n != before {
			groups, before = groups+1, n
		}
	}
	if before != 100 || groups > 8 || slices < 100 {
		t.Errorf("%d rules come in %d groups, in %d slices", before, groups, slices)
	}
}

// TestParsedPoliciesComeInGroups: while many large policies of a namespace are parsed one by one, the namespace is
// compiled only a few times.
func TestParsedPoliciesComeInGroups(t *testing.T) {
	const many = 64
	e, all := city(200)
	e.Apply(all)
	e.Ruleset()
	e.Apply(policies(hostilePolicies(1, many, 70, equals)...))
	var last ruleset.Ruleset
	slices := func() (any bool) {
		for ; e.HasSlice(); any = true {
			last = e.Slice(nil)
		}
		return any
	}
	slices()
	groups := 0
	for u := e.NextUnparsed(); u != nil; u = e.NextUnparsed() {
		u.Parse()
		if e.TakeParsed(u); slices() {
			groups++
		}
	}
	rules := 0
	for i := range many {
		rules += ruled(last, fmt.Sprint("ns0/hostile", i))
	}
	if groups < 2 || groups > 10 || rules != many*70 {
		t.Errorf("%d policies come in %d groups, and have %d rules", many, groups, rules)
	}
}

// TestLargeSelectorsAreParsedLater: a policy with a large selector isn't parsed at once, even if it has only one
// peer.
func TestLargeSelectorsAreParsedLater(t *testing.T) {
	const many = 2000
	labels, values := map[string]string{}, []string{}
	var expressions []metav1.LabelSelectorRequirement
	for i := range many {
		key := fmt.Sprint("x", i)
		labels[key], values = "y", append(values, key)
		exists := metav1.LabelSelectorRequirement{Key: key, Operator: metav1.LabelSelectorOpExists}
		expressions = append(expressions, exists)
	}
	for name, s := range map[string]*metav1.LabelSelector{
		"labels": {MatchLabels: labels}, "expressions": {MatchExpressions: expressions},
		"values": {MatchExpressions: []metav1.LabelSelectorRequirement{
			{Key: "x", Operator: metav1.LabelSelectorOpNotIn, Values: values},
		}},
	} {
		np := hostilePolicy(0, 0, 1, equals)
		np.Spec.Ingress[0].From[0].PodSelector = s
		e := policy.NewEngine("n0")
		if e.Apply(policies(np)); e.NextUnparsed() == nil {
			t.Errorf("%d %s are parsed at once", many, name)
		}
	}
}

// TestChangingPolicyHoldsUpNoOther: one tenant's large policy changes again and again, each time before it is parsed.
// Nevertheless, a larger policy of another tenant is parsed.
func TestChangingPolicyHoldsUpNoOther(t *testing.T) {
	e, all := city(300)
	e.Apply(all)
	e.Ruleset()
	e.Apply(policies(hostilePolicy(0, 0, 900, equals)))
	for i := 0; ; i++ {
		e.Apply(policies(hostilePolicy(1, 0, 300, equals)))
		next := e.NextUnparsed()
		next.Parse()
		e.Apply(policies(hostilePolicy(1, 0, 300, equals)))
		for e.HasSlice() {
			e.Slice(nil)
		}
		if e.TakeParsed(next); e.HasSlice() { // the engine takes only the policy that hasn't changed meanwhile
			return
		}
		if i > 20 {
			t.Fatal("the policy that doesn't change isn't parsed")
		}
	}
}

// TestAbandonedSetsAreForgotten: a set exceeds the limit of entries while it is made in pieces. The engine then keeps
// none of the set's entries.
func TestAbandonedSetsAreForgotten(t *testing.T) {
	e, all := city(300)
	e.Apply(all)
	e.Ruleset()
	e.SetLimits(policy.LimitsOf(1<<15, 1<<13, 1<<20, 7))
	peers := func(first, n int) *policy.Delta {
		d := policy.NewDelta()
		for i := range n {
			p := cityPod(2, 50+first+i, 2)
			p.Name, p.Labels = fmt.Sprint("peer", first+i), map[string]string{"x": "0"}
			d.Pods[policy.Name{Namespace: p.Namespace, Name: p.Name}] = []*policy.Pod{p}
		}
		return d
	}
	e.Apply(peers(0, 5))
	e.Apply(policies(hostilePolicy(0, 0, 1, equals)))
	begun := func() (n int) {
		for _, s := range e.SliceOf(1).Sets {
			if strings.HasPrefix(s.Name, "weir-sel-") && s.Entries.Len() < 5 {
				n = max(n, s.Entries.Len())
			}
		}
		return n
	}
	for i := 0; begun() < 2; i++ {
		if i > 100 {
			t.Fatal("the set doesn't come in pieces")
		}
	}
	e.Apply(peers(5, 5))
	e.Ruleset()
	for _, wrong := range e.Unsound() {
		t.Error(wrong)
	}
}

func denied(r ruleset.Ruleset, name string) bool {
	for _, c := range r.Classes {
		if strings.Contains(strings.Join(c.Policies, " "), name) && len(c.Pods) > 0 {
			return true
		}
	}
	return false
}
