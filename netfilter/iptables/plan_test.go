package iptables

import (
	"fmt"
	"math/rand/v2"
	"net/netip"
	"slices"
	"strings"
	"testing"

	networkingv1 "k8s.io/api/networking/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/weir-net/weir/conf"
	"github.com/weir-net/weir/policy"
	"github.com/weir-net/weir/policy/policytest"
	"github.com/weir-net/weir/policy/ruleset"
)

func lowerOnto(have state, r ruleset.Ruleset) *lowered {
	var m lowering
	var n numbers
	for _, f := range conf.Families {
		if r.Has(f) {
			n[f] = m.numbers(&have, f, r)
		}
	}
	return m.lower(r, n)
}

func stateOf(r ruleset.Ruleset) state {
	l := lowerOnto(state{}, r)
	return state{}.after(makePlan(state{}, l), l, nil)
}

func planFor(have, want ruleset.Ruleset) plan {
	s := stateOf(have)
	return makePlan(s, lowerOnto(s, want))
}

// TestPlansNameTheirTables: a plan names each table that its commands change, once for each transaction.
func TestPlansNameTheirTables(t *testing.T) {
	all := policy.Compile(policytest.DualStack())
	few, isSelf := all, func(c ruleset.Chain) bool { return c.Name == conf.SelfChain }
	few.Chains = slices.DeleteFunc(slices.Clone(all.Chains), isSelf)
	for name, p := range map[string]plan{
		"all": makePlan(state{}, lowerOnto(state{}, all)), "one": planFor(few, all), "none": planFor(all, all),
	} {
		for f, commands := range p.restore {
			var changed []string
			for line := range strings.Lines(commands) {
				if table, ok := strings.CutPrefix(line, "*"); ok {
					changed = append(changed, strings.TrimSpace(table))
				}
			}
			want := map[string]int{"all": len(tablesUsed), "one": 1}[name]
			if !slices.Equal(p.tables[f], changed) || len(changed) != want {
				t.Errorf("%s: the plan names %q, and its commands change %q", name, p.tables[f], changed)
			}
		}
	}
}

// TestNoStepOpens: at no step of a plan does the kernel accept a packet that both the old and the new state drop.
func TestNoStepOpens(t *testing.T) {
	onto := func(have state, r ruleset.Ruleset, plain bool) *lowered {
		if plain {
			return lower(r)
		}
		return lowerOnto(have, r)
	}
	inOneStep, moved := 0, 0
	for seed := range uint64(100) {
		r := rand.New(rand.NewPCG(seed, 1))
		s := policytest.State(r)
		wasPlain, isPlain := seed%8 == 1 || seed%8 == 2, seed%8 == 2 || seed%8 == 3
		m := newModel(t)
		old := policytest.Bounds(r).Merge(policy.Compile(s), nil)
		m.plan(makePlan(m.state, onto(m.state, old, wasPlain)), func(string) {})
		for range 2 {
			next := policytest.Change(r, s)
			// Each ruleset has other bounds for merging, because another version of weir may merge sets differently.
			want := policytest.Bounds(r).Merge(policy.Compile(next), nil)
			packets := policytest.Packets(next)
			before, after := simulator(t, old), simulator(t, want)
			for _, p := range packets {
				if m.allows(p) != before.Allows(p) {
					t.Fatalf("seed %d: %+v passes: %v, and the ruleset says otherwise", seed, p, m.allows(p))
				}
			}
			denied := slices.DeleteFunc(packets, func(p ruleset.Packet) bool { return before.Allows(p) || after.Allows(p) })
			p := makePlan(m.state, onto(m.state, want, isPlain))
			m.plan(p, func(step string) {
				for _, p := range denied {
					if m.allowsWith(0, p) {
						t.Fatalf("seed %d: after %q %+v passes, which neither the old nor the new state allows", seed, step, p)
					}
				}
			})
			if p := makePlan(m.state, onto(m.state, want, isPlain)); !p.empty() {
				t.Fatalf("seed %d: carried out, the plan leaves %+v to be done", seed, p)
			}
			if !wasPlain && !isPlain {
				some, of := steps(p)
				inOneStep, moved = inOneStep+some, moved+of
			}
			s, old, wasPlain = next, want, isPlain
		}
	}
	t.Logf("%d of %d pods changed their class in one step", inOneStep, moved)
}

func steps(p plan) (inOneStep, all int) {
	adds, dels := map[string]bool{}, map[string]bool{}
	for _, c := range slices.Concat(p.before, p.across, p.after) {
		if _, ok := directionBit(c.set); !ok {
			continue
		}
		key := c.set + c.String()
		if c.del {
			dels[key] = true
		} else {
			adds[key] = true
		}
	}
	for key := range adds {
		if all++; !dels[key] {
			inOneStep++
		}
	}
	return inOneStep, all
}

// TestDenyAllChangesSetsOnly: adding or deleting a policy that denies everything changes only sets. To change rules
// would take much longer.
func TestDenyAllChangesSetsOnly(t *testing.T) {
	var open policy.State
	for seed := uint64(0); len(open.Endpoints) == 0; seed++ {
		open = policytest.State(rand.New(rand.NewPCG(seed, 1)))
	}
	open.Policies = nil
	denied := open
	for _, ns := range open.Namespaces {
		denied.Policies = append(denied.Policies, &networkingv1.NetworkPolicy{
			ObjectMeta: metav1.ObjectMeta{Namespace: ns.Name, Name: "deny-all"},
			Spec: networkingv1.NetworkPolicySpec{
				PolicyTypes: []networkingv1.PolicyType{networkingv1.PolicyTypeIngress, networkingv1.PolicyTypeEgress},
			},
		})
	}
	before, after := policy.Compile(open), policy.Compile(denied)
	for _, p := range []plan{planFor(before, after), planFor(after, before)} {
		if len(p.before)+len(p.across)+len(p.after) == 0 || len(p.create)+len(p.destroy) != 0 || p.restores() {
			t.Errorf("between no policy and one that denies all: %+v, want changes of entries only", p)
		}
	}
}

// TestAPodThatIsExpectedChangesSetsOnly: the classes of a pod exist as soon as the Pod object names this node. So
// attaching the pod changes only sets. Exceptions are chained pods, pods with enforcement off, and the first pod of a
// family.
func TestAPodThatIsExpectedChangesSetsOnly(t *testing.T) {
	for seed := range uint64(100) {
		s := policytest.State(rand.New(rand.NewPCG(seed, 1)))
		if len(s.Endpoints) == 0 {
			continue
		}
		e := s.Endpoints[0]
		before := s
		before.Endpoints = s.Endpoints[1:]
		before.Pods = slices.Clone(s.Pods)
		known := false
		for i, p := range before.Pods {
			if p.Namespace == e.Pod.Namespace && p.Name == e.Pod.Name && policy.SameUID(p.UID, e.Pod.UID) && !p.HostNetwork &&
				!p.Finished {
				before.Pods[i].Addresses, before.Pods[i].NodeName = nil, s.Node
				known = true
			}
		}
		lastOfFamily := policy.Compile(before).Has(conf.IPv6) != policy.Compile(s).Has(conf.IPv6)
		// Rules may name the link of a chained pod, so attaching the pod may change rules.
		if !known || lastOfFamily || e.Enforcement == conf.Off || e.Chained {
			continue
		}
		if p := planFor(policy.Compile(before), policy.Compile(s)); p.restores() {
			t.Errorf("seed %d: attaching %s changes rules: %s", seed, e.Pod, p.restore)
		}
	}
}

// TestPeersCloseBeforeAndOpenAfter: the plan deletes old peers before the rules change, and adds new peers afterwards.
// So no old rule accepts packets of new peers, and no new rule accepts packets of old peers.
func TestPeersCloseBeforeAndOpenAfter(t *testing.T) {
	set := func(addrs ...string) ruleset.Ruleset {
		s := ruleset.Set{Name: "weir-sel-X", Kind: ruleset.Addresses, Role: ruleset.Peers}
		for _, a := range addrs {
			s.Entries = s.Entries.With(
				ruleset.Entry{Element: ruleset.Element{Prefix: netip.MustParsePrefix(a + "/32")}, Comment: "ns/" + a})
		}
		return ruleset.Ruleset{Sets: []ruleset.Set{s}}
	}
	p := planFor(set("10.0.0.1", "10.0.0.2"), set("10.0.0.2", "10.0.0.3"))
	if len(p.before) != 1 || !p.before[0].del || p.before[0].Prefix.String() != "10.0.0.1/32" {
		t.Errorf("before the rules change: %+v, want 10.0.0.1 out", p.before)
	}
	if len(p.after) != 1 || p.after[0].del || p.after[0].Prefix.String() != "10.0.0.3/32" {
		t.Errorf("after the rules change: %+v, want 10.0.0.3 in", p.after)
	}
}

// TestCloses: plan.closes is true if a change may deny an established connection. It is false if a change only allows
// more, or denies only addresses of pods that have ended.
func TestCloses(t *testing.T) {
	set := func(role ruleset.SetRole, addrs ...string) ruleset.Ruleset {
		s := ruleset.Set{Name: fmt.Sprint("weir-", role), Kind: ruleset.Addresses, Role: role}
		for _, a := range addrs {
			s.Entries = s.Entries.With(
				ruleset.Entry{Element: ruleset.Element{Prefix: netip.MustParsePrefix(a + "/32")}, Comment: "ns/pod"})
		}
		return ruleset.Ruleset{Sets: []ruleset.Set{s}}
	}
	join := func(a, b ruleset.Ruleset) ruleset.Ruleset {
		return ruleset.Ruleset{Sets: slices.Concat(a.Sets, b.Sets)}
	}
	other := set(ruleset.Checked, "10.0.0.1")
	for e := range other.Sets[0].Entries.All() {
		e.Comment = "ns/other"
		other.Sets[0].Entries = other.Sets[0].Entries.With(e)
	}
	for name, tc := range map[string]struct {
		have, want ruleset.Ruleset
		closes     bool
	}{
		"nothing":           {set(ruleset.Peers, "10.0.0.1"), set(ruleset.Peers, "10.0.0.1"), false},
		"a peer comes":      {set(ruleset.Peers), set(ruleset.Peers, "10.0.0.1"), false},
		"a peer goes":       {set(ruleset.Peers, "10.0.0.1"), set(ruleset.Peers), true},
		"a pod is judged":   {set(ruleset.Checked), set(ruleset.Checked, "10.0.0.1"), false},
		"another's words":   {set(ruleset.Checked, "10.0.0.1"), other, false},
		"a pod goes":        {set(ruleset.Checked, "10.0.0.1"), set(ruleset.Checked), false},
		"a pod is attached": {set(ruleset.Attached), set(ruleset.Attached, "10.0.0.1"), false},
		"a pod is let in":   {set(ruleset.Members), set(ruleset.Members, "10.0.0.1"), false},
		"a pod is shut in":  {set(ruleset.Members, "10.0.0.1"), set(ruleset.Members), true},
		"a pod ends": {
			join(set(ruleset.Members, "10.0.0.1"), set(ruleset.Attached, "10.0.0.1")),
			join(set(ruleset.Members), set(ruleset.Attached)), false,
		},
		"one ends, one not": {
			join(set(ruleset.Peers, "10.0.0.1", "10.0.0.2"), set(ruleset.Attached, "10.0.0.1")),
			join(set(ruleset.Peers), set(ruleset.Attached)), true,
		},
		"a peer ends": {
			join(set(ruleset.Peers, "10.0.0.1"), set(ruleset.Attached, "10.0.0.1")),
			join(set(ruleset.Peers), set(ruleset.Attached)), false,
		},
		"one stays": {
			join(set(ruleset.Peers, "10.0.0.1"), set(ruleset.Attached, "10.0.0.1")),
			join(set(ruleset.Peers), set(ruleset.Attached, "10.0.0.1")), true,
		},
		"the rules change": {
			ruleset.Ruleset{},
			ruleset.Ruleset{Chains: []ruleset.Chain{{Name: "WEIR-X"}}},
			true,
		},
		"a set nobody uses": {set(ruleset.Peers, "10.0.0.1"), ruleset.Ruleset{}, false},
	} {
		if p := planFor(tc.have, tc.want); p.closes != tc.closes {
			t.Errorf("%s: closes is %v: %+v", name, p.closes, p)
		}
	}
	opened := 0
	for seed := range uint64(1000) {
		r := rand.New(rand.NewPCG(seed, 2))
		s := policytest.State(r)
		next := policytest.Change(r, s)
		bounds := policytest.Bounds(r)
		old, want := bounds.Merge(policy.Compile(s), nil), bounds.Merge(policy.Compile(next), nil)
		p := planFor(old, want)
		if p.closes || p.empty() {
			continue
		}
		opened++
		before, after := simulator(t, old), simulator(t, want)
		was, is := attached(old), attached(want)
		// An address that another pod gets has no established connections. So the test checks only packets whose
		// addresses keep their pods.
		stays := func(a netip.Addr) bool { return was[a] == is[a] }
		for _, packet := range append(policytest.Packets(s), policytest.Packets(next)...) {
			if stays(packet.Src) && stays(packet.Dst) && before.Allows(packet) && !after.Allows(packet) {
				t.Fatalf("seed %d: the plan says that it closes nothing, and %+v passed before it only: %+v", seed, packet, p)
			}
		}
	}
	if opened < 100 {
		t.Errorf("only %d of 1000 changes only open", opened)
	}
}

func attached(r ruleset.Ruleset) map[netip.Addr]bool {
	addrs := map[netip.Addr]bool{}
	for _, s := range r.Sets {
		if s.Role == ruleset.Attached {
			for e := range s.Entries.All() {
				addrs[e.Prefix.Addr()] = true
			}
		}
	}
	return addrs
}

func simulator(t *testing.T, r ruleset.Ruleset) *ruleset.Simulator {
	t.Helper()
	j, err := ruleset.NewSimulator(r)
	if err != nil {
		t.Fatal(err)
	}
	return j
}

func TestRestoreTouchesOnlyWhatDiffers(t *testing.T) {
	s := policytest.State(rand.New(rand.NewPCG(7, 7)))
	want := policy.Compile(s)
	have := stateOf(want)
	forward := have.tables[conf.IPv4]["mangle"].rules["FORWARD"][0]
	for _, tc := range []struct {
		name   string
		change func(state)
		want   []string // texts in the commands for iptables-restore; if empty, there must be no command
		not    string
	}{
		{"nothing", func(state) {}, nil, ""},
		{"a stranger's chain and rule", func(s state) {
			s.tables[conf.IPv4]["mangle"].rules["DOCKER"] = []string{"-j ACCEPT"}
			s.tables[conf.IPv4]["mangle"].rules["FORWARD"] = append(s.tables[conf.IPv4]["mangle"].rules["FORWARD"], "-j DOCKER")
		}, nil, ""},
		{"a stranger's rule before weir's", func(s state) {
			s.tables[conf.IPv4]["mangle"].rules["FORWARD"] = []string{"-j ACCEPT", forward}
		}, []string{"-D FORWARD " + forward, "-I FORWARD 1 " + forward}, "-j ACCEPT"},
		{"weir's rule twice", func(s state) {
			s.tables[conf.IPv4]["mangle"].rules["FORWARD"] = []string{forward, forward}
		}, []string{"-D FORWARD " + forward + "\n-D FORWARD", "-I FORWARD 1"}, ":WEIR"},
		{
			"weir's rule gone", func(s state) { s.tables[conf.IPv4]["mangle"].rules["FORWARD"] = nil },
			[]string{"-I FORWARD 1 " + forward},
			"-D",
		},
		{
			"a flushed chain", func(s state) { s.tables[conf.IPv4]["mangle"].rules["WEIR-FORWARD"] = nil },
			[]string{":WEIR-FORWARD - [0:0]\n-A WEIR-FORWARD"},
			"WEIR-INPUT",
		},
		{"an old version's chain", func(s state) {
			s.tables[conf.IPv4]["mangle"].rules["WEIR-OLD"] = []string{"-j DROP"}
			s.tables[conf.IPv4]["mangle"].rules["INPUT"] = append(s.tables[conf.IPv4]["mangle"].rules["INPUT"], "-j WEIR-OLD")
		}, []string{":WEIR-OLD - [0:0]", "-D INPUT -j WEIR-OLD", "-X WEIR-OLD"}, ":WEIR-FORWARD"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			s := stateOf(want)
			tc.change(s)
			got := makePlan(s, lowerOnto(s, want)).restore[conf.IPv4]
			if len(tc.want) == 0 && got != "" {
				t.Errorf("restore:\n%s", got)
			}
			for _, w := range tc.want {
				if !strings.Contains(got, w) {
					t.Errorf("restore lacks %q:\n%s", w, got)
				}
			}
			if tc.not != "" && strings.Contains(got, tc.not) {
				t.Errorf("restore has %q:\n%s", tc.not, got)
			}
		})
	}
}

// TestAcceptsAheadOfWhatRefusesAll: if filter FORWARD ends with rules that refuse everything, weir's jump is directly
// before these rules. Otherwise the jump is the last rule, so that other programs' rules apply to pods' packets.
func TestAcceptsAheadOfWhatRefusesAll(t *testing.T) {
	want := policy.Compile(policy.State{})
	const jump = "-j WEIR-ACCEPT"
	const reject, drop = "-j REJECT --reject-with icmp-host-prohibited", "-d 169.254.169.254/32 -j DROP"
	for name, tc := range map[string]struct {
		forward, chain []string // rules of FORWARD, and of another program's chain
		want           string   // the command that puts the jump into its place; "" if the jump is already there
	}{
		"an empty chain":       {nil, nil, "-A FORWARD " + jump},
		"a rule of somebody's": {[]string{drop}, nil, "-A FORWARD " + jump},
		"ends in REJECT":       {[]string{drop, reject}, nil, "-I FORWARD 2 " + jump},
		"ends in DROP, with words": {
			[]string{drop, `-m comment --comment "no \"more\" -j ACCEPT" -j DROP`},
			nil, "-I FORWARD 2 " + jump,
		},
		"ends in REJECT, with a word": {[]string{`-m comment --comment end -j REJECT`}, nil, "-I FORWARD 1 " + jump},
		"behind the REJECT":           {[]string{drop, reject, jump}, nil, "-I FORWARD 2 " + jump},
		"ahead of the REJECT":         {[]string{drop, jump, reject}, nil, ""},
		"ahead of somebody's rules":   {[]string{jump, drop, reject}, nil, "-I FORWARD 2 " + jump},
		"ahead of the last rule":      {[]string{jump, drop}, nil, "-A FORWARD " + jump},
		"the last rule":               {[]string{drop, jump}, nil, ""},
		"twice":                       {[]string{jump, reject, jump}, nil, "-I FORWARD 1 " + jump},
		"refuses some":                {[]string{"-i eth0 -j REJECT"}, nil, "-A FORWARD " + jump},
		"accepts all":                 {[]string{"-j ACCEPT"}, nil, "-A FORWARD " + jump},
		"a chain that refuses all":    {[]string{drop, "-j X"}, []string{reject}, "-I FORWARD 2 " + jump},
		"a chain that logs and refuses all": {
			[]string{drop, "-g X"},
			[]string{"-j LOG --log-prefix x", reject},
			"-I FORWARD 2 " + jump,
		},
		"a chain that refuses some in between": {[]string{"-j X"}, []string{drop, reject}, "-A FORWARD " + jump},
		"refuses each protocol, and all": {
			[]string{drop, "-p tcp -j REJECT --reject-with tcp-reset", "-p udp -m udp -j REJECT", reject},
			nil,
			"-I FORWARD 2 " + jump,
		},
		"refuses a port, and all": {
			[]string{"-p tcp -m tcp --dport 8081 -j DROP", reject}, nil, "-I FORWARD 2 " + jump,
		},
		"refuses whatever is new": {
			[]string{drop, "-m conntrack --ctstate INVALID,NEW -j REJECT"},
			nil,
			"-I FORWARD 2 " + jump,
		},
		"refuses what is invalid": {[]string{"-m conntrack --ctstate INVALID -j DROP"}, nil, "-A FORWARD " + jump},
		"a chain that logs some and refuses all": {
			[]string{drop, "-j X"},
			[]string{`-m limit --limit 5/min -j LOG --log-prefix "no -j "`, "-p tcp -j REJECT", "-j DROP"},
			"-I FORWARD 2 " + jump,
		},
		"a chain that refuses one protocol": {[]string{"-j X"}, []string{"-p tcp -j REJECT"}, "-A FORWARD " + jump},
		"a comment like a target": {
			[]string{"-m comment --comment -j -i eth0 -j DROP"},
			nil,
			"-A FORWARD " + jump,
		},
		"a chain that goes nowhere": {[]string{"-j X"}, nil, "-A FORWARD " + jump},
		"a chain by way of empty ones": {
			[]string{"-j X"},
			[]string{"-j EMPTY", "-j EMPTY", "-j DROP"},
			"-I FORWARD 1 " + jump,
		},
		"a chain by way of one that accepts": {[]string{"-j X"}, []string{"-j SOME", "-j DROP"}, "-A FORWARD " + jump},
		"chains in a circle":                 {[]string{"-j X"}, []string{"-j X"}, "-A FORWARD " + jump},
	} {
		t.Run(name, func(t *testing.T) {
			s := stateOf(want)
			rules := s.tables[conf.IPv4]["filter"].rules
			rules["FORWARD"], rules["X"], rules["EMPTY"], rules["SOME"] = tc.forward, tc.chain, nil,
				[]string{"-i eth0 -j ACCEPT"}
			got := makePlan(s, lowerOnto(s, want)).restore[conf.IPv4]
			if tc.want == "" && got != "" || !strings.Contains(got, tc.want) {
				t.Errorf("want %q:\n%s", tc.want, got)
			}
		})
	}
}

func FuzzParseSave(f *testing.F) {
	f.Add("*mangle\n:FORWARD ACCEPT [0:0]\n-A FORWARD -j WEIR-FORWARD\nCOMMIT\n")
	f.Add("# Warning\n:\n-A \n-A X")
	f.Fuzz(func(_ *testing.T, out string) {
		have := state{tables: [...]tables{conf.IPv4: {"mangle": parseSave(out)}, conf.IPv6: {}}}
		makePlan(have, lowerOnto(have, policy.Compile(policy.State{})))
	})
}
