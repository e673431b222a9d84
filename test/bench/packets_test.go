//go:build bench

package bench_test

import (
	"flag"
	"fmt"
	"regexp"
	"runtime"
	"slices"
	"testing"
	"time"

	"github.com/weir-net/weir/netfilter/iptables"
	"github.com/weir-net/weir/test/estimate"
	"github.com/weir-net/weir/test/nodetest"
)

var (
	only  = flag.String("only", "", "regular expression: measure only the packet filters whose names match")
	kinds = flag.String("kinds", "", "regular expression: measure only the kinds of traffic whose names match")
	slice = flag.Duration("slice", 20*time.Millisecond, "processor time of one measurement")
)

// build writes the filter's rules on a node that already has anyNode's rules. guard is true if the node also gets
// weir's guard.
type filter struct {
	name  string
	guard bool
	build func(t *testing.T, n *packetNode, flavour iptables.Flavour)
}

func weir(name string, w *workload) filter {
	return filter{"weir, " + name, true, func(t *testing.T, n *packetNode, flavour iptables.Flavour) {
		t.Helper()
		n.enforce(t, flavour, w.state())
	}}
}

func native(name string, w *workload) filter {
	return filter{"nftables, " + name, true, func(t *testing.T, n *packetNode, _ iptables.Flavour) {
		t.Helper()
		n.enforceNative(t, w.state())
	}}
}

func filters() []filter {
	all := []filter{
		{"no engine", false, func(*testing.T, *packetNode, iptables.Flavour) {}},
		weir("10 pods, no policy", spread(0, 10)),
		weir("250 pods, no policy", spread(0, 250)),
		weir("10 pods, a class each, ingress", classes(10, true, false)),
		weir("250 pods, a class each, ingress", classes(250, true, false)),
		weir("250 pods, all in one class, ingress", oneClass(250)),
		weir("250 pods, a class each, egress", classes(250, false, true)),
		weir("250 pods, a class each, both directions", classes(250, true, true)),
		weir("250 pods, a class each but for the two", beside(250)),
		weir("250 pods, 1,000 policies spread", spread(1000, 250)),
		weir("250 pods, 10,000 policies spread", spread(10_000, 250)),
		weir("100 selectors on one port of a pod", selectors(100)),
		weir("1,000 selectors on one port of a pod", selectors(1000)),
		weir("1,000 ports and selectors on a pod", ports(1000)),
		weir("1,000 mixed policies on a pod", mixed(1000)),
		userSpace(spread(0, 250)),
		native("250 pods, no policy", spread(0, 250)),
		native("250 pods, a class each, both directions", classes(250, true, true)),
		native("250 pods, 10,000 policies spread", spread(10_000, 250)),
		native("1,000 selectors on one port of a pod", selectors(1000)),
		native("1,000 ports and selectors on a pod", ports(1000)),
		native("1,000 mixed policies on a pod", mixed(1000)),
	}
	for _, f := range []filter{
		weir("250 pods, no policy", spread(0, 250)),
		weir("250 pods, a class each, ingress", classes(250, true, false)),
		weir("250 pods, a class each, both directions", classes(250, true, true)),
		weir("1,000 selectors on one port of a pod", selectors(1000)),
		weir("1,000 ports and selectors on a pod", ports(1000)),
		weir("1,000 mixed policies on a pod", mixed(1000)),
		native("250 pods, no policy", spread(0, 250)),
		native("250 pods, a class each, both directions", classes(250, true, true)),
		native("1,000 mixed policies on a pod", mixed(1000)),
	} { // what the rules take without the guard in the bridge
		f.name, f.guard = f.name+", without guard", false
		all = append(all, f)
	}
	for _, o := range []struct {
		name string
		w    *workload
	}{
		{"250 pods, no policy", spread(0, 250)},
		{"250 pods, a class each, ingress", classes(250, true, false)},
		{"250 pods, 10,000 policies spread", spread(10_000, 250)},
		{"1,000 selectors on one port of a pod", selectors(1000)},
	} {
		all = append(all, others(o.name, o.w)...)
	}
	return append(all, guards()...)
}

// TestPackets compares packet filters by the processor time of connections and packets. Each filter is measured in
// turns with a node that has only anyNode's rules. The result is the ratio of the two times.
func TestPackets(t *testing.T) {
	if !nodetest.Isolated(t) {
		return
	}
	for _, flavour := range []iptables.Flavour{iptables.Legacy, iptables.NFT} {
		comparePackets(t, flavour)
	}
}

func comparePackets(t *testing.T, flavour iptables.Flavour) {
	t.Helper()
	// Client, server and queue block their threads without the knowledge of Go's scheduler, so it may use more
	// threads.
	defer runtime.GOMAXPROCS(runtime.GOMAXPROCS(8))
	base := newPacketNode(t, string(flavour)+"-base", false)
	base.write(t, flavour, anyNode())
	wanted := regexp.MustCompile(*only)
	type contestant struct {
		filter
		node *packetNode
	}
	var all []contestant
	for i, f := range filters() {
		if !wanted.MatchString(string(flavour) + ": " + f.name) {
			continue
		}
		n := newPacketNode(t, fmt.Sprintf("%s-%d", flavour, i), f.guard)
		n.write(t, flavour, anyNode())
		f.build(t, n, flavour)
		all = append(all, contestant{f, n})
	}
	kinds := slices.DeleteFunc([]traffic{connections, unanswered, answered, stream}, func(k traffic) bool {
		return !regexp.MustCompile(*kinds).MatchString(k.name)
	})
	took := map[string]*[2][]time.Duration{}
	for round := range *rounds {
		for _, c := range all {
			for _, k := range kinds {
				key := k.name + c.name
				if took[key] == nil {
					took[key] = &[2][]time.Duration{}
				}
				pair := [2]*packetNode{base, c.node}
				for i := range pair { // each of the two begins in every other round
					i = (i + round) % 2
					took[key][i] = append(took[key][i], pair[i].measure(t, k, *slice))
				}
			}
		}
	}
	for _, k := range kinds {
		for _, c := range all {
			pair := took[k.name+c.name]
			fmt.Printf("packets %s, %s, %s: %s, %.2f us\n", flavour, k.name, c.name,
				estimate.Text(estimate.Ratios(pair[0], pair[1]), 3), float64(estimate.Median(pair[1]).Nanoseconds())/1000)
		}
	}
}
