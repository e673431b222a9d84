package agent

import (
	"sync"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/weir-net/weir/policy/enforced"
)

// positionCollector makes metrics of the position (resourceVersions) up to which the kernel enforces the source's
// changes. While the position is unknown, the metrics keep the last known position.
type positionCollector struct {
	mu   sync.Mutex
	last enforced.Position
	now  func() (enforced.Position, bool)
}

var positionDesc = desc("weir_enforced_resource_version",
	"The resourceVersion of the newest change of an object of the kind that the kernel enforces, with all earlier ones.",
	"kind")

func (c *positionCollector) Describe(ch chan<- *prometheus.Desc) { ch <- positionDesc }

func (c *positionCollector) Collect(ch chan<- prometheus.Metric) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if at, ok := c.now(); ok {
		c.last = at
	}
	for kind, version := range map[string]uint64{
		"Pod": c.last.Pods, "Namespace": c.last.Namespaces, "Node": c.last.Nodes, "NetworkPolicy": c.last.Policies,
	} {
		if version > 0 {
			ch <- prometheus.MustNewConstMetric(positionDesc, prometheus.GaugeValue, float64(version), kind)
		}
	}
}
