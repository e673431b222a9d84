package agent

import (
	"context"
	"errors"
	"maps"
	"net/http"
	"net/netip"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/weir-net/weir/agent/drops"
	"github.com/weir-net/weir/agentapi"
	"github.com/weir-net/weir/policy"
	"github.com/weir-net/weir/policy/propose"
	"github.com/weir-net/weir/policy/ruleset"
	"github.com/weir-net/weir/policy/verdict"
)

const (
	// maxAudited limits the room for all kinds of connections together, and maxAuditedEach the room for the kinds of
	// one namespace. A kind takes one unit of room, and one more unit for each labelRoom bytes of its policies and
	// labels.
	maxAudited     = 8192
	maxAuditedEach = 1024
)

type auditSums struct {
	mu          sync.Mutex
	since       time.Time
	kinds       map[auditKind]*agentapi.AuditedTraffic
	room        int               // the room that all kinds of connections take; see maxAudited
	each        map[string]int    // by namespace: the room that the kinds of the namespace take
	more        map[string]uint64 // by list of policies: how many connections are in no kind, for want of room
	series      map[auditSeries]uint64
	unevaluated uint64
}

type auditKind struct {
	direction, policies string // policies is a list with commas; all its policies are in one namespace
	local, peer         string // the two ends; ends of one kind have equal texts (AuditedEnd.Kind)
	protocol            string
	port                uint16
}

type auditSeries struct{ direction, namespace, policy string }

func newAuditSums() *auditSums {
	s := &auditSums{
		since: time.Now(), kinds: map[auditKind]*agentapi.AuditedTraffic{}, each: map[string]int{}, more: map[string]uint64{},
		series: map[auditSeries]uint64{},
	}
	for _, d := range [...]ruleset.Direction{ruleset.Ingress, ruleset.Egress} {
		s.series[auditSeries{string(d), dropsElsewhere, dropsElsewhere}] = 0
	}
	return s
}

func (s *auditSums) leaveOut(count uint64) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.unevaluated += count
}

func (s *auditSums) add(e *drops.Entry, w wouldDrop) {
	local, peer := e.Source, e.Destination
	if e.Direction == string(ruleset.Ingress) {
		local, peer = peer, local
	}
	by := strings.Join(w.policies, ",")
	s.mu.Lock()
	defer s.mu.Unlock()
	namespace, _, _ := strings.Cut(local.Pod, "/")
	series := auditSeries{e.Direction, namespace, policyLabel(w.policies)}
	if _, ok := s.series[series]; !ok && len(s.series) >= maxDropSeries {
		series.namespace, series.policy = dropsElsewhere, dropsElsewhere
	}
	s.series[series] += e.Count
	if len(by) > maxLabels || tooLarge(w.local) || tooLarge(w.peer) {
		s.countMore(by, e.Count)
		return
	}
	t := agentapi.AuditedTraffic{
		Direction: e.Direction, Policies: w.policies, Pod: auditedEnd(local, w.local), Peer: auditedEnd(peer, w.peer),
		Protocol: e.Protocol, Port: e.Destination.Port, Count: e.Count, First: e.Time, Last: e.Time,
	}
	kind := auditKind{t.Direction, by, t.Pod.Kind(), t.Peer.Kind(), t.Protocol, t.Port}
	if known := s.kinds[kind]; known != nil {
		known.Count += e.Count
		known.Last, known.Pod, known.Peer = e.Time, t.Pod, t.Peer
		return
	}
	if s.each[kind.namespace()]+kind.room() > maxAuditedEach || !s.makeRoom(kind) {
		s.countMore(by, e.Count)
		return
	}
	s.kinds[kind] = &t
	s.addRoom(kind, kind.room())
}

func tooLarge(p *policy.Pod) bool { return p != nil && sizeOf(p.Labels) > maxLabels }

func (k auditKind) room() int { return 1 + (len(k.policies)+len(k.local)+len(k.peer))/labelRoom }

// addRoom counts room as taken by the kind k. If room is negative, addRoom counts it as free again.
func (s *auditSums) addRoom(k auditKind, room int) {
	s.room += room
	if s.each[k.namespace()] += room; s.each[k.namespace()] == 0 {
		delete(s.each, k.namespace())
	}
}

func (k auditKind) namespace() string {
	namespace, _, _ := strings.Cut(k.policies, "/")
	return namespace
}

func (s *auditSums) countMore(policies string, count uint64) {
	if _, ok := s.more[policies]; !ok && len(s.more) >= maxAuditedEach || len(policies) > labelRoom {
		policies = ""
	}
	s.more[policies] += count
}

// makeRoom makes room for a new kind of connections, the parameter wanting. It forgets kinds of the namespaces that
// take the most room, and counts the connections of forgotten kinds in the map more. If the new kind's own namespace
// takes the most room, makeRoom gives up and returns false.
func (s *auditSums) makeRoom(wanting auditKind) bool {
	for s.room+wanting.room() > maxAudited {
		most := wanting.namespace()
		for namespace, n := range s.each {
			if n > s.each[most] {
				most = namespace
			}
		}
		if most == wanting.namespace() {
			return false
		}
		for kind, t := range s.kinds {
			if kind.namespace() == most {
				s.forget(kind)
				s.countMore(kind.policies, t.Count)
				break
			}
		}
	}
	return true
}

func (s *auditSums) forget(kind auditKind) {
	delete(s.kinds, kind)
	s.addRoom(kind, -kind.room())
}

func auditedEnd(e agentapi.DropEnd, p *policy.Pod) agentapi.AuditedEnd {
	end := agentapi.AuditedEnd{Node: e.Node, Address: e.Address}
	if p != nil {
		end.Namespace, end.Name, end.Labels = p.Namespace, p.Name, propose.Labels(p)
	}
	return end
}

// report returns the kinds of connections that the named policy would drop. An empty name means all policies. The
// parameter still is a function that returns false if the present policies would no longer drop connections of a kind.
// report forgets these kinds, except a kind to which a connection was added meanwhile.
func (s *auditSums) report(name string, still func(*agentapi.AuditedTraffic) bool) agentapi.AuditReport {
	all := s.copyKinds()
	var ended []auditKind
	for kind, t := range all {
		if !still(&t) {
			ended = append(ended, kind)
		}
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	r := agentapi.AuditReport{
		Since: s.since, Audited: []string{}, Dropped: []agentapi.AuditedTraffic{}, Unevaluated: s.unevaluated,
	}
	for _, kind := range ended {
		if t := s.kinds[kind]; t != nil && t.Count == all[kind].Count { // no connection was added since copyKinds
			s.forget(kind)
		}
	}
	for _, t := range s.kinds {
		if name == "" || slices.Contains(t.Policies, name) {
			r.Dropped = append(r.Dropped, *t)
		}
	}
	for by, n := range s.more {
		if name == "" || by == "" || slices.Contains(strings.Split(by, ","), name) {
			r.More += n
		}
	}
	slices.SortFunc(r.Dropped, agentapi.CompareAudited)
	return r
}

func (s *auditSums) copyKinds() map[auditKind]agentapi.AuditedTraffic {
	s.mu.Lock()
	defer s.mu.Unlock()
	all := make(map[auditKind]agentapi.AuditedTraffic, len(s.kinds))
	for kind, t := range s.kinds {
		all[kind] = *t
	}
	return all
}

func (s *auditSums) addresses() []netip.Addr {
	s.mu.Lock()
	defer s.mu.Unlock()
	seen := map[netip.Addr]bool{}
	for _, t := range s.kinds {
		seen[t.Pod.Address], seen[t.Peer.Address] = true, true
	}
	return slices.Collect(maps.Keys(seen))
}

var errBusy = errors.New("the agent is busy with a large change; ask again")

// serveAudit answers with an AuditReport. The report leaves out recorded connections that the present policies would no
// longer drop.
func (a *agent) serveAudit(ctx context.Context, w http.ResponseWriter, r *http.Request) {
	if !a.explainer.begin(r.Context()) {
		return
	}
	defer a.explainer.end()
	state, ok := a.stateAround(ctx, a.metrics.audits.addresses())
	if !ok {
		refuse(w, http.StatusServiceUnavailable, errBusy)
		return
	}
	evaluator := verdict.New(state)
	report := a.metrics.audits.report(r.URL.Query().Get("policy"), func(t *agentapi.AuditedTraffic) bool {
		return stillDropped(evaluator, state, t)
	})
	report.Node, report.Audited = a.Node.Name, a.status.Load().report().Audited
	if why := a.drops.trouble.Load(); why != nil {
		report.Trouble = *why
	}
	writeJSON(w, http.StatusOK, report)
}

// stillDropped reports whether the present policies would drop the connection. If one of the connection's pods is gone,
// the agent can't evaluate the connection, and stillDropped returns true.
func stillDropped(by *verdict.Evaluator, s policy.State, t *agentapi.AuditedTraffic) bool {
	for _, e := range [...]*agentapi.AuditedEnd{&t.Pod, &t.Peer} {
		now := podAt(s, e.Address)
		if e.Name != "" && (now == nil || now.Namespace != e.Namespace || now.Name != e.Name) {
			return true
		}
	}
	p := verdict.Packet{Src: t.Pod.Address, Dst: t.Peer.Address, Proto: ruleset.Protocol(t.Protocol), Port: t.Port}
	if t.Direction == string(ruleset.Ingress) {
		p.Src, p.Dst = p.Dst, p.Src
	}
	return slices.Contains(by.Evaluate(p).WouldDrop(), ruleset.Direction(t.Direction))
}

var (
	wouldDropsDesc = desc("weir_audit_would_drops_total", "Connections that passed and that audited policies would drop, "+
		"by direction, namespace of the pod, and the audited policies that would isolate it.",
		"direction", "namespace", "policy")
	unevaluatedDesc = desc("weir_audit_unevaluated_total", "Connections that the rules of audited policies logged, and "+
		"that the agent could not evaluate: too many came at once, a pod had ended, or the agent's loop was busy.")
)

func (s *auditSums) Describe(ch chan<- *prometheus.Desc) {
	ch <- wouldDropsDesc
	ch <- unevaluatedDesc
}

func (s *auditSums) Collect(ch chan<- prometheus.Metric) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for k, n := range s.series {
		ch <- prometheus.MustNewConstMetric(wouldDropsDesc, prometheus.CounterValue, float64(n),
			k.direction, k.namespace, k.policy)
	}
	ch <- prometheus.MustNewConstMetric(unevaluatedDesc, prometheus.CounterValue, float64(s.unevaluated))
}
