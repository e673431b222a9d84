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

// filter is a packet filter to measure. build writes the filter's rules on a node that already has the rules of
// anyNode: they accept established connections, and masquerade. guard is true if the node also gets weir's guard,
// which checks frames from pods' ports.
type filter struct {
	name  string
	guard bool
	build func(t *testing.T, n *packetNode, flavour iptables.Flavour)
}

func weir(name string, w *workload) filter {
	return filter{"weir, " + name, true, func(t *testing.T, n *packetNode, flavour iptables.Flavour) {
		t.Helper()
		n.enforce(t, n.backend(t, false, flavour), w.state())
	}}
}

func native(name string, w *workload) filter {
	return filter{"nftables, " + name, true, func(t *testing.T, n *packetNode, flavour iptables.Flavour) {
		t.Helper()
		n.enforce(t, n.backend(t, true, flavour), w.state())
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
	} { // without the guard, to measure the rules alone
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
		all = append(all, flatList(o.name, o.w), chainsPerPod(o.name, o.w))
	}
	return append(all, guards()...)
}

// TestPackets compares packet filters by the processor time of connections and packets. Each filter takes turns with a
// bare node, which only accepts established connections and masquerades (anyNode). The result is the ratio of the
// filter's time to the bare node's time.
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
	wanted := regexp.MustCompile(*only)
	base := newBareNode(t, flavour, string(flavour)+"-base", false)
	var all []contestant
	for i, f := range filters() {
		if wanted.MatchString(string(flavour) + ": " + f.name) {
			all = append(all, newContestant(t, flavour, fmt.Sprintf("%s-%d", flavour, i), f))
		}
	}
	kinds := slices.DeleteFunc([]traffic{connections, unanswered, answered, stream}, func(k traffic) bool {
		return !regexp.MustCompile(*kinds).MatchString(k.name)
	})
	race(t, base, all, kinds)
	for _, k := range kinds {
		for _, c := range all {
			text, pair := "not measured", c.took[k.name]
			if len(pair[1]) > 0 {
				text = fmt.Sprintf("%s, %.2f us", estimate.Text(estimate.Ratios(pair[0], pair[1]), 3),
					float64(estimate.Median(pair[1]).Nanoseconds())/1000)
			}
			fmt.Printf("packets %s, %s, %s: %s\n", flavour, k.name, c.name, text+c.lacks(k))
		}
	}
}

type contestant struct {
	filter
	node *packetNode
	// took has, for each kind of traffic, the times of the bare node and of the node with the filter. A round that
	// could not be measured adds no times.
	took map[string]*[2][]time.Duration
	// failed has, for each kind of traffic, the errors of the rounds that could not be measured.
	failed map[string][]error
}

func (c contestant) lacks(k traffic) string {
	all := c.failed[k.name]
	if len(all) == 0 {
		return ""
	}
	return fmt.Sprintf(" (%d rounds could not be measured: %v)", len(all), all[len(all)-1])
}

func newContestant(t *testing.T, flavour iptables.Flavour, name string, f filter) contestant {
	t.Helper()
	n := newBareNode(t, flavour, name, f.guard)
	f.build(t, n, flavour)
	return contestant{f, n, map[string]*[2][]time.Duration{}, map[string][]error{}}
}

// race measures each filter, in turns with the bare node (without a filter).
func race(t *testing.T, bare *packetNode, all []contestant, kinds []traffic) {
	t.Helper()
	// Client, server and queue block their threads in system calls that Go's scheduler doesn't know. So the scheduler
	// needs more threads.
	defer runtime.GOMAXPROCS(runtime.GOMAXPROCS(8))
	for round := range *rounds {
		for _, c := range all {
			for _, k := range kinds {
				if c.took[k.name] == nil {
					c.took[k.name] = &[2][]time.Duration{}
				}
				took, err := measureBoth(t, [2]*packetNode{bare, c.node}, k, round)
				for i := range took {
					if err == nil {
						c.took[k.name][i] = append(c.took[k.name][i], took[i])
					}
				}
				if err != nil {
					c.failed[k.name] = append(c.failed[k.name], err)
				}
			}
		}
	}
}

const triesOfARound = 3

// measureBoth measures one node after the other. In every other round, the second node comes first. If a measurement
// fails, measureBoth measures both nodes again, at most triesOfARound times in all.
func measureBoth(t *testing.T, pair [2]*packetNode, k traffic, round int) (took [2]time.Duration, err error) {
	t.Helper()
	for range triesOfARound {
		for i := range pair {
			i = (i + round) % 2
			if took[i], err = pair[i].measure(t, k, *slice); err != nil {
				break
			}
		}
		if err == nil {
			break
		}
	}
	return took, err
}
