package nftables

import (
	"encoding/binary"
	"fmt"
	"math/rand/v2"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/weir-net/weir/conf"
	"github.com/weir-net/weir/internal/attrs"
	"github.com/weir-net/weir/netfilter/nftnl"
	"github.com/weir-net/weir/netfilter/probe"
	"github.com/weir-net/weir/policy"
	"github.com/weir-net/weir/policy/policytest"
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
	for _, f := range conf.Families {
		if lacks := lacksIn(f); len(lacks) > 0 {
			t.Errorf("%s: the node lacks %q", f, lacks)
		}
	}
	began := time.Now()
	if lacks, err := Lacks(t.Context()); lacks != nil || err != nil {
		t.Errorf("the node lacks %q, %v", lacks, err)
	}
	t.Logf("a trial took %v", time.Since(began))
	if left := nodetest.Run(t, "nft", "list", "ruleset"); left != "" {
		t.Errorf("the trials have left:\n%s", left)
	}
}

// TestRulesWithoutEffect: if the rule that tests a Need is missing in the trial's table, Wrong returns this Need. Only
// for need 1, Wrong returns an error instead.
func TestRulesWithoutEffect(t *testing.T) {
	if !nodetest.Isolated(t) {
		return
	}
	nodetest.Outside(t) // gives the node an address with which it can masquerade
	for _, f := range conf.Families {
		for i := range len(open(t, f).Needs) {
			p := open(t, f)
			at, need := nftnl.Table{Family: tables[f].Family, Name: conf.TrialSet}, p.Needs[i]
			err := trialBatch(at, loweredTrial(p), func(r *rule) bool {
				return r.from == nil || !r.from.Equal(need.Rule)
			}).Commit()
			if err != nil {
				t.Fatal(err)
			}
			wrong, err := p.Wrong(func() { endTrial(at) })
			if i == 1 { // if need 1 fails, Wrong assumes that other programs' rules disturb the packets
				if err == nil {
					t.Errorf("%s: no error without the rule of %s", f, need.Name)
				}
			} else if err != nil || len(wrong) != 1 || wrong[0].Name != need.Name {
				t.Errorf("%s: without the rule of %s, these are wrong: %v, %v", f, need.Name, wrong, err)
			}
			endTrial(at)
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
	nodetest.EachDisturbance(t, "nft", func(t *testing.T) {
		for _, f := range conf.Families {
			if lacks := lacksIn(f); len(lacks) > 0 {
				t.Errorf("%s: the node lacks %q", f, lacks)
			}
		}
	})
}

// TestTrialsTryAllFeatures: the trial tries each expression and each layout of sets that weir's rules can't do without.
func TestTrialsTryAllFeatures(t *testing.T) {
	without := lacks{ports: true, logs: true} // weir can do without matches of bridge ports, and without logs
	for _, f := range conf.Families {
		tried := featuresOf(loweredTrial(open(t, f)))
		missing := map[string]string{}
		check := func(s policy.State) {
			l := (&lowering{lacks: without}).lower(policy.Compile(s))
			for feature, of := range featuresOf(l[f]) {
				if tried[feature] == "" {
					missing[feature] = of
				}
			}
		}
		golden.Each(t, "../..", func(_ *testing.T, _ string, s policy.State) { check(s) })
		for i := range uint64(100) {
			check(policytest.State(rand.New(rand.NewPCG(1, i))))
		}
		for feature, of := range missing {
			t.Errorf("%s: no trial tries %s, which the rules have: %s", f, feature, of)
		}
	}
}

// featuresOf returns the features that the table uses: expressions, layouts of sets, and chains for address
// translation. The value of a feature is a rule, set or chain that uses the feature.
func featuresOf(of *table) map[string]string {
	all := map[string]string{}
	if of == nil {
		return all
	}
	layouts := map[string]string{}
	for _, s := range of.sets {
		layouts[s.Name] = s.Layout.String()
		all["sets of "+layouts[s.Name]] = s.Name
	}
	for _, c := range of.chains {
		if c.Hook != nil && c.Hook.Kind == "nat" {
			all["chains for address translation"] = c.Name
		}
		for i := range c.rules {
			written, words := c.rules[i].write(of.family)
			for name, values := range written.Expressions.All() {
				all[feature(string(name), values, layouts)] = words
			}
		}
	}
	return all
}

func feature(name string, values []byte, layouts map[string]string) string {
	fields := attrs.Map(values)
	number := func(kind uint16) uint32 {
		if v := fields[kind]; len(v) == 4 {
			return binary.BigEndian.Uint32(v)
		}
		return 0
	}
	switch name {
	case "meta":
		return fmt.Sprintf("meta %d", number(unix.NFTA_META_KEY))
	case "ct":
		return fmt.Sprintf("ct %d, writes: %v", number(unix.NFTA_CT_KEY), fields[unix.NFTA_CT_SREG] != nil)
	case "payload":
		return fmt.Sprintf("payload %d", number(unix.NFTA_PAYLOAD_BASE))
	case "cmp":
		return fmt.Sprintf("cmp %d", number(unix.NFTA_CMP_OP))
	case "lookup":
		return fmt.Sprintf("lookup in %s, for a verdict: %v, inverted: %v", layouts[attrs.Text(fields[unix.NFTA_LOOKUP_SET])],
			fields[unix.NFTA_LOOKUP_DREG] != nil, number(unix.NFTA_LOOKUP_FLAGS))
	case "immediate":
		v, ok := nftnl.VerdictIn(values)
		return fmt.Sprintf("immediate, verdict: %v %d", ok, v.Code)
	case "masq":
		return fmt.Sprintf("masq with flags %d", number(unix.NFTA_MASQ_FLAGS))
	}
	return name
}

func open(t *testing.T, f conf.Family) *probe.Trial {
	t.Helper()
	p := probe.New(f)
	t.Cleanup(func() { _ = p.Close() })
	return p
}

// TestTrialsLeaveOtherPackets: while a trial's rules are in the kernel, other programs' packets pass, even packets to
// the ports of the trial's rules.
func TestTrialsLeaveOtherPackets(t *testing.T) {
	if !nodetest.Isolated(t) {
		return
	}
	outside := nodetest.Outside(t)
	for _, f := range conf.Families {
		p := open(t, f)
		at := nftnl.Table{Family: tables[f].Family, Name: conf.TrialSet}
		if err := trialBatch(at, loweredTrial(p), nil).Commit(); err != nil {
			t.Fatal(err)
		}
		for _, n := range p.Needs {
			nodetest.StrangersPass(t, outside, f == conf.IPv6, n.Rule.Ports[0].First)
		}
	}
}
