package iptables

import (
	"fmt"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/weir-net/weir/conf"
	"github.com/weir-net/weir/netfilter"
	"github.com/weir-net/weir/netfilter/ipset"
	"github.com/weir-net/weir/netfilter/probe"
	"github.com/weir-net/weir/policy"
	"github.com/weir-net/weir/policy/policytest"
	"github.com/weir-net/weir/policy/ruleset"
	"github.com/weir-net/weir/test/golden"
	"github.com/weir-net/weir/test/nodetest"
)

// TestLacksNothing: the node on which this test runs has everything that weir needs. A trial in the node's own network
// namespace leaves nothing behind.
func TestLacksNothing(t *testing.T) {
	if !nodetest.Isolated(t) {
		return
	}
	nodetest.Outside(t) // gives the node an IPv6 address
	for _, flavour := range []Flavour{NFT, Legacy} {
		for _, f := range conf.Families {
			if lacks := lacksIn(t.Context(), flavour, f); len(lacks) > 0 {
				t.Errorf("%s: the node lacks %q", flavour.program(f), lacks)
			}
		}
	}
	if left := trialIn(t); left != "" {
		t.Errorf("the trials have left:\n%s", left)
	}
	began := time.Now()
	if lacks, err := Lacks(t.Context()); lacks != nil || err != nil {
		t.Errorf("the node lacks %q, %v", lacks, err)
	}
	t.Logf("a trial took %v", time.Since(began))
}

// TestLacks: if iptables-restore refuses rules, or leaves them out without an error, lacksIn returns what the node
// lacks.
func TestLacks(t *testing.T) {
	if !nodetest.Isolated(t) {
		return
	}
	nodetest.Outside(t) // gives the node an address with which it can masquerade
	original, err := exec.LookPath("iptables-nft-restore")
	if err != nil {
		t.Fatal(err)
	}
	dir := t.TempDir()
	t.Setenv("PATH", dir+":"+os.Getenv("PATH"))
	for _, tc := range []struct {
		name, script string
		want         []string // a part of each text that lacksIn must return, in order
	}{
		{"nothing", `exec %s "$@"`, nil},
		{"silent sets", `sed "/-m set/d" | %s "$@"`, []string{
			"sets of addresses (", "addresses outside of a set (", "sets of networks (", "outside of networks (",
			"sets of addresses with links (", "links outside of a set (", "rules that masquerade (", "sets of ports (",
			"sets of addresses with ports (",
		}},
		{"silent states", `sed "/--ctstate ESTABLISHED/d" | %s "$@"`, []string{"connection tracking with labels ("}},
		{"silent lists", `sed "/multiport/d" | %s "$@"`, []string{"lists of ports ("}},
		{"silent classes", `sed "/--map-set/d" | %s "$@"`, []string{"classes of senders (", "classes of receivers ("}},
		{"silent programs", `sed "/-m bpf/d" | %s "$@"`, []string{"rules that compare two addresses ("}},
		{"silent masquerading", `sed "/MASQUERADE/d" | %s "$@"`, []string{"rules that masquerade ("}},
		{"no numbers", `text=$(cat); case "$text" in *--map-set*) echo "no SET" >&2; exit 1;; esac
			echo "$text" | %s "$@"`, nil},
		{"nothing is written", `cat >/dev/null`, []string{"rules that drop packets (", "rules that masquerade ("}},
		{"refused labels", `text=$(cat); case "$text" in *connlabel*) echo "no connlabel: load it" >&2; exit 1;; esac
			echo "$text" | %s "$@"`, []string{
			`like -p udp -m conntrack --ctstate ESTABLISHED -m connlabel`, `-m connlabel --label`,
		}},
		{"refused masquerading", `text=$(cat); case "$text" in *MASQ*) echo "can't load MASQUERADE" >&2; exit 1;; esac
			echo "$text" | %s "$@"`, []string{"rules that masquerade: can't load MASQUERADE"}},
		{"no program", `exit 127`, []string{"iptables-nft-restore"}},
	} {
		script := tc.script
		if strings.Contains(script, "%s") {
			script = fmt.Sprintf(script, original)
		}
		program := []byte("#!/bin/sh\n" + script + "\n")
		if err := os.WriteFile(filepath.Join(dir, "iptables-nft-restore"), program, 0o700); err != nil {
			t.Fatal(err)
		}
		got := lacksIn(t.Context(), NFT, conf.IPv4)
		ok := len(got) == len(tc.want)
		for i := range tc.want {
			ok = ok && strings.Contains(got[i], tc.want[i])
		}
		if !ok {
			t.Errorf("%s: the node lacks\n%s", tc.name, strings.Join(got, "\n"))
		}
	}
}

// TestTriesReachTheKernel: if iptables-restore accepts a rule, but the kernel refuses it, the trial of this rule
// fails, and leaves no chain behind.
func TestTriesReachTheKernel(t *testing.T) {
	if !nodetest.Isolated(t) {
		return
	}
	for _, flavour := range []Flavour{NFT, Legacy} {
		d := driver(t, flavour)
		// Only the table nat allows the target MASQUERADE.
		for rule, refused := range map[string]bool{"-j RETURN": false, "-j MASQUERADE": true} {
			err := d.once(t.Context(), conf.IPv4, tryCommands(checks, []string{rule}))
			if (err != nil) != refused {
				t.Errorf("%s %s: %v", flavour, rule, err)
			}
		}
		if left, err := flavour.trialChains(conf.IPv4, checks); len(left) > 0 || err != nil {
			t.Errorf("%s: left %v, %v", flavour, left, err)
		}
	}
}

// TestLacksNothingAmongOthersRules: an administrator's rules disturb the packets of a trial. lacksIn still reports that
// the node lacks nothing.
func TestLacksNothingAmongOthersRules(t *testing.T) {
	if !nodetest.Isolated(t) {
		return
	}
	nodetest.Outside(t) // gives the node an IPv6 address
	for _, flavour := range []Flavour{NFT, Legacy} {
		nodetest.EachDisturbance(t, string(flavour), func(t *testing.T) {
			for _, f := range conf.Families {
				if lacks := lacksIn(t.Context(), flavour, f); len(lacks) > 0 {
					t.Errorf("%s: the node lacks %q", flavour.program(f), lacks)
				}
			}
		})
	}
}

// exempt has the features of weir's rules that no trial tries.
var exempt = []string{
	"-m sctp --dport", // if refused, only policies with SCTP don't work
	"-p sctp",
	// Only pods behind another plugin's bridge need this match. A trial would load the module br_netfilter. With this
	// module, iptables' rules apply to all bridges of the node.
	"-m physdev --physdev-in",
}

// TestTrialsTryAllFeatures: the trial tries each match, each target and each type of set that weir's rules use.
func TestTrialsTryAllFeatures(t *testing.T) {
	for _, f := range conf.Families {
		tried := map[string]bool{}
		p := probe.New(f)
		defer func() { _ = p.Close() }()
		for _, s := range p.Sets {
			h := headerOf(s)
			h.Marks = s.Role == ruleset.Members // makeTrialSets creates class sets with marks
			tried[typeOf(h)] = true
		}
		for line := range strings.Lines(trialCommands(p, true)) {
			if rule, ok := strings.CutPrefix(line, "-A "); ok {
				_, rule, _ = strings.Cut(strings.TrimSpace(rule), " ")
				for _, feature := range featuresOf(rule) {
					tried[feature] = true
				}
			}
		}
		missing := map[string]string{}
		check := func(s policy.State) {
			l := lowerOnto(state{}, policy.Compile(s))
			for _, s := range l.sets {
				if h := headerOf(s); s.Family == f && !tried[typeOf(h)] {
					missing[typeOf(h)] = s.Name
				}
			}
			for _, c := range l.chains {
				for _, line := range c.lines {
					for _, feature := range featuresOf(line) {
						if c.family == f && !tried[feature] && !slices.Contains(exempt, feature) {
							missing[feature] = line
						}
					}
				}
			}
		}
		golden.Each(t, "../..", func(_ *testing.T, _ string, s policy.State) { check(s) })
		for i := range uint64(100) {
			check(policytest.State(rand.New(rand.NewPCG(1, i))))
		}
		for feature, of := range missing {
			t.Errorf("%s: no trial tries %q, which the rules have: %s", f, feature, of)
		}
	}
}

func typeOf(h ipset.Header) string { return fmt.Sprintf("set %s, with marks: %v", h.Type, h.Marks) }

// featuresOf splits a rule into its matches and its target, and removes names and numbers.
func featuresOf(rule string) (all []string) {
	begins := func(w string) bool { return len(w) == 2 && w[0] == '-' }
	numbers := regexp.MustCompile(`^(0x[0-9a-f]+/0x[0-9a-f]+|[0-9:,]+)$`)
	named := []string{"--comment", "--match-set", "--map-set", "--nflog-prefix", "-i", "-o", "-s", "-d", "--physdev-in"}
	var one []string
	for i, w := range words(rule + " -x") {
		if begins(w) && i > 0 {
			all, one = append(all, strings.Join(one, " ")), nil
		}
		name := len(one) > 0 && slices.Contains(named, one[len(one)-1])
		if conf.OwnChain(w) {
			w = "CHAIN"
		}
		if !name && !numbers.MatchString(w) {
			one = append(one, w)
		}
	}
	return all
}

// TestKilledTrial: if an agent was killed during a trial in the node's own network namespace, Apply removes the
// trial's chains, jumps and sets. The next trial removes them too.
func TestKilledTrial(t *testing.T) {
	if !nodetest.Isolated(t) {
		return
	}
	nodetest.Outside(t) // gives the node an IPv6 address
	for _, flavour := range []Flavour{NFT, Legacy} {
		d := driver(t, flavour)
		want := policy.Compile(policytest.DualStack())
		for what, remove := range map[string]func(){
			"Apply": func() { mustApply(t, d, want, netfilter.All) },
			"a trial": func() {
				for _, f := range conf.Families {
					if lacks := lacksIn(t.Context(), flavour, f); len(lacks) > 0 {
						t.Errorf("%s: the node lacks %q", flavour.program(f), lacks)
					}
				}
			},
		} {
			for _, f := range conf.Families {
				begunTrial(t, d, f)
			}
			soon(t, func() error { // several tries, because an Apply that also makes other changes destroys no sets
				if remove(); trialIn(t) != "" {
					return fmt.Errorf("%s of iptables-%s has left:\n%s", what, flavour, trialIn(t))
				}
				return nil
			})
		}
	}
}

// trialIn returns what trials have left in the node's rules and sets, one line each.
func trialIn(t *testing.T) string {
	t.Helper()
	return nodetest.Run(t, "sh", "-c", `(iptables-nft-save; ip6tables-nft-save; iptables-legacy-save
		ip6tables-legacy-save; ipset list -name) 2>/dev/null | grep -i weir-trial || true`)
}

// TestTrialsLeaveOtherPackets: while a trial's rules are in the kernel, packets of other programs pass, also to the
// trial's ports.
func TestTrialsLeaveOtherPackets(t *testing.T) {
	if !nodetest.Isolated(t) {
		return
	}
	outside := nodetest.Outside(t)
	for _, flavour := range []Flavour{NFT, Legacy} {
		d := driver(t, flavour)
		for _, f := range conf.Families {
			p := begunTrial(t, d, f)
			for _, n := range p.Needs {
				nodetest.StrangersPass(t, outside, f == conf.IPv6, n.Rule.Ports[0].First)
			}
			d.endTrial(t.Context(), p)
		}
	}
}

// begunTrial puts the sets and rules of a trial into the kernel.
func begunTrial(t *testing.T, d *Driver, f conf.Family) *probe.Trial {
	t.Helper()
	p := probe.New(f)
	t.Cleanup(func() { _ = p.Close() })
	lacks, numbers := d.makeTrialSets(p)
	if len(lacks) > 0 {
		t.Fatal(lacks)
	}
	if err := d.once(t.Context(), f, trialCommands(p, numbers)); err != nil {
		t.Fatal(err)
	}
	return p
}
