package client

import (
	"cmp"
	"fmt"
	"io"
	"slices"
	"strings"

	"github.com/weir-net/weir/agentapi"
	"github.com/weir-net/weir/internal/excerpt"
)

type NodeState string

// The states of a node, the worst first. If several states fit a node, the node has the first of these states.
const (
	// NodeAway means that the agent doesn't answer, so the node has no Summary.
	NodeAway NodeState = "no answer"
	// NodeNotReady means that the agent doesn't know all policies, pods or records, that it can't read or change the
	// kernel's rules, connections or the node's settings, or that the runtime uses another network's configuration.
	NodeNotReady NodeState = "not ready"
	// NodeFaulty means that the node is ready, but a part of the agent fails (Summary.Errors).
	NodeFaulty NodeState = "faulty"
	// NodeProblems means that parts of objects can't be used, that some pods are closed (their new connections are
	// dropped), or that some policies aren't enforced.
	NodeProblems NodeState = "problems"
	NodeWell     NodeState = "ready"
)

var worstFirst = []NodeState{NodeAway, NodeNotReady, NodeFaulty, NodeProblems, NodeWell}

type NodeStatus struct {
	Node  string    `json:"node"`
	State NodeState `json:"state"`
	// Why says what is wrong with the node. It is empty if nothing is wrong.
	Why string `json:"why,omitempty"`
	// Summary is nil if the agent has not answered.
	Summary *agentapi.Summary `json:"summary,omitempty"`
}

type ClusterStatus struct {
	// Asked counts the nodes on which weir should run. The field Nodes lists the worst nodes first.
	Asked  int               `json:"asked"`
	States map[NodeState]int `json:"states"`
	// Pods, Isolated and Closed are sums over the nodes that have answered: of all attachments, of those that are
	// neither closed nor open in both directions, and of those that are closed (see agentapi.Summary).
	Pods     int `json:"pods"`
	Isolated int `json:"isolated"`
	Closed   int `json:"closed"`
	// Versions counts the nodes by their agent's version.
	Versions map[string]int `json:"versions"`
	Nodes    []NodeStatus   `json:"nodes"`
}

// NewClusterStatus returns a status without nodes. asked is the number of nodes on which weir should run.
func NewClusterStatus(asked int) *ClusterStatus {
	return &ClusterStatus{Asked: asked, States: map[NodeState]int{}, Versions: map[string]int{}, Nodes: []NodeStatus{}}
}

func (s *ClusterStatus) Add(a Answer[*agentapi.Summary]) {
	n := NodeStatus{Node: a.Node}
	if a.Err != nil {
		n.State, n.Why = NodeAway, a.Err.Error()
	} else {
		n.Summary = a.Value
		n.State, n.Why = stateOf(a.Value)
		s.Pods, s.Isolated, s.Closed = s.Pods+a.Value.Pods, s.Isolated+a.Value.Isolated, s.Closed+a.Value.Closed
		s.Versions[a.Value.Version]++
	}
	if n.State != NodeWell && a.Away != "" && !strings.Contains(n.Why, a.Away) {
		n.Why = strings.TrimSuffix(a.Away+"; "+n.Why, "; ")
	}
	s.States[n.State]++
	order := func(a, b NodeStatus) int {
		return cmp.Or(cmp.Compare(slices.Index(worstFirst, a.State), slices.Index(worstFirst, b.State)),
			cmp.Compare(a.Node, b.Node))
	}
	at, _ := slices.BinarySearchFunc(s.Nodes, n, order)
	s.Nodes = slices.Insert(s.Nodes, at, n)
}

func stateOf(s *agentapi.Summary) (NodeState, string) {
	faults := excerpt.List(s.Errors, "; ")
	switch {
	case !s.Ready:
		return NodeNotReady, cmp.Or(faults, "the agent has not applied its rules yet")
	case faults != "":
		return NodeFaulty, faults
	}
	var why []string
	if s.Closed > 0 {
		why = append(why, fmt.Sprintf("%d closed pods", s.Closed))
	}
	if s.Problems > 0 {
		why = append(why, fmt.Sprintf("%d problems, such as %s", s.Problems, s.FirstProblems[0]))
	}
	if s.Unenforced > 0 {
		why = append(why, fmt.Sprintf("%d kinds of policies that weir doesn't enforce", s.Unenforced))
	}
	if len(why) > 0 {
		return NodeProblems, strings.Join(why, "; ")
	}
	return NodeWell, ""
}

// Bad returns how many nodes are not ready or don't answer.
func (s *ClusterStatus) Bad() int { return s.States[NodeAway] + s.States[NodeNotReady] }

func (s *ClusterStatus) Counts() string {
	var all []string
	for _, state := range worstFirst {
		if n := s.States[state]; n > 0 {
			all = append(all, fmt.Sprintf("%d %s", n, state))
		}
	}
	return strings.Join(all, ", ")
}

const maxWell = 20

// PrintClusterStatus prints the nodes' states. As text, it lists at most maxWell healthy nodes, unless all is true.
func PrintClusterStatus(out io.Writer, f Format, s *ClusterStatus, all bool) error {
	if f == JSON {
		return PrintJSON(out, s)
	}
	return printTable(out, func(line printLine) {
		line("%d nodes: %s; %d pods: %d isolated, %d closed", s.Asked, s.Counts(), s.Pods, s.Isolated, s.Closed)
		if len(s.Versions) > 1 {
			line("The agents are of %d versions: -o json lists them.", len(s.Versions))
		}
		line("\nNODE\tSTATE\tPODS\tISOLATED\tCLOSED\tPOLICIES\tLAST SYNC\tWHY")
		well := 0
		for _, n := range s.Nodes {
			if n.State == NodeWell {
				if well++; well > maxWell && !all {
					continue
				}
			}
			v, sync := n.Summary, "-"
			if v == nil {
				line("%s\t%s\t-\t-\t-\t-\t-\t%s", n.Node, n.State, agentapi.OneLine(n.Why))
				continue
			}
			if !v.LastSync.IsZero() {
				sync = ago(v.LastSync)
			}
			line("%s\t%s\t%d\t%d\t%d\t%d\t%s\t%s", n.Node, n.State, v.Pods, v.Isolated, v.Closed, v.Policies, sync,
				agentapi.OneLine(n.Why))
		}
		if well > maxWell && !all {
			line("and %d more that are %s (--all lists them)", well-maxWell, NodeWell)
		}
	})
}
