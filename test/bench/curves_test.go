//go:build bench

package bench_test

import (
	"fmt"
	"strings"
	"testing"

	"github.com/weir-net/weir/netfilter/iptables"
	"github.com/weir-net/weir/test/estimate"
	"github.com/weir-net/weir/test/nodetest"
)

// shape is one point of a curve: a node with certain pods and policies.
type shape struct {
	name string
	w    *workload
}

// shapes returns nodes with more and more classes (groups of pods that the same policies isolate), and nodes with more
// and more policies on one pod. Client and server are pods too, so each node has at least two pods.
func shapes() (all []shape) {
	for _, n := range []int{1, 10, 50, 250} {
		all = append(all, shape{fmt.Sprintf("%d pods, %s", n+1, count(n, "class", "classes")), classes(n+1, true, true)})
	}
	all = append(all, shape{"250 pods, 1 class", oneClass(250)})
	for _, n := range []int{1, 10, 100, 1000} {
		all = append(all, shape{fmt.Sprintf("10 pods, %s on one", count(n, "policy", "policies")), selectors(n)})
	}
	return all
}

func count(n int, one, many string) string {
	if n == 1 {
		return "1 " + one
	}
	if n >= 1000 {
		return fmt.Sprintf("%d,%03d %s", n/1000, n%1000, many)
	}
	return fmt.Sprintf("%d %s", n, many)
}

// layout makes the rules for a node of any shape. It is a column of the printed table.
type layout struct {
	name string
	make func(name string, w *workload) filter
}

func layouts() []layout {
	return []layout{
		{"iptables", weir},
		{"nftables", native},
		{"flat list", flatList},
		{"chains per pod", chainsPerPod},
		{"user space", func(_ string, w *workload) filter { return userSpace(w) }},
	}
}

// TestCurves prints how much slower connections and packets become as a node gets more pods and policies. It compares
// weir's backends with the ways in which other programs arrange their rules.
func TestCurves(t *testing.T) {
	if !nodetest.Isolated(t) {
		return
	}
	f := iptables.Flavour(*flavour)
	bare := newBareNode(t, f, "base", false)
	var all []contestant
	for i, s := range shapes() {
		for k, l := range layouts() {
			all = append(all, newContestant(t, f, fmt.Sprintf("%d-%d", i, k), l.make(s.name, s.w)))
		}
	}
	kinds := []traffic{connections, unanswered, answered}
	race(t, bare, all, kinds)
	titles := []string{"traffic", "node", "bare node"}
	for _, l := range layouts() {
		titles = append(titles, l.name)
	}
	printTitles(titles...)
	for _, k := range kinds {
		rest := all
		for _, s := range shapes() {
			var row []string
			var took float64 // in µs, on the node without policies
			for _, c := range rest[:len(layouts())] {
				cell, pair := "not measured", c.took[k.name]
				if len(pair[0]) > 0 {
					took = float64(estimate.Median(pair[0]).Nanoseconds()) / 1000
					cell = ratio(estimate.Ratios(pair[0], pair[1]))
				}
				row = append(row, cell+c.lacks(k))
			}
			rest = rest[len(layouts()):]
			absolute := fmt.Sprintf("%.1f µs", took)
			switch {
			case took == 0:
				absolute = "not measured"
			case k.name == connections.name:
				absolute = count(int(1e6/took), "", "a second")
			}
			printRow(append([]string{k.name, s.name, absolute}, row...)...)
		}
	}
}

func printTitles(titles ...string) {
	printRow(titles...)
	printRow(strings.Split(strings.TrimSuffix(strings.Repeat("---,", len(titles)), ","), ",")...)
}

// printRow prints a row of a table in Markdown. By the first word, scripts/bench-curves finds the row in the output.
func printRow(cells ...string) { fmt.Printf("curves | %s |\n", strings.Join(cells, " | ")) }

func ratio(list []float64) string {
	text := fmt.Sprintf("%.2f", estimate.Median(list))
	if low, high, ok := estimate.Interval(list); ok {
		text += fmt.Sprintf(" (%.2f to %.2f)", low, high)
	}
	return text
}
