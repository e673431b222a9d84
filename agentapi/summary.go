package agentapi

import "time"

const SummaryPath = "/v1/summary"

// Summary is the status of a node in a few hundred bytes, for commands that ask all nodes of a cluster.
type Summary struct {
	Node string `json:"node"`
	// Version has the agent's commit and Go's version.
	Version  string    `json:"version"`
	Ready    bool      `json:"ready"`
	LastSync time.Time `json:"lastSync,omitzero"`
	IPTables string    `json:"iptables"`
	// Errors say why the node isn't ready, or which parts of the agent fail.
	Errors []string `json:"errors"`
	// Problems counts all problems. FirstProblems are at most three of them.
	Problems      int       `json:"problems"`
	FirstProblems []Problem `json:"firstProblems,omitempty"`
	// Unenforced counts the kinds of policies that weir doesn't enforce.
	Unenforced int `json:"unenforced"`
	// Pods counts all attachments. Closed counts attachments that are closed in a direction. Isolated counts all other
	// attachments that aren't open in both directions. For some of these, the agent may not know yet whether policies
	// isolate the pod (ClassBefore, ClassUnknown).
	Pods     int   `json:"pods"`
	Isolated int   `json:"isolated"`
	Closed   int   `json:"closed"`
	Policies int   `json:"policies"`
	Classes  int   `json:"classes"`
	Sets     int   `json:"sets"`
	Entries  int   `json:"entries"`
	Stats    Stats `json:"stats"`
}

const maxFirst = 3

// Summarise returns a summary that counts the elements of the status's lists. The summary contains only the errors and
// the first problems themselves.
func Summarise(s Status, node, version string) Summary {
	sum := Summary{
		Node: node, Version: version, Ready: s.Ready, LastSync: s.LastSync, IPTables: s.IPTables, Errors: s.Errors,
		Problems: len(s.Problems), FirstProblems: s.Problems[:min(len(s.Problems), maxFirst)], Unenforced: len(s.Unenforced),
		Pods: len(s.Pods), Policies: len(s.Policies), Classes: len(s.Classes), Sets: len(s.Sets), Stats: s.Stats,
	}
	for _, p := range s.Pods {
		switch in, out := StateOf(p.Ingress), StateOf(p.Egress); {
		case in == ClassClosed || out == ClassClosed:
			sum.Closed++
		case in != ClassOpen || out != ClassOpen:
			sum.Isolated++
		}
	}
	for _, set := range s.Sets {
		sum.Entries += set.Entries
	}
	return sum
}
