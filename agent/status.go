package agent

import (
	"cmp"
	"maps"
	"net/netip"
	"slices"
	"time"

	"github.com/weir-net/weir/agentapi"
	"github.com/weir-net/weir/bridge"
	"github.com/weir-net/weir/endpoint"
	"github.com/weir-net/weir/internal/ordered"
	"github.com/weir-net/weir/netfilter"
	"github.com/weir-net/weir/policy"
	"github.com/weir-net/weir/policy/ruleset"
)

// All answers about the agent's state are made from a status. A status never changes, so these answers needn't wait
// for the loop.
type status struct {
	enforced *snapshot
	// delta is the number of the last delta (a change of the source's objects) that is enforced. It may be higher than
	// enforced.delta, because most deltas change nothing on this node.
	delta    uint64
	ready    bool
	lastSync time.Time
	tool     string // the tool that writes the rules (Backend.Tool)
	// inUse is the name of the backend in use, and reason says why it was chosen.
	inUse, reason string
	// cleaning is true while the loop has to remove the sets and rules of other backends.
	cleaning   bool
	sets       func(ruleset.Ruleset) []netfilter.KernelSet // the method Sets of the backend in use
	endpoints  []endpoint.Endpoint                         // without endpoints whose records are broken
	earlier    earlierRules
	stateless  bool
	policies   ordered.Map[string, bool]
	faults     map[part]error
	problems   []ruleset.Problem
	unenforced []policy.Unenforced
	files      []agentapi.File
	nodeFaults map[bridge.Kind]int
	repairs    []agentapi.NodeRepair
	networks   int // the number of pods' networks on other nodes to which this node has routes
	stats      agentapi.Stats
}

func (a *agent) publishStatus() {
	a.status.Store(&status{
		enforced: a.snapshots.enforced.Load(), delta: a.snapshots.enforced.Load().delta,
		ready: a.cluster.known && !a.kernel.lastSync.IsZero() && a.unknown() == nil &&
			a.faults.now[partKernel] == nil && a.faults.now[partNode] == nil && a.faults.now[partRuntime] == nil,
		lastSync: a.kernel.lastSync, tool: a.backend.Tool(), sets: a.backend.Sets,
		inUse: string(a.moving.inUse), reason: a.moving.chosen.Reason, cleaning: a.moving.others > 0,
		endpoints: a.records.copies().list, earlier: a.kernel.earlier,
		stateless: !a.cluster.known, policies: a.cluster.engine.Policies(),
		faults: maps.Clone(a.faults.now), problems: a.problems.all, unenforced: a.source.unenforced, files: a.source.files,
		nodeFaults: a.repairs.failures, repairs: slices.Clone(a.repairs.last), networks: len(a.overlay.kernel.Remotes),
		stats: a.stats,
	})
}

// publishSource updates the parts of the status that an event of the source can change without a reconcile. It doesn't
// copy the endpoints, because in a large cluster most events concern no pod of this node.
func (a *agent) publishSource() {
	s := *a.status.Load()
	s.policies, s.unenforced, s.files = a.cluster.engine.Policies(), a.source.unenforced, a.source.files
	s.faults = maps.Clone(a.faults.now)
	// If the target is enforced and the engine has changed nothing since, the newest delta is enforced too.
	if s.enforced == a.snapshots.target.Load() && a.records.complete && !a.cluster.engine.Changed() {
		s.delta = a.cluster.delta
	}
	a.status.Store(&s)
}

func (a *agent) report() agentapi.Status {
	r := a.status.Load().report()
	r.DropsUnread = a.drops.unread()
	return r
}

func (s *status) report() agentapi.Status {
	r := agentapi.Status{
		Ready: s.ready, LastSync: s.lastSync, IPTables: s.tool, Backend: s.inUse, BackendReason: s.reason, Stats: s.stats,
		Errors: s.errors(), Pods: []agentapi.PodStatus{}, Policies: []string{}, Audited: []string{},
		Sets: []agentapi.SetStatus{}, Problems: []agentapi.Problem{}, Classes: []agentapi.Class{},
		Unenforced: []agentapi.Unenforced{}, Files: s.files, NodeRepairs: s.repairs,
	}
	for name, audited := range s.policies.All() {
		if r.Policies = append(r.Policies, name); audited {
			r.Audited = append(r.Audited, name)
		}
	}
	for _, p := range s.problems {
		r.Problems = append(r.Problems, agentapi.Problem(p))
	}
	for _, u := range s.unenforced {
		r.Unenforced = append(r.Unenforced, agentapi.Unenforced(u))
	}
	in := map[string]string{} // the name of the kernel's set that has a class's pods, by class set
	for _, k := range s.sets(s.enforced.ruleset) {
		r.Sets = append(r.Sets, agentapi.SetStatus{Name: k.Name, Type: k.Type, Entries: k.Entries})
		for _, class := range k.Classes {
			in[class] = k.Name
		}
	}
	slices.SortStableFunc(r.Sets, func(a, b agentapi.SetStatus) int { return cmp.Compare(a.Name, b.Name) })
	for _, c := range s.enforced.ruleset.Classes {
		r.Classes = append(r.Classes, agentapi.Class{
			Direction: string(c.Direction), Family: c.Family.String(), Policies: c.Policies, Audited: c.Audited,
			Set: cmp.Or(in[c.Set], c.Set), Chain: c.Chain, Pods: c.Pods,
		})
	}
	for _, e := range s.endpoints {
		p := agentapi.PodOf(e)
		p.Ingress, p.Egress = s.class(ruleset.Ingress, e), s.class(ruleset.Egress, e)
		r.Pods = append(r.Pods, p)
	}
	slices.SortFunc(r.Pods, func(a, b agentapi.PodStatus) int {
		return cmp.Or(cmp.Compare(a.Pod, b.Pod), cmp.Compare(a.ContainerID, b.ContainerID))
	})
	return r
}

func (s *status) errors() []string {
	all := []string{}
	for p, err := range s.faults {
		all = append(all, parts[p].name+": "+err.Error())
	}
	if s.stateless {
		all = append(all, "there is no good state of the policies yet: rules in the kernel stay in force, pods "+
			"without rules are closed, and no pod is enrolled")
	}
	slices.Sort(all)
	return all
}

// class returns the policies that isolate the pod in that direction, or one of agentapi's constants for classes, such
// as ClassOpen.
func (s *status) class(d ruleset.Direction, e endpoint.Endpoint) string {
	switch {
	case len(s.enforced.ruleset.Sets) > 0: // this agent has applied a ruleset of its own
		return s.enforced.class(d, e.Pod.String())
	case !s.earlier.read || s.earlier.members == nil:
		return agentapi.ClassUnknown
	case slices.ContainsFunc(e.Addresses, func(a endpoint.Address) bool { return s.earlier.has(d, a.Addr) }):
		return agentapi.ClassBefore
	}
	return agentapi.ClassClosed
}

func (e *earlierRules) has(d ruleset.Direction, addr netip.Addr) bool { return e.members[d][addr] }

// gaps returns the faults of the source and of the API server. With such a fault, the agent may lack objects or have
// old versions of them. s may be nil.
func (s *status) gaps() (gaps []string) {
	if s == nil {
		return nil
	}
	for _, p := range [...]part{partSource, partAPI} {
		if err := s.faults[p]; err != nil {
			gaps = append(gaps, parts[p].meaning+": "+err.Error())
		}
	}
	return gaps
}
