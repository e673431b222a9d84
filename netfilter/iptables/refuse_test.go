package iptables

import (
	"errors"
	"fmt"
	"slices"
	"strings"
	"testing"

	"github.com/weir-net/weir/conf"
	"github.com/weir-net/weir/netfilter"
	"github.com/weir-net/weir/policy"
	"github.com/weir-net/weir/policy/ruleset"
	"github.com/weir-net/weir/test/nodetest"
)

// TestTrials: a limited number of trials finds the refused rules. If a namespace needs more trials, some of its good
// rules count as refused too.
func TestTrials(t *testing.T) {
	rule := func(of string, proto ruleset.Protocol, ports ...uint16) ruleset.Rule {
		r := ruleset.Rule{Policies: []string{of}, Proto: proto, Action: ruleset.Return, Comment: "weir: " + of}
		for _, p := range ports {
			r.Ports = append(r.Ports, ruleset.PortRange{First: p, Last: p})
		}
		return r
	}
	many := func(of string, n int) (rules []ruleset.Rule) {
		for i := range n {
			rules = append(rules, rule(of, ruleset.TCP, uint16(1000+i)))
		}
		return rules
	}
	for name, tc := range map[string]struct {
		rules   []ruleset.Rule
		refuses []string
		want    []string
		trials  int // how many trials may run at most
		most    int // how many rules of namespace a may count as refused
	}{
		"nothing": {rules: many("a/np", 1000), trials: 2},
		"a protocol, in many rules": {
			rules: append(many("a/np", 1000), rule("b/np", ruleset.SCTP), rule("b/np", ruleset.SCTP, 7),
				rule("c/np", ruleset.SCTP, 8), rule("c/np", ruleset.SCTP, 8, 9)),
			refuses: []string{"-p sctp"},
			want: []string{
				"rules with -p sctp", "rules with -p sctp -m multiport --dports",
				"rules with -p sctp -m sctp --dport",
			}, trials: 10,
		},
		"one rule of many": {
			rules:   many("a/np", 1024),
			refuses: []string{"--dport 1500 "},
			want:    []string{"rule -p tcp -m tcp --dport 1500 -j RETURN"},
			trials:  24,
		},
		"more rules of one namespace than it has trials": {
			rules:   append(many("a/np", 1024), rule("b/np", ruleset.UDP, 1500), rule("b/np", ruleset.TCP, 7)),
			refuses: []string{"--dport 11", "--dport 12", "--dport 13", "--dport 1500", "-p udp -m udp --dport 1500"},
			want:    []string{"rule -p udp -m udp --dport 1500 -j RETURN"}, trials: 80, most: 450,
		},
	} {
		t.Run(name, func(t *testing.T) {
			trials := 0
			tr := trial{family: conf.IPv4, refused: ruleset.Refused{}, try: func(rules []ruleset.Rule) error {
				trials++
				for _, r := range rules {
					if slices.ContainsFunc(tc.refuses, func(s string) bool { return strings.Contains(ruleText(r, conf.IPv4), s) }) {
						return errors.New("it wouldn't")
					}
				}
				return nil
			}}
			tr.kinds(tc.rules)
			rules := slices.DeleteFunc(slices.Clone(tc.rules), func(r ruleset.Rule) bool {
				return slices.ContainsFunc(r.Kinds(),
					func(k ruleset.Kind) bool { return tr.refused[ruleset.Refusal{Kind: k.Name}] != "" })
			})
			tr.namespaces(rules)
			var got []string
			for r, why := range tr.refused {
				if r.Kind != "" {
					got = append(got, strings.TrimSuffix(why, ": it wouldn't"))
				}
			}
			for _, r := range tc.rules {
				if tr.refused[ruleset.Refusal{Rule: r.Key()}] != "" {
					r.Comment = ""
					got = append(got, "rule "+ruleText(r, conf.IPv4))
				}
			}
			slices.Sort(got)
			if tc.most > 0 { // good rules of namespace a may be among the refused ones
				all := len(got)
				got = slices.DeleteFunc(got, func(s string) bool { return strings.HasPrefix(s, "rule -p tcp -m tcp --dport 1") })
				if n := all - len(got); n < 301 || n > tc.most {
					t.Errorf("%d of a's rules are taken for refused, want 300 to %d", n, tc.most)
				}
			}
			if !slices.Equal(got, tc.want) {
				t.Errorf("got %q, want %q", got, tc.want)
			}
			if trials > tc.trials {
				t.Errorf("%d trials, want %d at most", trials, tc.trials)
			}
		})
	}
}

// TestRefusedByTheKernel: if the kernel refuses a part that weir can do without, such as a policy's rule, Apply returns
// a RefusedError. If the kernel refuses another part, Apply returns another error.
func TestRefusedByTheKernel(t *testing.T) {
	if !nodetest.Isolated(t) {
		return
	}
	for _, f := range []Flavour{NFT, Legacy} {
		d := driver(t, f)
		base := policy.Compile(policy.State{})
		mustApply(t, d, base, netfilter.All)
		with := func(s ruleset.Set) ruleset.Ruleset {
			r := base
			r.Sets = append(slices.Clone(base.Sets), s)
			return r
		}
		refused := func(r ruleset.Ruleset) ruleset.Refused {
			t.Helper()
			_, err := d.Apply(t.Context(), r, netfilter.Trust)
			var e *netfilter.RefusedError
			if !errors.As(err, &e) {
				t.Errorf("got %v, want a refusal", err)
				return nil
			}
			return e.Refused
		}
		if got := refused(with(ruleset.Set{Name: "weir-x", Kind: "hash:none", Opens: true})); got[ruleset.Refusal{
			SetKind: "hash:none",
		}] == "" {
			t.Errorf("a type that there isn't: %v", got)
		}
		if _, err := d.Apply(t.Context(), with(ruleset.Set{Name: "weir-x", Kind: "hash:none"}),
			netfilter.Trust); err == nil ||
			errors.As(err, new(*netfilter.RefusedError)) {
			t.Errorf("a type that there isn't, of a set that must be: %v", err)
		}
		// The driver can't replace this set, because a rule uses it.
		nodetest.Run(t, "ipset", "create", "weir-x", "list:set")
		nodetest.Run(t, fmt.Sprintf("iptables-%s", f), "-A", "INPUT", "-m", "set", "--match-set", "weir-x", "src")
		if got := refused(with(ruleset.Set{Name: "weir-x", Kind: ruleset.Addresses, Opens: true})); got[ruleset.Refusal{
			Set: "weir-x",
		}] == "" {
			t.Errorf("a set of another type: %v", got)
		}
		nodetest.Run(t, fmt.Sprintf("iptables-%s", f), "-F", "INPUT")
		// nf_tables frees the deleted rule only some time later. Until then, the set counts as in use.
		nodetest.Run(t, "sh", "-c", "until ipset destroy weir-x; do :; done")
		bad := base
		bad.Chains = append(slices.Clone(base.Chains), ruleset.Chain{Name: "WEIR-IN-X", Rules: []ruleset.Rule{
			{Policies: []string{"a/np"}, Action: ruleset.Return, Comment: "weir: a"},
			{
				Policies: []string{"b/np"},
				Action:   ruleset.Return,
				Comment:  "weir: b",
				Sets:     []ruleset.SetMatch{{Name: "weir-none", By: ruleset.Source}},
			},
		}})
		got := refused(bad)
		if len(got) != 1 ||
			!strings.HasPrefix(got[ruleset.Refusal{Kind: "source in a set"}], "rules with -m set --match-set src: ") {
			t.Errorf("%s: a rule by a set that isn't there: %v", f, got)
		}
		if out := nodetest.Run(t, fmt.Sprintf("iptables-%s-save", f), "-t", "mangle"); strings.Contains(out,
			conf.TrialChain) ||
			strings.Contains(out, "WEIR-IN-X") {
			t.Errorf("after the trial there is\n%s", out)
		}
		mustApply(t, d, base, netfilter.All)
		d.Close()
		if err := d.Remove(t.Context()); err != nil {
			t.Log(err)
		}
	}
}
