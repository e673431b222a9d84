package nftables

import (
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/weir-net/weir/conf"
	"github.com/weir-net/weir/netfilter/nftnl"
	"github.com/weir-net/weir/netfilter/probe"
	"github.com/weir-net/weir/test/nodetest"
)

// TestLacksNothing: this kernel has all that weir needs. The trial leaves nothing, also in the node's own namespace.
func TestLacksNothing(t *testing.T) {
	if !nodetest.Isolated(t) {
		return
	}
	nodetest.Outside(t) // gives the node an address of IPv6
	for _, f := range conf.Families {
		if lacks := lacksIn(f); len(lacks) > 0 {
			t.Errorf("%s: the node lacks %q", f, lacks)
		}
	}
	began := time.Now()
	if lacks := Lacks(t.Context()); lacks != nil {
		t.Errorf("the node lacks %q", lacks)
	}
	t.Logf("a trial took %v", time.Since(began))
	if left := nodetest.Run(t, "nft", "list", "ruleset"); left != "" {
		t.Errorf("the trials have left:\n%s", left)
	}
}

// TestRulesWithoutEffect: if the trial's table lacks the rule of one need, the trial names that need.
func TestRulesWithoutEffect(t *testing.T) {
	if !nodetest.Isolated(t) {
		return
	}
	for _, f := range conf.Families {
		for i := range len(open(t, f).Needs) {
			p := open(t, f)
			at, need := nftnl.Table{Family: tables[f].Family, Name: conf.TrialSet}, p.Needs[i]
			err := trialBatch(at, loweredTrial(p), func(r *rule) bool {
				same := slices.Equal(r.Ports, need.Rule.Ports[:1]) || len(need.Rule.Ports) > 1 && len(r.Sets) == 1 &&
					strings.HasPrefix(r.Sets[0].Name, conf.NumberSets)
				return !same || r.Action != need.Rule.Action && i > 0
			}).Commit()
			if err != nil {
				t.Fatal(err)
			}
			wrong, err := p.Wrong()
			if i == 1 { // without this rule, it looks as if other programs dropped the packets
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

func open(t *testing.T, f conf.Family) *probe.Trial {
	t.Helper()
	p, err := probe.New(f)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = p.Close() })
	return p
}
