package agent

import (
	"cmp"
	"slices"

	"github.com/weir-net/weir/bridge"
	"github.com/weir-net/weir/policy"
	"github.com/weir-net/weir/policy/report"
	"github.com/weir-net/weir/policy/ruleset"
)

// snapshot is the status with what only metrics tell of it.
type snapshot struct {
	report.Status
	faults     map[part]bool
	nodeFaults map[bridge.Kind]int
	peers      int
}

// publish makes the status that is served until the next one.
func (a *agent) publish() {
	s := &snapshot{faults: map[part]bool{}, nodeFaults: a.nodeFaults, peers: len(a.ways.reached.Remotes)}
	s.Status = report.Status{
		Ready: a.objects != nil && !a.lastSync.IsZero() && a.unsure() == nil &&
			a.faults.now[partKernel] == nil && a.faults.now[partNode] == nil,
		LastSync: a.lastSync, IPTables: string(a.driver.Flavour), Stats: a.stats,
		Errors: []string{}, Pods: []report.PodStatus{}, Policies: a.policies, Sets: []report.SetStatus{},
		Problems: append([]ruleset.Problem{}, a.problems...), Classes: append([]ruleset.Class{}, a.ruleset.Classes...),
		Unenforced: append([]policy.Unenforced{}, a.unenforced...), Files: a.files, NodeRepairs: slices.Clone(a.nodeRepairs),
	}
	for p, err := range a.faults.now {
		s.faults[p] = true
		s.Errors = append(s.Errors, parts[p].name+": "+err.Error())
	}
	if a.objects == nil {
		s.Errors = append(s.Errors, "no good state of the policies has been seen yet: what the kernel holds stays, what it lacks is closed, and no pod is let in")
	}
	for _, e := range a.endpoints {
		p := report.Pod(e)
		p.Ingress, p.Egress = a.enforced(ruleset.Ingress, e), a.enforced(ruleset.Egress, e)
		s.Pods = append(s.Pods, p)
	}
	for _, set := range a.ruleset.Sets {
		s.Sets = append(s.Sets, report.SetStatus{Name: set.Name, Type: string(set.Kind), Entries: len(set.Entries)})
	}
	s.sort()
	a.status.Store(s)
}

func (s *snapshot) sort() {
	slices.Sort(s.Errors)
	slices.SortFunc(s.Pods, func(a, b report.PodStatus) int {
		return cmp.Or(cmp.Compare(a.Pod, b.Pod), cmp.Compare(a.ContainerID, b.ContainerID))
	})
}
