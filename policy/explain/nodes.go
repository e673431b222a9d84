package explain

import (
	"fmt"
	"slices"
	"strings"

	"github.com/weir-net/weir/internal/excerpt"
)

// EnforcedOn returns the nodes whose rules enforce the verdicts of the paths.
func (e *Explanation) EnforcedOn() (all []string) {
	for i := range e.Paths {
		for _, s := range e.Paths[i].Sides {
			if s.enforced() && !slices.Contains(all, s.Node) {
				all = append(all, s.Node)
			}
		}
	}
	return all
}

func (s Side) enforced() bool {
	return s.Node != "" && s.Pod != "" && !slices.Contains([]Reason{HostNetwork, NoPod, FromNode, Itself}, s.Reason)
}

// AddNode adds the state of the node's kernel to the paths that the node enforces. The parameter "other" is the
// explanation that the node's agent has given for the same query. If the two explanations have different results,
// reasons or policies for an end on the node, AddNode adds a difference.
func (e *Explanation) AddNode(node string, other Explanation) {
	for i := range e.Paths {
		p := &e.Paths[i]
		if !p.endsOn(node) {
			continue
		}
		at := slices.IndexFunc(other.Paths, func(o Path) bool {
			return o.From.Address == p.From.Address && o.To.Address == p.To.Address && o.Protocol == p.Protocol &&
				o.Port == p.Port
		})
		switch {
		case at < 0:
			p.addKernel(Kernel{Node: node, Unknown: "the agent of this node knows no such connection"})
		case other.Paths[at].Kernel == nil:
			p.addKernel(Kernel{Node: node, Unknown: "the agent of this node says nothing about its kernel"})
		default:
			k := *other.Paths[at].Kernel
			k.Node = node
			k.Differences = append(slices.Clone(k.Differences), p.disagreements(node, other.Paths[at])...)
			p.addKernel(k)
		}
	}
}

// AddUnknown adds the reason why the node's kernel could not be read to each path with an end on the node.
func (e *Explanation) AddUnknown(node, why string) {
	for i := range e.Paths {
		if p := &e.Paths[i]; p.endsOn(node) {
			p.addKernel(Kernel{Node: node, Unknown: why})
		}
	}
}

// addKernel keeps the kernels in the order of their nodes, because the agents answer in any order.
func (p *Path) addKernel(k Kernel) {
	i, _ := slices.BinarySearchFunc(p.Kernels, k, func(a, b Kernel) int { return strings.Compare(a.Node, b.Node) })
	p.Kernels = slices.Insert(p.Kernels, i, k)
}

func (p *Path) endsOn(node string) bool {
	return slices.ContainsFunc(p.Sides, func(s Side) bool { return s.enforced() && s.Node == node })
}

func (p *Path) disagreements(node string, of Path) (all []string) {
	for i, s := range p.Sides {
		if !s.enforced() || s.Node != node || i >= len(of.Sides) {
			continue
		}
		its := of.Sides[i]
		if its.Result == s.Result && its.Reason == s.Reason && sameNames(its.Policies, s.Policies) {
			continue
		}
		all = append(all, fmt.Sprintf("by the API server's objects, %s of %s is %s (%s); the agent of this node says %s (%s)",
			s.Direction, s.Pod, s.Result, s.because(), its.Result, its.because()))
	}
	return all
}

func (s Side) because() string {
	if len(s.Policies) == 0 {
		return string(s.Reason)
	}
	return string(s.Reason) + " by " + excerpt.List(s.Policies, ", ")
}

func sameNames(a, b []string) bool {
	a, b = slices.Clone(a), slices.Clone(b)
	slices.Sort(a)
	slices.Sort(b)
	return slices.Equal(a, b)
}
