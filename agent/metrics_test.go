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
	families, err := filledRegistry(t).Gather()
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

// filledRegistry returns a registry in which each of weir's metrics has a value.
func filledRegistry(t *testing.T) *prometheus.Registry {
	t.Helper()
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
	return m.registry
}

// The metrics and faults of commit 5a06764, with which CHANGELOG.md compares the newest commit.
var (
	earlierMetrics = strings.Fields(`weir_ready weir_last_sync_timestamp_seconds weir_fault weir_problems weir_problem_info
		weir_endpoints weir_policies weir_classes weir_sets weir_set_entries weir_node_networks weir_node_moves_total
		weir_attachments_reaped_total weir_sync_duration_seconds weir_enrolment_duration_seconds
		weir_kernel_changes_total weir_kernel_failures_total weir_kernel_repairs_total weir_connections_cut_total
		weir_info`)
	earlierParts = []part{partSource, partAPI, partRecords, partKernel, partNodes}
)

// TestMetricsOfTheChangelog: CHANGELOG.md names all metrics, faults and results of enrolments that commit 5a06764
// lacks.
func TestMetricsOfTheChangelog(t *testing.T) {
	text, err := os.ReadFile("../CHANGELOG.md")
	if err != nil {
		t.Fatal(err)
	}
	_, added, _ := strings.Cut(string(text), "\n### Added\n")
	added, _, _ = strings.Cut(added, "\n### ")
	families, err := filledRegistry(t).Gather()
	if err != nil {
		t.Fatal(err)
	}
	for _, f := range families {
		name := f.GetName()
		if strings.HasPrefix(name, "weir_") && !slices.Contains(earlierMetrics, name) &&
			!strings.Contains(added, "`"+name+"`") {
			t.Errorf("CHANGELOG.md doesn't name the new metric %s", name)
		}
	}
	values := func(label string) string {
		_, item, _ := strings.Cut(added, "- The label "+label+" ")
		item, _, _ = strings.Cut(item, "\n- ")
		return item
	}
	faults, outcomes := values("`part`"), values("`result`")
	for p := range parts {
		if !slices.Contains(earlierParts, p) && !strings.Contains(faults, "`"+string(p)+"`") {
			t.Errorf("CHANGELOG.md doesn't name the new fault %s", p)
		}
	}
	earlierResults := []string{"enrolled", "unknown", "unavailable", "invalid"}
	for _, r := range results {
		if !slices.Contains(earlierResults, r) && !strings.Contains(outcomes, "`"+r+"`") {
			t.Errorf("CHANGELOG.md doesn't name the new result %s", r)
		}
	}
}
