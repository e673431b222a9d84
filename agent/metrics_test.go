package agent

import (
	"os"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/testutil/promlint"

	"github.com/weir-net/weir/bridge"
	"github.com/weir-net/weir/netfilter"
	"github.com/weir-net/weir/policy"
	"github.com/weir-net/weir/policy/enforced"
	"github.com/weir-net/weir/policy/ruleset"
)

// TestDocumentedMetrics: docs/metrics.md has all metrics, and no others. It also has all faults and kinds of repair.
func TestDocumentedMetrics(t *testing.T) {
	text, err := os.ReadFile("../docs/metrics.md")
	if err != nil {
		t.Fatal(err)
	}
	var documented []string
	for _, name := range regexp.MustCompile(`\bweir_[a-z_]+`).FindAllString(string(text), -1) {
		documented = append(documented, strings.TrimSuffix(strings.TrimSuffix(name, "_bucket"), "_count"))
	}
	for p := range parts {
		if !strings.Contains(string(text), "\n| `"+string(p)+"` |") {
			t.Errorf("docs/metrics.md doesn't say what the fault %s is", p)
		}
	}
	for _, kind := range bridge.Kinds {
		if !strings.Contains(string(text), "`"+string(kind)+"`") {
			t.Errorf("docs/metrics.md lacks the kind of repair %s", kind)
		}
	}
	state := func() *status {
		sets := []ruleset.Set{{Name: "weir-pods"}}
		return &status{
			enforced: &snapshot{ruleset: ruleset.Ruleset{Sets: sets}}, lastSync: time.Unix(1e9, 0),
			sets:       func(ruleset.Ruleset) []netfilter.KernelSet { return []netfilter.KernelSet{{Name: "weir-pods"}} },
			problems:   []ruleset.Problem{{Object: "Node x", Field: "spec"}},
			unenforced: []policy.Unenforced{{Kind: "CiliumNetworkPolicy.cilium.io"}},
		}
	}
	pedantic := prometheus.NewPedanticRegistry()
	pedantic.MustRegister(statusCollector(state))
	if _, err := pedantic.Gather(); err != nil {
		t.Errorf("Describe and Collect differ: %v", err)
	}
	m := newMetrics(state)
	m.registry.MustRegister(&positionCollector{now: func() (enforced.Position, bool) {
		return enforced.Position{Pods: 1, Namespaces: 2, Nodes: 3, Policies: 4}, true
	}})
	families, err := m.registry.Gather()
	if err != nil {
		t.Fatal(err)
	}
	var served []string
	for _, f := range families {
		name := f.GetName()
		if !strings.HasPrefix(name, "weir_") {
			continue
		}
		served = append(served, name)
		if !slices.Contains(documented, name) {
			t.Errorf("docs/metrics.md doesn't say what %s is", name)
		}
	}
	for _, name := range documented {
		if !slices.Contains(served, name) {
			t.Errorf("docs/metrics.md speaks of %s, which there isn't", name)
		}
	}
	problems, err := promlint.NewWithMetricFamilies(families).Lint()
	if err != nil {
		t.Fatal(err)
	}
	for _, p := range problems {
		if strings.HasPrefix(p.Metric, "weir_") {
			t.Errorf("%s: %s", p.Metric, p.Text)
		}
	}
}
