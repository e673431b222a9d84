package iptables

import (
	"errors"
	"fmt"
	"maps"
	"net/netip"
	"os"
	"runtime"
	"slices"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/weir-net/weir/conf"
	"github.com/weir-net/weir/netfilter"
	"github.com/weir-net/weir/policy"
	"github.com/weir-net/weir/policy/policytest"
	"github.com/weir-net/weir/policy/ruleset"
	"github.com/weir-net/weir/test/nodetest"
)

type pods map[string]string

func oneDirection(direction string, classes ...pods) ruleset.Ruleset {
	dispatch, sets, of := conf.EgressChain, conf.EgressClasses, ruleset.Source
	if direction == "ingress" {
		dispatch, sets, of = conf.IngressChain, conf.IngressClasses, ruleset.Destination
	}
	byChain := map[string][]ruleset.Entry{returns: nil}
	var chains []string
	for _, some := range classes {
		for addr, chain := range some {
			if !slices.Contains(chains, chain) && chain != returns {
				chains = append(chains, chain)
			}
			e := ruleset.Element{Prefix: netip.MustParsePrefix(addr + "/32")}
			byChain[chain] = append(byChain[chain], ruleset.Entry{Element: e, Comment: "ns/" + addr})
		}
	}
	slices.Sort(chains)
	var r ruleset.Ruleset
	top := ruleset.Chain{Name: dispatch}
	for _, chain := range append(chains, returns) {
		set := sets + chain
		r.Sets = append(r.Sets, ruleset.Set{
			Name: set, Kind: ruleset.Addresses, Role: ruleset.Members, Dispatch: dispatch, Opens: true,
			Entries: ruleset.EntriesOf(byChain[chain]...),
		})
		rule := ruleset.Rule{Sets: []ruleset.SetMatch{{Name: set, By: of}}, Action: ruleset.Return}
		if chain != returns {
			rule.Action, rule.To = ruleset.GoTo, chain
			c := ruleset.Chain{Name: chain}
			for _, port := range strings.Split(chain, "-")[2:] {
				var n uint16
				_, _ = fmt.Sscan(port, &n)
				c.Rules = append(c.Rules, ruleset.Rule{
					Proto: ruleset.TCP, Ports: []ruleset.PortRange{{First: n, Last: n}}, Action: ruleset.Return,
				})
			}
			c.Rules = append(c.Rules, ruleset.Rule{Action: ruleset.Drop})
			r.Chains = append(r.Chains, c)
		}
		top.Rules = append(top.Rules, rule)
	}
	top.Rules = append(top.Rules, ruleset.Rule{Action: ruleset.Drop})
	r.Chains = append(r.Chains, top, ruleset.Chain{
		Name: conf.ForwardChain, Hook: ruleset.CheckForwarded,
		Rules: []ruleset.Rule{{In: conf.Bridge, Action: ruleset.GoTo, To: dispatch}},
	})
	return r
}

func both(a, b ruleset.Ruleset) ruleset.Ruleset {
	a.Sets, a.Chains = slices.Concat(a.Sets, b.Sets), slices.Concat(a.Chains, b.Chains[:len(b.Chains)-1])
	return a
}

func inShort(changes []change) (all []string) {
	for _, c := range changes {
		number, _ := splitNumber(c.Comment)
		words := fmt.Sprint(c.set, " ", c.Element, " ", number)
		if c.del {
			words = fmt.Sprint("-", c.set, " ", c.Element)
		}
		all = append(all, words)
	}
	slices.Sort(all)
	return all
}

func numberOf(chain string) int {
	a := assignment{numbering: numbering{leaves: leaves{}}, was: &numbering{}}
	return a.free(chain)
}

func gets(set, addr, chain string) string { return fmt.Sprint(set, " ", addr, " ", numberOf(chain)) }

func byNumber(chain string) string {
	return "--mark " + markText(uint32(numberOf(chain)), allBits) + " "
}

// TestNumbers: when classes change, as few pods as possible get another number.
func TestNumbers(t *testing.T) {
	const a, b, c = "10.0.0.1", "10.0.0.2", "10.0.0.3"
	egress := func(p pods) ruleset.Ruleset { return oneDirection("egress", p) }
	for name, tc := range map[string]struct {
		have, want    ruleset.Ruleset
		before, after []string
		rules         string // a part of the wanted rules
	}{
		"an edited policy": {
			have: egress(pods{a: "WEIR-EG-80", b: "WEIR-EG-80"}), want: egress(pods{a: "WEIR-EG-443", b: "WEIR-EG-443"}),
			rules: byNumber("WEIR-EG-80") + "-g WEIR-EG-443",
		},
		"a first policy": {
			have: egress(pods{a: returns, b: returns}), want: egress(pods{a: "WEIR-EG-80", b: returns}),
			before: []string{gets("weir-eg", a, "WEIR-EG-80")},
		},
		"a policy that others stay under goes": {
			have: egress(pods{a: "WEIR-EG-80-443", b: "WEIR-EG-80"}), want: egress(pods{a: "WEIR-EG-80", b: "WEIR-EG-80"}),
			before: []string{gets("weir-eg", a, "WEIR-EG-80")}, rules: byNumber("WEIR-EG-80-443") + "-m comment",
		},
		"the last policy goes": {
			have: egress(pods{a: "WEIR-EG-80", b: returns}), want: egress(pods{a: returns, b: returns}),
			after: []string{"weir-eg 10.0.0.1 1"}, rules: byNumber("WEIR-EG-80") + "-m comment --comment \"" + formerComment,
		},
		"a policy more": {
			have:  egress(pods{a: "WEIR-EG-80", b: "WEIR-EG-80"}),
			want:  egress(pods{a: "WEIR-EG-80-443", b: "WEIR-EG-80"}),
			after: []string{gets("weir-eg", a, "WEIR-EG-80-443")}, rules: byNumber("WEIR-EG-80-443") + "-g WEIR-EG-80-443",
		},
		"another class, no rules": {
			have:   egress(pods{a: "WEIR-EG-80", b: "WEIR-EG-443", c: "WEIR-EG-80"}),
			want:   egress(pods{a: "WEIR-EG-443", b: "WEIR-EG-443", c: "WEIR-EG-80"}),
			before: []string{gets("weir-eg", a, "WEIR-EG-443")},
		},
		"another class, and rules": {
			have:   egress(pods{a: "WEIR-EG-80", b: "WEIR-EG-443", c: "WEIR-EG-80"}),
			want:   egress(pods{a: "WEIR-EG-443", b: "WEIR-EG-443", c: "WEIR-EG-80", "10.0.0.4": "WEIR-EG-1"}),
			before: []string{"-weir-eg 10.0.0.1"},
			after:  []string{gets("weir-eg", a, "WEIR-EG-443"), gets("weir-eg", "10.0.0.4", "WEIR-EG-1")},
		},
		"two pods that cross in both directions": {
			have: both(oneDirection("ingress", pods{a: "WEIR-IN-1", b: "WEIR-IN-2"}),
				egress(pods{a: "WEIR-EG-1", b: "WEIR-EG-2"})),
			want: both(oneDirection("ingress", pods{a: "WEIR-IN-2", b: "WEIR-IN-1"}),
				egress(pods{a: "WEIR-EG-2", b: "WEIR-EG-1"})),
			before: []string{"-weir-eg 10.0.0.1", "-weir-eg 10.0.0.2", "-weir-in 10.0.0.1", "-weir-in 10.0.0.2"},
			after: []string{
				gets("weir-eg", a, "WEIR-EG-2"), gets("weir-eg", b, "WEIR-EG-1"),
				gets("weir-in", a, "WEIR-IN-2"), gets("weir-in", b, "WEIR-IN-1"),
			},
		},
		"two pods that cross in one direction": {
			have: egress(pods{a: "WEIR-EG-1", b: "WEIR-EG-2"}), want: egress(pods{a: "WEIR-EG-2", b: "WEIR-EG-1"}),
			before: []string{gets("weir-eg", a, "WEIR-EG-2"), gets("weir-eg", b, "WEIR-EG-1")},
		},
	} {
		t.Run(name, func(t *testing.T) {
			p := planFor(tc.have, tc.want)
			if got := inShort(slices.Concat(p.before, p.across)); !slices.Equal(got, tc.before) {
				t.Errorf("before the rules %q, want %q", got, tc.before)
			}
			if got := inShort(p.after); !slices.Equal(got, tc.after) {
				t.Errorf("after the rules %q, want %q", got, tc.after)
			}
			if !strings.Contains(p.restore[conf.IPv4], tc.rules) {
				t.Errorf("the rules have no %q:\n%s", tc.rules, p.restore[conf.IPv4])
			}
		})
	}
}

// TestNumbersAreNotReused: a new class never gets a number that an entry in the kernel still has.
func TestNumbersAreNotReused(t *testing.T) {
	have := stateOf(oneDirection("egress", pods{"10.0.0.1": returns}))
	s := have.sets[conf.EgressMap]
	first := numberOf("WEIR-EG-80")
	for i, addr := range []string{"10.0.0.2", "10.0.0.3"} {
		e := ruleset.Element{Prefix: netip.MustParsePrefix(addr + "/32")}
		s.entries = s.entries.With(ruleset.Entry{Element: e, Comment: withNumber(first+i, "ns/ended")})
	}
	have.sets[conf.EgressMap] = s
	l := lowerOnto(have, oneDirection("egress", pods{"10.0.0.1": "WEIR-EG-80"}))
	if got := l.numbers[conf.IPv4][conf.EgressChain].of["WEIR-EG-80"]; got != first+2 {
		t.Errorf("the class has number %d, want %d", got, first+2)
	}
}

// TestAClassGetsItsNumberAgain: a class that loses its pods, and later has pods again, gets its old number again.
func TestAClassGetsItsNumberAgain(t *testing.T) {
	m := newModel(t)
	number := func(chain string) int {
		t.Helper()
		for _, now := range []pods{{"10.0.0.2": returns}, {"10.0.0.1": chain, "10.0.0.2": returns}} {
			m.plan(makePlan(m.state, lowerOnto(m.state, oneDirection("egress", now))), func(string) {})
		}
		for n, target := range numberingOf(m.state.tables[conf.IPv4][checks].rules, conf.EgressChain).leaves {
			if target == chain {
				return n
			}
		}
		t.Fatalf("%s has no number", chain)
		return 0
	}
	first := number("WEIR-EG-80")
	for i := range 20 {
		if n := number(fmt.Sprint("WEIR-EG-", 1000+i)); n == first {
			t.Errorf("another class has number %d", n)
		}
	}
	if again := number("WEIR-EG-80"); again != first {
		t.Errorf("the class had number %d, and has %d", first, again)
	}
}

// TestTree: with 300 classes, each pod's packets reach the chain of its class. Packets of a pod whose number belongs to
// no class are dropped.
func TestTree(t *testing.T) {
	classes := pods{"10.1.0.0": returns}
	for i := 1; i < 300; i++ {
		classes[fmt.Sprintf("10.1.%d.%d", i/256, i%256)] = fmt.Sprint("WEIR-EG-", i)
	}
	m := newModel(t)
	r := oneDirection("egress", classes)
	m.plan(makePlan(m.state, lowerOnto(m.state, r)), func(string) {})
	packet := func(addr string, port int) ruleset.Packet {
		return ruleset.Packet{
			Src: netip.MustParseAddr(addr), Dst: netip.MustParseAddr("192.0.2.1"), In: conf.Bridge, Out: "eth0",
			Proto: ruleset.TCP, Port: uint16(port),
		}
	}
	for addr, chain := range classes {
		var own int
		if _, err := fmt.Sscanf(chain, "WEIR-EG-%d", &own); err != nil {
			own = 7 // this class allows every port
		}
		for _, port := range []int{own, own + 1} {
			if got, want := m.allows(packet(addr, port)), port == own || chain == returns; got != want {
				t.Fatalf("a pod of %s reaches port %d: %v", chain, port, got)
			}
		}
	}
	s := m.sets[conf.EgressMap]
	for n := range toPod {
		e := ruleset.Entry{Element: ruleset.Element{Prefix: netip.MustParsePrefix("10.1.0.1/32")}, Comment: withNumber(n, "")}
		s.entries = s.entries.With(e)
		m.sets[conf.EgressMap] = s
		if got := m.allows(packet("10.1.0.1", 9)); got != (n == openClass || lead(m.state, n) == "WEIR-EG-9") {
			t.Fatalf("number %d reaches port 9: %v", n, got)
		}
	}
}

// TestTreeIsFlat: even with 3,000 classes, a packet meets on average at most 17 rules of the tree. The method stands
// accepts the tree's chains as complete.
func TestTreeIsFlat(t *testing.T) {
	for n, most := range map[int]float64{10: 6, 250: 12, 3000: 17} {
		classes := pods{"10.255.0.0": returns}
		for i := 1; i < n; i++ {
			classes[fmt.Sprintf("10.1.%d.%d", i/256, i%256)] = fmt.Sprint("WEIR-EG-", i)
		}
		m := newModel(t)
		l := lowerOnto(m.state, oneDirection("egress", classes))
		m.plan(makePlan(m.state, l), func(string) {})
		rules, met := m.state.tables[conf.IPv4][checks].rules, 0
		all := numberingOf(rules, conf.EgressChain).leaves
		for number := range all {
			if number == openClass {
				continue
			}
			for chain := conf.EgressChain; chain != all[number]; {
				for _, line := range rules[chain] {
					var value, mask uint32
					_, err := fmt.Sscanf(line, "-m mark --mark 0x%x/0x%x ", &value, &mask)
					if met++; err == nil && uint32(number)<<markShift&mask == value {
						chain = split(line).target
						break
					}
				}
			}
		}
		if each := float64(met) / float64(len(all)-1); each > most+3 { // three rules precede the tree
			t.Errorf("%d classes: a packet meets %.1f rules, want %.0f at most beside three", n, each, most)
		}
		if !m.state.tables[conf.IPv4][checks].stands(conf.IPv4, l) {
			t.Errorf("with %d classes the rules count as incomplete", n)
		}
	}
}

// TestNumbersAreReadFromTheTree: numberingOf reads the numbers to which rules lead from the dispatch chain. It reads
// them in trees of all versions of weir, whatever the chains' names are. It doesn't read a chain to which no rule
// leads.
func TestNumbersAreReadFromTheTree(t *testing.T) {
	const top = conf.IngressChain
	for name, tc := range map[string]struct {
		rules map[string][]string
		want  leaves
	}{
		"no tree": {
			map[string][]string{top: {"-m mark --mark 0x10020000/0x1fff0000 -g WEIR-IN-A"}}, leaves{2: "WEIR-IN-A"},
		},
		"a tree of the first version, which compared four bits in each chain": {map[string][]string{
			top: {
				"-m mark --mark 0x10000000/0x10000000 -j MARK --set-xmark 0x0/0x1fff0000",
				"-j SET --map-set weir-in dst --map-mark", "-m mark --mark 0x10010000/0x1fff0000 -j RETURN",
				"-m mark --mark 0x10000000/0x1ff00000 -g WEIR-IN-CLASSES-00x",
			},
			"WEIR-IN-CLASSES-00x": {
				"-m mark --mark 0x10020000/0x1fff0000 -g WEIR-IN-A", "-m mark --mark 0x10030000/0x1fff0000 -g WEIR-IN-B",
				"-j DROP",
			},
		}, leaves{1: returns, 2: "WEIR-IN-A", 3: "WEIR-IN-B"}},
		"other names": {map[string][]string{
			top:          {"-m mark --mark 0x10400000/0x1fc00000 -g WEIR-NEW-1"},
			"WEIR-NEW-1": {"-m mark --mark 0x10500000/0x1ff00000 -g WEIR-NEW-2"},
			"WEIR-NEW-2": {"-m mark --mark 0x10510000/0x1fff0000 -g WEIR-IN-A"},
		}, leaves{0x51: "WEIR-IN-A"}},
		"a chain to which no rule leads": {map[string][]string{
			top:                   {"-m mark --mark 0x10020000/0x1fff0000 -g WEIR-IN-A"},
			"WEIR-IN-CLASSES-00x": {"-m mark --mark 0x10030000/0x1fff0000 -g WEIR-IN-B"},
		}, leaves{2: "WEIR-IN-A"}},
		"rules of another program": {map[string][]string{
			top: {
				"-m mark --mark 0x10030000/0x1fff8000 -g OTHER", "-m mark --mark 0x10000000/0x1ff00000 -j OTHER",
				"-m mark --mark 0x30000 -g OTHER", "-m mark --mark 0x30000/0x1fff0000 -g WEIR-EG-A",
			},
			"OTHER": {"-m mark --mark 0x10020000/0x1fff0000 -g WEIR-IN-A"},
		}, leaves{}},
		"a rule behind the last one": {map[string][]string{
			top: {
				"-m mark --mark 0x10020000/0x1fff0000 -g WEIR-IN-A", "-m mark --mark 0x10400000/0x1fc00000 -g WEIR-1",
				"-j DROP", "-m mark --mark 0x10020000/0x1fff0000 -g WEIR-IN-B",
				"-m mark --mark 0x10410000/0x1fff0000 -g WEIR-IN-B",
			},
			"WEIR-1": {"-m mark --mark 0x10410000/0x1fff0000 -g WEIR-IN-A"},
		}, leaves{2: "WEIR-IN-A", 0x41: "WEIR-IN-A"}},
		"a rule for packets that don't come to its chain": {map[string][]string{
			top: {
				"-m mark --mark 0x10800000/0x1fc00000 -g WEIR-1", "-m mark --mark 0x10400000/0x1fc00000 -g WEIR-1",
			},
			"WEIR-1": {
				"-m mark --mark 0x10020000/0x1fff0000 -g WEIR-IN-B", "-m mark --mark 0x10000000/0x1f000000 -g WEIR-2",
				"-m mark --mark 0x10410000/0x1fff0000 -g WEIR-IN-A",
			},
			"WEIR-2": {"-m mark --mark 0x10030000/0x1fff0000 -g WEIR-IN-B"},
		}, leaves{0x41: "WEIR-IN-A"}},
		"a circle": {map[string][]string{
			top:      {"-m mark --mark 0x10000000/0x1ff00000 -g WEIR-A"},
			"WEIR-A": {"-m mark --mark 0x10000000/0x1ff00000 -g WEIR-A"},
		}, leaves{}},
	} {
		if got := numberingOf(tc.rules, top).leaves; !maps.Equal(got, tc.want) {
			t.Errorf("%s: %v, want %v", name, got, tc.want)
		}
	}
}

// TestPodsInNoClassAreLogged: packets of a pod in no class are logged in both directions, with few classes and with
// many.
func TestPodsInNoClassAreLogged(t *testing.T) {
	for _, direction := range []string{"egress", "ingress"} {
		for _, n := range []int{3, 40, 300} {
			classes := pods{"10.1.0.0": returns}
			for i := 1; i < n; i++ {
				classes[fmt.Sprintf("10.1.%d.%d", i/256, i%256)] = fmt.Sprintf("WEIR-%s-%d", strings.ToUpper(direction[:2]), i)
			}
			r := oneDirection(direction, classes)
			for i, c := range r.Chains {
				if _, ok := dispatches[c.Name]; ok {
					r.Chains[i].Rules = slices.Insert(c.Rules, len(c.Rules)-1, ruleset.Rule{Action: ruleset.Log, To: "weir drop"})
				}
			}
			m := newModel(t)
			m.plan(makePlan(m.state, lowerOnto(m.state, r)), func(string) {})
			a := netip.MustParseAddr("10.9.9.9")
			p := ruleset.Packet{Src: a, Dst: a, In: conf.Bridge, Out: "eth0", Proto: ruleset.TCP, Port: 80}
			w := walk{model: m, Packet: p, family: conf.IPv4}
			if verdict := w.chain("FORWARD"); verdict != "DROP" || !w.logged {
				t.Errorf("%s, %d classes: %s, logged: %v", direction, n, verdict, w.logged)
			}
		}
	}
}

// TestTreesLogTheDispatchChain: each chain of a tree logs packets with the name of the dispatch chain. This name tells
// package drops that the pod is in no class.
func TestTreesLogTheDispatchChain(t *testing.T) {
	for direction, top := range map[string]string{"egress": conf.EgressChain, "ingress": conf.IngressChain} {
		classes, chains := pods{}, 0
		for i := 1; i < 40; i++ {
			classes[fmt.Sprint("10.1.0.", i)] = fmt.Sprintf("WEIR-%s-%d", strings.ToUpper(direction[:2]), i)
		}
		l := lowerOnto(state{}, oneDirection(direction, classes))
		for _, c := range l.chains {
			if !strings.HasPrefix(c.name, dispatches[top].prefix) {
				continue
			}
			chains++
			if log := fmt.Sprintf("--nflog-prefix %q", conf.LogPrefix+top); !strings.Contains(strings.Join(c.lines, "\n"), log) {
				t.Errorf("%s lacks %s:\n%s", c.name, log, strings.Join(c.lines, "\n"))
			}
		}
		if chains == 0 {
			t.Errorf("%s: there is no tree", direction)
		}
	}
}

func lead(s state, number int) string {
	return numberingOf(s.tables[conf.IPv4][checks].rules, conf.EgressChain).leaves[number]
}

// TestWithoutNumbers: if iptables can't read a number from a set's entry (--map-set), each class has its own set of
// pods. If iptables later can read such numbers, the driver replaces these sets by sets in which each pod has its
// class's number.
func TestWithoutNumbers(t *testing.T) {
	if !nodetest.Isolated(t) {
		return
	}
	dir := t.TempDir()
	for _, program := range []string{"iptables-nft-restore", "ip6tables-nft-restore"} {
		script := "#!/bin/sh\nPATH=${PATH#*:}\ncommands=$(cat)\ncase $commands in *--map-set*) echo unknown option >&2; " +
			"exit 2;; esac\nprintf '%s\\n' \"$commands\" | " + program + " \"$@\"\n"
		if err := os.WriteFile(dir+"/"+program, []byte(script), 0o700); err != nil {
			t.Fatal(err)
		}
	}
	path := os.Getenv("PATH")
	want := policy.Compile(policytest.DualStack())
	of := func(path string) (sets string) {
		t.Helper()
		t.Setenv("PATH", path)
		mustApply(t, driver(t, NFT), want, netfilter.All)
		d := driver(t, NFT)
		got := mustApply(t, d, want, netfilter.All)
		if got.Changed {
			t.Error("another driver changes something")
		}
		for len(got.Left) > 0 { // on a slow machine, an Apply may leave sets for the next Apply
			got = mustApply(t, d, want, netfilter.Trust)
		}
		t.Setenv("PATH", os.Getenv("PATH"))
		return nodetest.Run(t, "ipset", "list", "-name")
	}
	if sets := of(dir + ":" + path); !strings.Contains(sets, "weir-in-open\n") || strings.Contains(sets, "weir-in\n") ||
		strings.Contains(sets, conf.TrialSet) {
		t.Errorf("without numbers: %s", sets)
	}
	if sets := of(path); strings.Contains(sets, "weir-in-open\n") || !strings.Contains(sets, "weir-in\n") ||
		strings.Contains(sets, conf.TrialSet) {
		t.Errorf("with numbers: %s", sets)
	}
}

// TestARefusedNumberCloses: if the kernel refuses a pod's new number, the driver deletes the pod's entry, because the
// old number may allow more.
func TestARefusedNumberCloses(t *testing.T) {
	if !nodetest.Isolated(t) {
		return
	}
	d := driver(t, NFT)
	mustApply(t, d, oneDirection("egress", pods{"10.0.0.1": returns, "10.0.0.2": returns}), netfilter.All)
	nodetest.Run(t, "ipset", "create", "other", "hash:ip", "comment")
	nodetest.Run(t, "ipset", "add", "other", "10.0.0.1")
	nodetest.Run(t, "ipset", "swap", "other", conf.EgressMap)
	_, err := d.Apply(t.Context(), oneDirection("egress", pods{"10.0.0.1": "WEIR-EG-80", "10.0.0.2": returns}),
		netfilter.Trust)
	refused := new(netfilter.RefusedError)
	if !errors.As(err, &refused) || len(refused.Refused) != 1 {
		t.Errorf("got %v, want one refused entry", err)
	}
	for r := range refused.Refused {
		if r.Set != conf.EgressClasses+"WEIR-EG-80" || r.Element.String() != "10.0.0.1" {
			t.Errorf("refused is %+v", r)
		}
	}
	if left := nodetest.Run(t, "ipset", "list", conf.EgressMap); strings.Contains(left, "10.0.0.1") {
		t.Errorf("the refused entry is still there: %s", left)
	}
}

// TestForeignBitsAreDrift: if another program sets bits outside of markField in an entry's mark, the entry counts as
// changed. The driver must repair it, because the kernel would write these bits into packets.
func TestForeignBitsAreDrift(t *testing.T) {
	at := ruleset.Element{Prefix: netip.MustParsePrefix("10.0.0.1/32")}
	e := ruleset.Entry{Element: at, Comment: withNumber(3, "ns/a")}
	for _, set := range []string{conf.IngressMap, conf.EgressMap} {
		there := entryOf(e, set)
		if got := commentOf(there, set); got != e.Comment {
			t.Errorf("%s: weir's own entry is read as %q", set, got)
		}
		for _, bit := range []uint32{1, 1 << 15, 1 << 29, 1 << 31} {
			other := there
			other.Mark.Value |= bit
			if got := commentOf(other, set); got == e.Comment {
				t.Errorf("%s: with bit %#x, the entry is read as weir's own", set, bit)
			}
		}
	}
}

// TestManyClasses: numbering 2,000 new classes takes at most nine times as long as numbering 500. If the time grew with
// the square of the number of classes, the factor would be sixteen.
func TestManyClasses(t *testing.T) {
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	// numberingOf returns a function that numbers n classes, and returns how long that took.
	numberingOf := func(n int) func() time.Duration {
		var was, now []class
		var members []ruleset.Entry
		old := &numbering{leaves: leaves{}, former: map[int]bool{}}
		for i := range n {
			e := ruleset.Element{Prefix: netip.PrefixFrom(netip.AddrFrom4([4]byte{10, 0, byte(i >> 8), byte(i)}), 32)}
			pod := ruleset.EntriesOf(ruleset.Entry{Element: e, Comment: "ns/pod"})
			was = append(was, class{set: fmt.Sprint("was", i), target: fmt.Sprint("WAS", i), pods: pod})
			now = append(now, class{set: fmt.Sprint("now", i), target: fmt.Sprint("NOW", i), pods: pod})
			old.leaves[i+2] = was[i].target
			members = append(members, ruleset.Entry{Element: e, Comment: withNumber(i+2, "ns/pod")})
		}
		all := ruleset.EntriesOf(members...)
		return func() time.Duration {
			began := processorTime(t)
			next, ok := assign(old, all, now)
			set := loweredMembers{}.next(was, old).next(now, next)
			took := processorTime(t) - began
			if !ok || next.of["NOW7"] != 9 || set.to.Len() != n {
				t.Fatalf("class 7 has the number %d, and %d of %d pods have one", next.of["NOW7"], set.to.Len(), n)
			}
			return took
		}
	}
	fewer, more := numberingOf(500), numberingOf(2000)
	few, many := time.Hour, time.Hour
	for range 5 { // by turns, so that a slow moment of the machine hits both
		few, many = min(few, fewer()), min(many, more())
	}
	if many > 9*few {
		t.Errorf("2,000 classes take %v, and 500 take %v", many, few)
	}
}

func processorTime(t *testing.T) time.Duration {
	var now unix.Timespec
	if err := unix.ClockGettime(unix.CLOCK_THREAD_CPUTIME_ID, &now); err != nil {
		t.Fatal(err)
	}
	return time.Duration(now.Nano())
}
