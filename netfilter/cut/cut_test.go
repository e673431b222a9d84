package cut

import (
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"golang.org/x/sys/unix"

	"github.com/weir-net/weir/conf"
	"github.com/weir-net/weir/netfilter/conntrack"
	"github.com/weir-net/weir/policy/ruleset"
	"github.com/weir-net/weir/test/nodetest"
)

const (
	synSent     = 1
	established = 3
	closeWait   = 5
	lastAck     = 6
	timeWait    = 7
	closed      = 8
)

func ports(allowed ...uint16) Evaluator {
	var rules []ruleset.Rule
	for _, p := range allowed {
		rules = append(rules, ruleset.Rule{
			Dst: netip.MustParsePrefix("10.88.0.2/32"), Ports: []ruleset.PortRange{{First: p, Last: p}},
			Action: ruleset.Return,
		})
	}
	r := ruleset.Ruleset{Chains: []ruleset.Chain{{
		Family: conf.IPv4, Name: "forward", Hook: ruleset.CheckForwarded,
		Rules: append(rules, ruleset.Rule{Action: ruleset.Drop}),
	}}}
	links := map[netip.Addr]ruleset.Link{netip.MustParseAddr("10.88.0.2"): {In: conf.Bridge}}
	return NewEvaluator(r, links, []netip.Addr{netip.MustParseAddr("192.0.2.2")})
}

func entries(t *testing.T) (list []string) {
	t.Helper()
	for c, err := range conntrack.All() {
		if err != nil {
			t.Fatal(err)
		}
		e := fmt.Sprint(c.Port)
		if c.Cut {
			e += " cut"
		}
		list = append(list, e)
	}
	slices.Sort(list)
	return list
}

// TestWalk: Walk cuts connections that the rules no longer allow, and restores them when the rules allow them again. If
// a denied TCP connection has ended, Walk deletes its entry.
func TestWalk(t *testing.T) {
	if !nodetest.Isolated(t) {
		return
	}
	// This rule uses labels, so that new entries have room for them.
	nodetest.Run(t, "iptables", "-t", "raw", "-A", "PREROUTING", "-m", "connlabel", "--label", "1")
	const inUse = nodetest.Answered | nodetest.Assured
	pod, client := netip.MustParseAddr("10.88.0.2"), netip.MustParseAddr("10.88.1.5")
	table := []nodetest.Entry{
		{Proto: unix.IPPROTO_TCP, State: established, Status: inUse},
		{Proto: unix.IPPROTO_TCP, State: closeWait, Status: inUse},
		{Proto: unix.IPPROTO_TCP, State: lastAck, Status: inUse},
		{Proto: unix.IPPROTO_TCP, State: timeWait, Status: inUse},
		{Proto: unix.IPPROTO_TCP, State: closed, Status: inUse},
		{Proto: unix.IPPROTO_TCP, State: synSent},
		{Proto: unix.IPPROTO_UDP, Status: nodetest.Answered},
		{Proto: unix.IPPROTO_UDP, Status: inUse},
		// Walk must leave this connection alone: the node itself has opened it.
		{Proto: unix.IPPROTO_TCP, State: timeWait, Status: inUse, Src: netip.MustParseAddr("192.0.2.2")},
		// Walk must leave this connection alone: neither of its addresses belongs to a pod of this node.
		{Proto: unix.IPPROTO_TCP, State: timeWait, Status: inUse, Dst: netip.MustParseAddr("10.88.1.6")},
		{Proto: unix.IPPROTO_UDP, Status: inUse},
		{Proto: unix.IPPROTO_UDP, Status: inUse},
		{Proto: unix.IPPROTO_UDP, Status: inUse},
	}
	nodetest.Add(t, len(table), func(i int) nodetest.Entry {
		e := table[i]
		e.Sport, e.Port = 4000, uint16(1001+i)
		if !e.Src.IsValid() {
			e.Src = client
		}
		if !e.Dst.IsValid() {
			e.Dst = pod
		}
		return e
	})
	all := []uint16{1001, 1002, 1003, 1004, 1005, 1006, 1007, 1008, 1011, 1012, 1013}
	var known []conntrack.Edit
	for _, tc := range []struct {
		name       string
		by, newest []uint16
		want       Result // Examples are compared only if Walk restores connections
		examples   int
		entries    string
		restore    bool // true if the test calls Restore instead of Walk
	}{
		{
			"everything is allowed", all, all,
			Result{},
			0,
			"1001, 1002, 1003, 1004, 1005, 1006, 1007, 1008, 1009, 1010, 1011, 1012, 1013",
			false,
		},
		{
			"a newer change allows everything", nil, all,
			Result{},
			0,
			"1001, 1002, 1003, 1004, 1005, 1006, 1007, 1008, 1009, 1010, 1011, 1012, 1013",
			false,
		},
		{
			"nothing is allowed", nil, nil,
			Result{Cut: 6, Standing: 8},
			maxExamples,
			"1001 cut, 1002 cut, 1006 cut, 1007 cut, 1008 cut, 1009, 1010, 1011 cut, 1012 cut, 1013 cut",
			false,
		},
		{
			"two are allowed again, one of which nobody uses",
			[]uint16{1002, 1007},
			[]uint16{1002, 1007},
			Result{Restored: 1, Standing: 6},
			1,
			"1001 cut, 1002, 1006 cut, 1007, 1008 cut, 1009, 1010, 1011 cut, 1012 cut, 1013 cut",
			false,
		},
		{
			"known connections are allowed again, and one is forbidden",
			nil,
			[]uint16{1001, 1007, 1011},
			Result{Restored: 2, Standing: 4},
			2,
			"1001, 1002, 1006 cut, 1007, 1008 cut, 1009, 1010, 1011, 1012 cut, 1013 cut",
			true,
		},
		{
			"none of the known is allowed",
			nil,
			nil,
			Result{Standing: 4},
			0,
			"1001, 1002, 1006 cut, 1007, 1008 cut, 1009, 1010, 1011, 1012 cut, 1013 cut",
			true,
		},
		{
			"the known are allowed again",
			nil,
			[]uint16{1006, 1012},
			Result{Restored: 1, Standing: 2},
			1,
			"1001, 1002, 1006, 1007, 1008 cut, 1009, 1010, 1011, 1012, 1013 cut",
			true,
		},
	} {
		newest := ports(tc.newest...)
		var got Result
		var err error
		if tc.restore {
			got, err = Restore(known, func() Evaluator { return newest })
		} else {
			got, err = Walk(ports(tc.by...), func() Evaluator { return newest })
		}
		if err != nil {
			t.Fatal(err)
		}
		if known, got.Known = got.Known, nil; len(known) != got.Standing {
			t.Errorf("%s: %d cut connections are known, and %d stand", tc.name, len(known), got.Standing)
		}
		if len(got.Examples) != tc.examples {
			t.Errorf("%s: examples %v, want %d", tc.name, got.Examples, tc.examples)
		}
		if tc.want.Restored > 0 && !tc.restore {
			tc.want.Examples = []Example{{client, pod, ruleset.TCP, 1002, true}}
		} else {
			got.Examples = nil
		}
		if diff := cmp.Diff(tc.want, got, cmp.Comparer(func(a, b netip.Addr) bool { return a == b })); diff != "" {
			t.Errorf("%s: %s", tc.name, diff)
		}
		if list := strings.Join(entries(t), ", "); list != tc.entries {
			t.Errorf("%s: the table has %s, want %s", tc.name, list, tc.entries)
		}
	}
}

// TestWalkFails: if connections can't be cut, the error names some of them and counts the rest.
func TestWalkFails(t *testing.T) {
	if !nodetest.Isolated(t) {
		return
	}
	for port := range 7 { // entries without room for a label, because no rule uses labels
		nodetest.Run(t, "conntrack", "-I", "-t", "600", "-p", "udp", "-s", "10.88.1.5", "-d", "10.88.0.2", "--sport", "4000",
			"--dport", fmt.Sprint(1001+port))
	}
	none := ports()
	_, err := Walk(none, func() Evaluator { return none })
	if err == nil || strings.Count(err.Error(), "label the connection from 10.88.1.5 to 10.88.0.2 port") != maxErrors ||
		!strings.Contains(err.Error(), "4 more connections can't be changed") {
		t.Errorf("the error is %v", err)
	}
}
