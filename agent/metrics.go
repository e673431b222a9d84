package agent

import (
	"cmp"
	"net/http"
	"strconv"
	"strings"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/collectors"
	"github.com/prometheus/client_golang/prometheus/promhttp"

	"github.com/weir-net/weir/agentapi"
	"github.com/weir-net/weir/bridge"
	"github.com/weir-net/weir/conf"
	"github.com/weir-net/weir/internal/excerpt"
	"github.com/weir-net/weir/policy/ruleset"
)

// metrics are the metrics for Prometheus; docs/metrics.md explains each. Most metrics are computed from the status when
// Prometheus asks. The others count events when they happen.
type metrics struct {
	registry   *prometheus.Registry
	syncs      prometheus.Histogram
	enrolments *prometheus.HistogramVec
	nodeMoves  prometheus.Counter
	reaped     prometheus.Counter

	nodeRepairs *prometheus.CounterVec
	drops       *dropCounts
	audits      *auditSums
	delays      prometheus.Histogram
}

var results = map[int]string{
	http.StatusOK: "enrolled", http.StatusNotFound: "unknown", http.StatusServiceUnavailable: "unavailable",
	http.StatusBadRequest: "invalid", http.StatusConflict: "outdated",
}

func newMetrics(status func() *status) *metrics {
	m := &metrics{
		registry: prometheus.NewRegistry(),
		syncs: prometheus.NewHistogram(prometheus.HistogramOpts{
			Name: "weir_sync_duration_seconds", Help: "How long a reconcile took.",
			Buckets: prometheus.ExponentialBuckets(0.001, 2, 15),
		}),
		enrolments: prometheus.NewHistogramVec(prometheus.HistogramOpts{
			Name:    "weir_enrolment_duration_seconds",
			Help:    "How long the plugin waited for the answer about a new pod, by result.",
			Buckets: prometheus.ExponentialBuckets(0.001, 2, 15),
		}, []string{"result"}),
		nodeMoves: prometheus.NewCounter(prometheus.CounterOpts{
			Name: "weir_node_moves_total", Help: "Nodes whose address has changed.",
		}),
		reaped: prometheus.NewCounter(prometheus.CounterOpts{
			Name: "weir_attachments_reaped_total",
			Help: "Attachments that the agent removed, as the pod's network namespace was gone without a DEL.",
		}),
	}
	m.nodeRepairs = prometheus.NewCounterVec(prometheus.CounterOpts{
		Name: "weir_node_repairs_total", Help: "Changes of other programs to node settings that were undone, by kind.",
	}, []string{"kind"})
	for _, kind := range bridge.Kinds {
		m.nodeRepairs.WithLabelValues(string(kind))
	}
	for _, result := range results {
		m.enrolments.WithLabelValues(result)
	}
	m.drops, m.audits = newDropCounts(), newAuditSums()
	m.delays = prometheus.NewHistogram(prometheus.HistogramOpts{
		Name:    "weir_enforcement_delay_seconds",
		Help:    "Time from when the source told the agent of a change of objects until the kernel enforced it.",
		Buckets: prometheus.ExponentialBuckets(0.001, 2, 15),
	})
	m.registry.MustRegister(m.syncs, m.delays, m.enrolments, m.nodeMoves, m.reaped, m.nodeRepairs, m.drops, m.audits,
		statusCollector(status),
		collectors.NewGoCollector(), collectors.NewProcessCollector(collectors.ProcessCollectorOpts{}),
		collectors.NewBuildInfoCollector())
	return m
}

func (m *metrics) enrolled(status int, began time.Time) {
	m.enrolments.WithLabelValues(results[status]).Observe(time.Since(began).Seconds())
}

func (m *metrics) handler() http.Handler {
	return promhttp.HandlerFor(m.registry, promhttp.HandlerOpts{})
}

type statusCollector func() *status

const maxProblems = 50

func desc(name, help string, labels ...string) *prometheus.Desc {
	return prometheus.NewDesc(name, help, labels, nil)
}

var (
	readyDesc   = desc("weir_ready", "1 if the kernel has the rules of the policies, and the node settings are right.")
	nodeDesc    = desc("weir_node_faults", "Node settings that can't be read or repaired, by kind.", "kind")
	backendDesc = desc("weir_backend", "Always 1; the labels say which backend enforces the policies, and why it was "+
		"chosen. Without a backend, none works on this node.", "backend", "reason")
	backendMovesDesc = desc("weir_backend_moves_total", "Moves from one backend to another.")
	infoDesc         = desc("weir_info", "Always 1; the label says which iptables the node uses.", "iptables")

	lastSyncDesc = desc("weir_last_sync_timestamp_seconds", "Unix time of the agent's last round without an error of "+
		"sets, rules, guard and gate.")

	faultDesc    = desc("weir_fault", "1 while this part of the agent or of the node doesn't work.", "part")
	problemsDesc = desc("weir_problems", "Parts of objects that can't be used as written, by kind of object.", "kind")
	problemDesc  = desc("weir_problem_info", "Always 1, for each of the first "+strconv.Itoa(maxProblems)+" problems.",
		"kind", "object", "field")
	unenforcedDesc = desc("weir_unenforced_policies",
		"Policies that weir doesn't enforce, by kind; 1 where their number isn't known.", "kind")

	endpointsDesc = desc("weir_endpoints", "Attachments of this node's pods, by direction and state: no policy isolates "+
		"the pod (open), policies do (isolated), it is in no class (closed), an earlier agent's rules are enforced "+
		"(as before), or it can't be read whether they are (unknown).", "direction", "state")
	policiesDesc = desc("weir_policies", "NetworkPolicies in the cluster.")
	auditedDesc  = desc("weir_audited_policies", "NetworkPolicies in the cluster that are audited and not enforced.")
	classesDesc  = desc("weir_classes", "Classes: groups of this node's pods that the same policies isolate.", "direction")
	setsDesc     = desc("weir_sets", "Sets and maps of weir, by the beginning of their names.", "kind")
	entriesDesc  = desc("weir_set_entries", "Entries of weir's sets and maps, by the beginning of the names.", "kind")
	networksDesc = desc("weir_node_networks", "Pod networks of other nodes to which this node has a route.")
	changesDesc  = desc("weir_kernel_changes_total", "Changes that the agent has made to sets and rules.")
	failuresDesc = desc("weir_kernel_failures_total", "Attempts to change sets and rules that failed.")
	repairsDesc  = desc("weir_kernel_repairs_total", "Changes by other programs to sets and rules that were undone.")
	cutDesc      = desc("weir_connections_cut_total", "Connections that were cut, because a changed policy forbids them.")
)

func (c statusCollector) Describe(ch chan<- *prometheus.Desc) {
	for _, d := range []*prometheus.Desc{
		readyDesc, nodeDesc, backendDesc, backendMovesDesc, infoDesc, lastSyncDesc, faultDesc, problemsDesc, problemDesc,
		unenforcedDesc, endpointsDesc,
		policiesDesc, auditedDesc, classesDesc, setsDesc, entriesDesc, networksDesc, changesDesc, failuresDesc,
		repairsDesc, cutDesc,
	} {
		ch <- d
	}
}

func (c statusCollector) Collect(ch chan<- prometheus.Metric) {
	now := c()
	s := now.report()
	send := func(t prometheus.ValueType, d *prometheus.Desc, v int, labels ...string) {
		ch <- prometheus.MustNewConstMetric(d, t, float64(v), labels...)
	}
	gauge := func(d *prometheus.Desc, v int, labels ...string) { send(prometheus.GaugeValue, d, v, labels...) }
	gauges := func(d *prometheus.Desc, counts map[string]int) {
		for label, v := range counts {
			gauge(d, v, label)
		}
	}
	gauge(readyDesc, oneIf(s.Ready))
	gauge(infoDesc, 1, s.IPTables)
	gauge(backendDesc, 1, s.Backend, excerpt.Of(s.BackendReason))
	send(prometheus.CounterValue, backendMovesDesc, s.Stats.Moves)
	if !s.LastSync.IsZero() {
		at := float64(s.LastSync.UnixMilli()) / 1000
		ch <- prometheus.MustNewConstMetric(lastSyncDesc, prometheus.GaugeValue, at)
	}
	for p := range parts {
		gauge(faultDesc, oneIf(now.faults[p] != nil), string(p))
	}
	for _, kind := range bridge.Kinds {
		gauge(nodeDesc, now.nodeFaults[kind], string(kind))
	}
	c.problems(s.Problems, gauge, gauges)
	unenforced := map[string]int{}
	for _, u := range s.Unenforced {
		unenforced[cmp.Or(u.Kind, "unknown")] += max(u.Count, 1)
	}
	gauges(unenforcedDesc, unenforced)
	c.endpoints(s.Pods, gauge)
	gauge(policiesDesc, len(s.Policies))
	gauge(auditedDesc, len(s.Audited))
	gauges(classesDesc, countClasses(s.Classes))
	sets, entries := countSets(s.Sets)
	gauges(setsDesc, sets)
	gauges(entriesDesc, entries)
	gauge(networksDesc, now.networks)
	send(prometheus.CounterValue, changesDesc, s.Stats.Changes)
	send(prometheus.CounterValue, failuresDesc, s.Stats.Failures)
	send(prometheus.CounterValue, repairsDesc, s.Stats.Repairs)
	send(prometheus.CounterValue, cutDesc, s.Stats.Cut)
}

func oneIf(b bool) int {
	if b {
		return 1
	}
	return 0
}

// countClasses counts the classes of each direction. A class with both IPv4 and IPv6 addresses counts once.
func countClasses(all []agentapi.Class) map[string]int {
	counts := map[string]int{string(ruleset.Ingress): 0, string(ruleset.Egress): 0}
	seen := map[string]bool{}
	for _, c := range all {
		if k := c.Direction + " " + strings.Join(c.Policies, " ") + "|" + strings.Join(c.Audited, " "); !seen[k] {
			seen[k] = true
			counts[c.Direction]++
		}
	}
	return counts
}

func countSets(all []agentapi.SetStatus) (sets, entries map[string]int) {
	sets, entries = map[string]int{}, map[string]int{}
	for _, set := range all {
		kind := conf.SetGroup(set.Name)
		sets[kind]++
		entries[kind] += set.Entries
	}
	return sets, entries
}

func (c statusCollector) problems(
	all []agentapi.Problem, gauge func(*prometheus.Desc, int, ...string), gauges func(*prometheus.Desc, map[string]int),
) {
	counts := map[string]int{"NetworkPolicy": 0, "Node": 0, "Pod": 0}
	named := map[[2]string]bool{} // the fields that have a series; a field may have several problems
	for _, p := range all {
		kind, object, _ := strings.Cut(p.Object, " ")
		counts[kind]++
		if k := [2]string{p.Object, p.Field}; !named[k] && len(named) < maxProblems {
			named[k] = true
			gauge(problemDesc, 1, kind, object, p.Field)
		}
	}
	gauges(problemsDesc, counts)
}

func (c statusCollector) endpoints(pods []agentapi.PodStatus, gauge func(*prometheus.Desc, int, ...string)) {
	counts := map[ruleset.Direction]map[string]int{ruleset.Ingress: {}, ruleset.Egress: {}}
	for _, p := range pods {
		for d, class := range map[ruleset.Direction]string{ruleset.Ingress: p.Ingress, ruleset.Egress: p.Egress} {
			counts[d][agentapi.StateOf(class)]++
		}
	}
	for d, count := range counts {
		for _, state := range agentapi.ClassStates {
			gauge(endpointsDesc, count[state], string(d), state)
		}
	}
}
