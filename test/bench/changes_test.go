//go:build bench

package bench_test

import (
	"fmt"
	"net/netip"
	"strings"
	"testing"
	"time"

	networkingv1 "k8s.io/api/networking/v1"

	"github.com/weir-net/weir/netfilter"
	"github.com/weir-net/weir/netfilter/iptables"
	"github.com/weir-net/weir/policy"
	"github.com/weir-net/weir/policy/ruleset"
	"github.com/weir-net/weir/test/estimate"
	"github.com/weir-net/weir/test/nodetest"
)

// These are the two changes that TestChanges measures. policyChange: a new policy allows connections from the pod
// newcomer to the server. podChange: the pod newcomer becomes a peer of the last policy.
const (
	policyChange = "a policy"
	podChange    = "a pod elsewhere"
)

var (
	newcomer = netip.AddrFrom4([4]byte{10, 90, 0, 1})
	more     = allow{pods: "server", peers: "newcomer", ports: web}
)

// changer makes one of the two changes on a node if begins is true, and undoes this change if begins is false. It
// returns when the kernel is up to date. The parameter what is policyChange or podChange.
type changer func(what string, begins bool)

// TestChanges prints how long a change takes, from the changed object until the kernel has the change, on nodes with
// more and more policies. It compares weir's backends with the ways in which other programs arrange their rules. The
// times don't include the work of the API server and the agent.
func TestChanges(t *testing.T) {
	if !nodetest.Isolated(t) {
		return
	}
	f := iptables.Flavour(*flavour)
	layouts := []struct {
		name string
		make func(*testing.T, *packetNode, *workload, iptables.Flavour) changer
	}{
		{"iptables", byEngine(false)},
		{"nftables", byEngine(true)},
		{"flat list", byCommands},
		{"chains per pod", byTables},
	}
	all := shapes()
	changers := make([][]changer, len(all))
	for i, s := range all {
		for k, l := range layouts {
			changers[i] = append(changers[i], l.make(t, newBareNode(t, f, fmt.Sprintf("%d-%d", i, k), false), s.w, f))
		}
	}
	what := []string{policyChange, podChange}
	took := map[string][][]time.Duration{} // the durations of each kind of change and shape: one list for each layout
	for range *rounds {
		for i, s := range all {
			for _, w := range what {
				key := w + s.name
				if took[key] == nil {
					took[key] = make([][]time.Duration, len(layouts))
				}
				for k, change := range changers[i] {
					began := time.Now()
					change(w, true)
					change(w, false)
					took[key][k] = append(took[key][k], time.Since(began)/2)
				}
			}
		}
	}
	printTitles("change", "node", "iptables, ms", "nftables, ms", "flat list, ms", "chains per pod, ms",
		"nftables / iptables")
	for _, w := range what {
		for _, s := range all {
			row := []string{w, s.name}
			for _, times := range took[w+s.name] {
				row = append(row, fmt.Sprintf("%.2f", estimate.Median(times).Seconds()*1000))
			}
			printRow(append(row, ratio(estimate.Ratios(took[w+s.name][1], took[w+s.name][0])))...)
		}
	}
}

// byEngine is for weir's own rules. It returns a function that returns a changer, which makes and undoes changes. As
// in the agent, the engine computes the rules from the changed objects, and a backend writes them. If native is true,
// the backend is nftables, otherwise iptables.
func byEngine(native bool) func(*testing.T, *packetNode, *workload, iptables.Flavour) changer {
	return func(t *testing.T, n *packetNode, w *workload, flavour iptables.Flavour) changer {
		b := n.backend(t, native, flavour)
		t.Cleanup(b.Close)
		e, merger, s := policy.NewEngine(""), ruleset.NewMerger(ruleset.UsualBounds()), w.state()
		apply := func(d *policy.Delta) {
			e.Apply(d)
			want := merger.Merge(e.Ruleset(), nil)
			nodetest.In(t, n.path, func() error {
				_, err := b.Apply(t.Context(), want, netfilter.Trust)
				return err
			})
		}
		e.SetEndpoints(s.Endpoints)
		apply(policy.Difference(policy.Objects{}, s.Objects))
		apply(podWith(more.peers))
		return func(what string, begins bool) {
			switch {
			case what == podChange && begins:
				apply(podWith("client"))
			case what == podChange:
				apply(podWith(more.peers))
			default:
				d, np := policy.NewDelta(), more.networkPolicy("more")
				name := policy.Name{Namespace: namespace, Name: np.Name}
				if d.Policies[name] = nil; begins {
					d.Policies[name] = []*networkingv1.NetworkPolicy{np}
				}
				apply(d)
			}
		}
	}
}

func podWith(label string) *policy.Delta {
	d := policy.NewDelta()
	d.Pods[policy.Name{Namespace: namespace, Name: "newcomer"}] = []*policy.Pod{{
		Namespace: namespace, Name: "newcomer", Labels: map[string]string{label: ""}, Addresses: []netip.Addr{newcomer},
	}}
	return d
}

// byCommands changes a flat list of rules. It starts a program for each rule, set and entry, as weave-npc does.
func byCommands(t *testing.T, n *packetNode, w *workload, flavour iptables.Flavour) changer {
	n.write(t, flavour, w.flat())
	return func(what string, begins bool) {
		if what == podChange {
			n.run(t, "", fmt.Sprintf("ipset %s client %s", verb(begins, "add", "del"), newcomer))
			return
		}
		if begins {
			n.run(t, "", "ipset create newcomer hash:ip")
			n.run(t, "", fmt.Sprint("ipset add newcomer ", newcomer))
		}
		for _, m := range more.matches(0) {
			n.run(t, "", fmt.Sprintf("iptables-%s -%s NPC-INGRESS -m set --match-set server dst %s -j ACCEPT", flavour,
				verb(begins, "A", "D"), m))
		}
		if !begins {
			n.run(t, "", "ipset destroy newcomer")
		}
	}
}

// byTables restores all sets, reads the table filter, and restores the whole table. kube-router does this for each
// change.
func byTables(t *testing.T, n *packetNode, w *workload, flavour iptables.Flavour) changer {
	without, with := *w, *w
	with.allows = append([]allow{more}, w.allows...)
	without.groups, with.groups = map[string][]netip.Addr{}, map[string][]netip.Addr{more.peers: {newcomer}}
	for group, addrs := range w.groups {
		without.groups[group], with.groups[group] = addrs, addrs
	}
	program := "iptables-" + string(flavour)
	restore := func(x text, member string) {
		n.run(t, x.sets+member, "ipset restore -exist")
		n.run(t, "", program+"-save -t filter")
		n.run(t, strings.Replace(x.rules, "-I FORWARD 1 ", bareRule+"-I FORWARD 1 ", 1), program+"-restore")
	}
	before, after := without.podChains(), with.podChains()
	restore(before, "")
	return func(what string, begins bool) {
		switch {
		case what == podChange:
			restore(before, fmt.Sprintf("%s client %s\n", verb(begins, "add", "del"), newcomer))
		case begins:
			restore(after, "")
		default:
			restore(before, "")
			n.run(t, "", "ipset destroy "+more.peers)
		}
	}
}

func verb(begins bool, one, other string) string {
	if begins {
		return one
	}
	return other
}
