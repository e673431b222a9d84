package conf

import (
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
)

// TestMonitoring: promtool accepts the alerts and the dashboard's queries. docs/metrics.md explains each alert, and
// each metric in the alerts and the queries.
func TestMonitoring(t *testing.T) {
	promtool := func(args ...string) {
		t.Helper()
		if out, err := exec.Command("promtool", args...).CombinedOutput(); err != nil {
			t.Errorf("promtool %s: %v (make test installs it)\n%s", strings.Join(args, " "), err, out)
		}
	}
	promtool("check", "rules", "--lint=all", "--lint-fatal", "monitoring/alerts.yaml")
	promtool("test", "rules", "monitoring/alerts_test.yaml", "monitoring/alerts_days_test.yaml")

	dashboard := read(t, "monitoring/dashboard.json")
	var board struct {
		Panels []struct {
			Title   string
			Targets []struct{ Expr string }
		}
	}
	if err := json.Unmarshal([]byte(dashboard), &board); err != nil {
		t.Fatal(err)
	}
	var queries strings.Builder
	queries.WriteString("groups:\n- name: dashboard\n  rules:\n")
	for _, p := range board.Panels {
		if len(p.Targets) == 0 {
			t.Errorf("the panel %q has no query", p.Title)
		}
		for _, q := range p.Targets {
			expr := strings.NewReplacer("$__rate_interval", "5m", "$instance", ".*").Replace(q.Expr)
			fmt.Fprintf(&queries, "  - {record: 'panel:%d', expr: %q}\n", queries.Len(), expr)
		}
	}
	file := filepath.Join(t.TempDir(), "queries.yaml")
	if err := os.WriteFile(file, []byte(queries.String()), 0o600); err != nil {
		t.Fatal(err)
	}
	promtool("check", "rules", file)

	documented := read(t, "../docs/metrics.md")
	alerts := read(t, "monitoring/alerts.yaml")
	for _, name := range regexp.MustCompile(`\bweir_[a-z_]+`).FindAllString(alerts+dashboard, -1) {
		base := strings.TrimSuffix(strings.TrimSuffix(name, "_bucket"), "_count")
		if !strings.Contains(documented, "`"+base+"`") {
			t.Errorf("docs/metrics.md doesn't explain %s", base)
		}
	}
	for _, alert := range regexp.MustCompile(`alert: (\w+)`).FindAllStringSubmatch(alerts, -1) {
		if !strings.Contains(documented, "| `"+alert[1]+"` |") {
			t.Errorf("docs/metrics.md doesn't explain the alert %s", alert[1])
		}
	}
}

func read(t *testing.T, path string) string {
	t.Helper()
	data, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	return string(data)
}
