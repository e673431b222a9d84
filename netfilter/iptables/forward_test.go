package iptables

import (
	"strings"
	"testing"

	"github.com/weir-net/weir/conf"
	"github.com/weir-net/weir/policy/ruleset"
	"github.com/weir-net/weir/test/nodetest"
)

// TestAcceptInLegacy: the chain FORWARD of iptables-legacy has weir's rules only while it drops packets by default, and
// they are at the right place.
func TestAcceptInLegacy(t *testing.T) {
	if !nodetest.Isolated(t) {
		return
	}
	rules := []ruleset.Rule{{In: conf.Bridge}, {Out: conf.Bridge}}
	for _, f := range conf.Families {
		program := Legacy.program(f)
		accept := func(wantChanged bool, want ...string) {
			t.Helper()
			for _, changes := range []bool{wantChanged, false} {
				changed, problem, err := AcceptInLegacy(t.Context(), f, rules)
				if err != nil || problem != "" || changed != changes {
					t.Errorf("changed %v, want %v, %q: %v", changed, changes, problem, err)
				}
			}
			var got []string
			for line := range strings.Lines(nodetest.Run(t, program, "-S", "FORWARD")) {
				if rule, ok := strings.CutPrefix(line, "-A FORWARD "); ok {
					rule = strings.ReplaceAll(strings.TrimSpace(rule), `-m comment --comment "`+comment+`" -j ACCEPT`, "own")
					got = append(got, rule)
				}
			}
			if strings.Join(got, "; ") != strings.Join(want, "; ") {
				t.Errorf("%s: FORWARD has %q, want %q", program, got, want)
			}
		}
		if changed, problem, err := AcceptInLegacy(t.Context(), f, rules); changed || problem != "" || err != nil {
			t.Errorf("without a table: %v, %q, %v", changed, problem, err)
		}
		if there, _, err := Legacy.exists(f, "filter"); there || err != nil {
			t.Errorf("the table filter of %s was made: %v", program, err)
		}
		nodetest.RunEach(t, program+" -A FORWARD -o docker0 -j ACCEPT")
		accept(false, "-o docker0 -j ACCEPT")
		nodetest.RunEach(t, program+" -P FORWARD DROP")
		accept(true, "-o docker0 -j ACCEPT", "-i weir0 own", "-o weir0 own")
		nodetest.RunEach(t, program+" -A FORWARD -j LOG", program+" -A FORWARD -j REJECT")
		accept(true, "-o docker0 -j ACCEPT", "-j LOG", "-i weir0 own", "-o weir0 own", refusal(f))
		nodetest.RunEach(t, program+" -D FORWARD 3")
		accept(true, "-o docker0 -j ACCEPT", "-j LOG", "-i weir0 own", "-o weir0 own", refusal(f))
		nodetest.RunEach(t, program+" -F FORWARD", program+" -P FORWARD ACCEPT", program+" -N all",
			program+" -A all -j DROP", program+" -A FORWARD -j all")
		accept(true, "-i weir0 own", "-o weir0 own", "-j all")
		nodetest.RunEach(t, program+" -D FORWARD -j all")
		accept(true)
	}
}

const comment = "weir: no other default drops what policy let through"

func refusal(f conf.Family) string {
	if f == conf.IPv6 {
		return "-j REJECT --reject-with icmp6-port-unreachable"
	}
	return "-j REJECT --reject-with icmp-port-unreachable"
}

// TestAcceptInLegacyWithoutPrograms: if the programs of iptables-legacy are missing, the problem says how a person can
// accept pods' packets. When the person has done so, there is no problem any more.
func TestAcceptInLegacyWithoutPrograms(t *testing.T) {
	if !nodetest.Isolated(t) {
		return
	}
	rules := []ruleset.Rule{{In: conf.Bridge}, {Out: conf.Bridge}}
	for _, f := range conf.Families {
		program := Legacy.program(f)
		for _, commands := range [][]string{
			{program + " -P FORWARD DROP"},
			{program + " -P FORWARD ACCEPT", program + " -A FORWARD -p tcp -j DROP", program + " -A FORWARD -j DROP"},
		} {
			nodetest.RunEach(t, program+" -F FORWARD", program+" -P FORWARD ACCEPT", program+" -A FORWARD -p udp -j DROP")
			ask := func() (problem string) {
				t.Helper()
				path := t.TempDir()
				t.Run("without programs", func(t *testing.T) {
					t.Setenv("PATH", path)
					changed, words, err := AcceptInLegacy(t.Context(), f, rules)
					if problem = words; changed || err != nil {
						t.Errorf("changed: %v, %v", changed, err)
					}
				})
				return problem
			}
			if problem := ask(); problem != "" {
				t.Errorf("%s doesn't drop all packets, and the problem is %q", program, problem)
			}
			nodetest.RunEach(t, commands...)
			_, hint, ok := strings.Cut(ask(), "accept them with: ")
			if !ok {
				t.Errorf("no problem after %q", commands)
				continue
			}
			nodetest.Run(t, "sh", "-c", hint)
			if problem := ask(); problem != "" {
				t.Errorf("after %s, the problem is %q", hint, problem)
			}
		}
	}
}
