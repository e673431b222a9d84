package agent

import (
	"cmp"
	"slices"
	"time"

	"github.com/weir-net/weir/policy"
)

// Status is what GET /v1/status answers: what is enforced now.
type Status struct {
	Ready    bool      `json:"ready"`
	LastSync time.Time `json:"lastSync,omitzero"`
	IPTables string    `json:"iptables"`
	// Errors are what stands in the way now; empty if all is well.
	Errors   []string         `json:"errors"`
	Problems []policy.Problem `json:"problems"`
	Pods     []PodStatus      `json:"pods"`
	Policies []string         `json:"policies"`
	Classes  []policy.Class   `json:"classes"`
	Sets     []SetStatus      `json:"sets"`
	Stats    Stats            `json:"stats"`
}

// PodStatus is one attachment on this node.
type PodStatus struct {
	Pod         string   `json:"pod"`
	UID         string   `json:"uid,omitempty"`
	ContainerID string   `json:"containerID"`
	Addresses   []string `json:"addresses"`
	MAC         string   `json:"mac"`
	HostIf      string   `json:"hostInterface"`
	// Ingress and Egress name the policies that isolate the pod; "open" if none does, "closed" if the pod isn't judged
	// because the source doesn't know it.
	Ingress string `json:"ingress"`
	Egress  string `json:"egress"`
}

// SetStatus is one ipset.
type SetStatus struct {
	Name    string `json:"name"`
	Type    string `json:"type"`
	Entries int    `json:"entries"`
}

// Stats count since the agent started.
type Stats struct {
	Changes  int `json:"changes"`  // of the kernel's state
	Failures int `json:"failures"` // to change it
	Repairs  int `json:"repairs"`  // of what somebody else had changed
	Cut      int `json:"cut"`      // connections
}

// publish makes the status that is served until the next one.
func (a *agent) publish() {
	s := &Status{
		Ready:    a.objects != nil && !a.lastSync.IsZero() && a.applyErr == nil,
		LastSync: a.lastSync, IPTables: string(a.driver.Flavour), Stats: a.stats,
		Errors: []string{}, Pods: []PodStatus{}, Policies: []string{}, Sets: []SetStatus{},
		Problems: slices.Concat([]policy.Problem{}, a.ruleset.Problems, a.plan.Problems), Classes: append([]policy.Class{}, a.ruleset.Classes...),
	}
	for what, err := range map[string]error{"source: ": a.sourceErr, "endpoint records: ": a.recordErr, "kernel: ": a.applyErr, "other nodes: ": a.reachErr} {
		if err != nil {
			s.Errors = append(s.Errors, what+err.Error())
		}
	}
	if a.objects == nil {
		s.Errors = append(s.Errors, "no good state of the policies has been seen yet: what the kernel holds is left as it is, and no pod is let in")
	} else {
		for _, p := range a.objects.Policies {
			s.Policies = append(s.Policies, p.Namespace+"/"+p.Name)
		}
	}
	for _, e := range a.endpoints {
		p := PodStatus{
			Pod: e.Pod.String(), UID: e.Pod.UID, ContainerID: e.ContainerID, MAC: e.MAC, HostIf: e.HostIf,
			Ingress: class(a.ruleset.Classes, policy.Ingress, e.Pod.String()), Egress: class(a.ruleset.Classes, policy.Egress, e.Pod.String()),
		}
		for _, addr := range e.Addresses {
			p.Addresses = append(p.Addresses, addr.Addr.String())
		}
		s.Pods = append(s.Pods, p)
	}
	for _, set := range a.ruleset.Sets {
		s.Sets = append(s.Sets, SetStatus{set.Name, string(set.Type), len(set.Entries)})
	}
	s.sort()
	a.status.Store(s)
}

func (s *Status) sort() {
	slices.Sort(s.Errors)
	slices.Sort(s.Policies)
	slices.SortFunc(s.Pods, func(a, b PodStatus) int {
		return cmp.Or(cmp.Compare(a.Pod, b.Pod), cmp.Compare(a.ContainerID, b.ContainerID))
	})
}
