package nftables

import (
	"net/netip"
	"slices"
	"strings"
	"testing"

	"github.com/weir-net/weir/conf"
	"github.com/weir-net/weir/netfilter"
	"github.com/weir-net/weir/policy"
	"github.com/weir-net/weir/policy/policytest"
	"github.com/weir-net/weir/policy/ruleset"
	"github.com/weir-net/weir/test/nodetest"
)

// forward returns the rules of filter FORWARD as iptables-nft prints them, except those for chained pods.
func forward(t *testing.T, program string) []string {
	t.Helper()
	return slices.DeleteFunc(strings.Split(strings.TrimSpace(nodetest.Run(t, program, "-S", "FORWARD")), "\n"),
		func(l string) bool {
			return strings.HasPrefix(l, "-A FORWARD -s ") || strings.HasPrefix(l, "-A FORWARD -d ")
		})
}

const (
	acceptsIn  = `-A FORWARD -i weir0 -m comment --comment "` + netfilter.AcceptComment + `" -j ACCEPT`
	acceptsOut = `-A FORWARD -o weir0 -m comment --comment "` + netfilter.AcceptComment + `" -j ACCEPT`
)

// TestForwardAcceptsPods: in iptables-nft's chain FORWARD, weir's rules are before the rules that refuse everything.
// If there are no such rules, weir's rules are at the end. If the chain is missing, weir doesn't make it.
func TestForwardAcceptsPods(t *testing.T) {
	if !nodetest.Isolated(t) {
		return
	}
	d, want := dualStack(t)
	if all := nodetest.Run(t, "nft", "list", "tables"); strings.Contains(all, "filter") {
		t.Errorf("weir has made a table of iptables:\n%s", all)
	}
	for _, program := range []string{"iptables-nft", "ip6tables-nft"} {
		drop, reject := "-A FORWARD -p tcp -m tcp --dport 81 -j DROP", "-A FORWARD -p udp -j REJECT"
		for _, tc := range []struct {
			name     string
			commands []string
			want     []string
			repairs  bool
		}{
			{"drops by default", []string{"-P FORWARD DROP"}, []string{"-P FORWARD DROP", acceptsIn, acceptsOut}, false},
			{"nothing changes", nil, []string{"-P FORWARD DROP", acceptsIn, acceptsOut}, false},
			{"flushed", []string{"-F FORWARD"}, []string{"-P FORWARD DROP", acceptsIn, acceptsOut}, true},
			{
				"a rule behind",
				[]string{drop},
				[]string{"-P FORWARD DROP", drop, acceptsIn, acceptsOut},
				true,
			},
			{
				"refuses everything",
				[]string{
					reject, "-N no", "-A no -m limit --limit 5/min -j LOG", "-A no -p tcp -j REJECT", "-A no -j REJECT",
					"-A FORWARD -m conntrack --ctstate INVALID -j DROP", "-A FORWARD -m conntrack --ctstate NEW -j no",
				},
				[]string{
					"-P FORWARD DROP", drop, reject, "-A FORWARD -m conntrack --ctstate INVALID -j DROP", acceptsIn, acceptsOut,
					"-A FORWARD -m conntrack --ctstate NEW -j no",
				},
				true,
			},
			{
				"refuses by protocol",
				[]string{"-F FORWARD", drop, "-A FORWARD -p tcp -j REJECT", "-A FORWARD -j REJECT"},
				[]string{
					"-P FORWARD DROP", drop, acceptsIn, acceptsOut, "-A FORWARD -p tcp -j REJECT", "-A FORWARD -j REJECT",
				},
				true,
			},
			{
				"one is lost",
				[]string{"-D" + acceptsIn[2:]},
				[]string{
					"-P FORWARD DROP", drop, acceptsIn, acceptsOut, "-A FORWARD -p tcp -j REJECT", "-A FORWARD -j REJECT",
				},
				true,
			},
		} {
			for _, c := range tc.commands {
				nodetest.Run(t, "sh", "-c", program+" "+c)
			}
			r := mustApply(t, d, want, netfilter.All)
			got := forward(t, program)
			for i, l := range got { // iptables prints --reject-with even if the command had no such option
				l, _, _ = strings.Cut(l, " --reject-with")
				got[i] = l
			}
			if !slices.Equal(got, tc.want) {
				t.Errorf("%s, %s:\n%s", program, tc.name, strings.Join(got, "\n"))
			}
			if r.Changed != tc.repairs || len(r.Notes) > 0 {
				t.Errorf("%s, %s: %+v", program, tc.name, r)
			}
		}
		saved := nodetest.Run(t, program+"-save")
		// This restore writes the comments as matches of xtables. The driver must recognize its rules in this form
		// too.
		nodetest.Run(t, "sh", "-c", program+"-restore <<'T'\n"+saved+"T")
		mustApply(t, d, want, netfilter.All)
		if got := forward(t, program); len(got) != 6 || got[2] != acceptsIn || got[3] != acceptsOut {
			t.Errorf("%s restored:\n%s", program, strings.Join(got, "\n"))
		}
	}
	if err := d.Remove(t.Context()); err != nil {
		t.Fatal(err)
	}
	if left := nodetest.Run(t, "nft", "list", "ruleset"); strings.Contains(left, "weir") {
		t.Errorf("left after Remove:\n%s", left)
	}
}

// TestForwardAcceptsChainedPods: the chain FORWARD has rules for each chained pod's address, until the pod ends.
func TestForwardAcceptsChainedPods(t *testing.T) {
	if !nodetest.Isolated(t) {
		return
	}
	d := driver(t)
	nodetest.Run(t, "iptables-nft", "-P", "FORWARD", "DROP")
	chained := func(entries ...ruleset.Entry) string {
		want := policy.Compile(policytest.DualStack())
		want.Sets = slices.Clone(want.Sets)
		for i, s := range want.Sets {
			if s.Name == conf.ChainedSet {
				want.Sets[i].Entries = ruleset.EntriesOf(entries...)
			}
		}
		mustApply(t, d, want, netfilter.Trust)
		return nodetest.Run(t, "iptables-nft", "-S", "FORWARD")
	}
	pod := ruleset.Entry{Element: ruleset.Element{Prefix: netip.MustParsePrefix("10.1.2.3/32")}}
	for _, rule := range []string{"-s 10.1.2.3/32 -m comment", "-d 10.1.2.3/32 -m comment"} {
		if all := chained(pod); !strings.Contains(all, rule) {
			t.Errorf("no rule with %s:\n%s", rule, all)
		}
	}
	if all := chained(); strings.Count(all, "\n") != 3 {
		t.Errorf("after the pod has ended:\n%s", all)
	}
}

// TestNotesOfOthersThatDrop: a note names the chain of another program that drops packets which weir allows. When the
// chain accepts pods, the note is gone.
func TestNotesOfOthersThatDrop(t *testing.T) {
	if !nodetest.Isolated(t) {
		return
	}
	d := driver(t)
	want := policy.Compile(policytest.DualStack())
	noteText := func() (all string) {
		for _, n := range mustApply(t, d, want, netfilter.All).Notes {
			all += n.About + ": " + n.Message + "\n"
		}
		return all
	}
	for _, tc := range []struct{ rules, names, mends string }{
		{
			"add table inet filter; add chain inet filter forward { type filter hook forward priority 0; policy drop; }",
			"host firewall: chain forward of the nftables table inet filter (owner: perhaps /etc/nftables.conf)",
			"insert rule inet filter forward iifname weir0 accept",
		},
		{
			"add table inet firewalld; add chain inet firewalld no;" +
				"add rule inet firewalld no reject with icmpx type admin-prohibited;" +
				"add chain inet firewalld filter_FORWARD { type filter hook forward priority 10; };" +
				"add rule inet firewalld filter_FORWARD ct state established,related accept;" +
				"add rule inet firewalld filter_FORWARD jump no",
			"(owner: firewalld)", "delete table inet firewalld",
		},
		{
			"add table ip6 own; add chain ip6 own f { type filter hook forward priority -200; policy drop; }",
			"chain f of the nftables table ip6 own (owner: unknown)", "add chain ip6 own f { policy accept; }",
		},
		{
			"add table inet innocent; add chain inet innocent f { type filter hook forward priority 1; };" +
				"add rule inet innocent f tcp dport 22 drop;" +
				"add chain inet innocent i { type filter hook input priority 1; policy drop; }",
			"", "delete table inet innocent",
		},
	} {
		nodetest.Run(t, "nft", tc.rules)
		if all := noteText(); !strings.Contains(all, tc.names) || (all == "") != (tc.names == "") {
			t.Errorf("%s: the notes are %q", tc.rules, all)
		}
		nodetest.Run(t, "nft", tc.mends)
		if all := noteText(); all != "" {
			t.Errorf("%s: the notes are still %q", tc.mends, all)
		}
	}
}
