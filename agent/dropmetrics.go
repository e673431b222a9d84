package agent

import (
	"strings"
	"sync"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/weir-net/weir/agent/drops"
	"github.com/weir-net/weir/agentapi"
	"github.com/weir-net/weir/internal/excerpt"
	"github.com/weir-net/weir/policy/ruleset"
)

// maxDropSeries is how many series a metric of drops can have. Drops of further namespaces and policies share series
// whose labels have the value dropsElsewhere.
const maxDropSeries = 500

const dropsElsewhere = "(other)"

type dropCounts struct {
	mu     sync.Mutex
	counts map[dropSeries]uint64
	lost   uint64
}

type dropSeries struct{ direction, namespace, policy, reason string }

func newDropCounts() *dropCounts {
	c := &dropCounts{counts: map[dropSeries]uint64{}}
	for _, d := range [...]ruleset.Direction{ruleset.Ingress, ruleset.Egress} {
		c.counts[dropSeries{string(d), dropsElsewhere, dropsElsewhere, agentapi.ByPolicy}] = 0
	}
	return c
}

func (c *dropCounts) count(entries []drops.Entry) {
	c.mu.Lock()
	defer c.mu.Unlock()
	for _, e := range entries {
		if e.Kind == agentapi.DropLost {
			c.lost += e.Count
			continue
		}
		if e.Reason == agentapi.ByAudit { // packets with this reason have passed
			continue
		}
		s := dropSeries{direction: e.Direction, reason: e.Reason}
		if local, ok := e.Local(); ok {
			s.namespace, _, _ = strings.Cut(local.Pod, "/")
		}
		s.policy = policyLabel(e.Policies)
		if _, ok := c.counts[s]; !ok && len(c.counts) >= maxDropSeries {
			s.namespace, s.policy = dropsElsewhere, dropsElsewhere
		}
		c.counts[s] += e.Count
	}
}

// policyLabel returns the policies' names without their namespaces. It shortens a long list.
func policyLabel(policies []string) string {
	names := make([]string, len(policies))
	for i, p := range policies {
		_, names[i], _ = strings.Cut(p, "/")
	}
	return excerpt.List(names, ",")
}

var (
	dropsDesc = desc("weir_drops_total", "Packets that were dropped and logged, by direction, namespace of the pod, the "+
		"policies that isolate it, and reason.", "direction", "namespace", "policy", "reason")
	dropsLostDesc = desc("weir_drops_lost_total",
		"Packets that were dropped and logged, but not read: of these only the number is known.")
)

func (c *dropCounts) Describe(ch chan<- *prometheus.Desc) {
	ch <- dropsDesc
	ch <- dropsLostDesc
}

func (c *dropCounts) Collect(ch chan<- prometheus.Metric) {
	c.mu.Lock()
	defer c.mu.Unlock()
	for s, n := range c.counts {
		ch <- prometheus.MustNewConstMetric(dropsDesc, prometheus.CounterValue, float64(n),
			s.direction, s.namespace, s.policy, s.reason)
	}
	ch <- prometheus.MustNewConstMetric(dropsLostDesc, prometheus.CounterValue, float64(c.lost))
}
