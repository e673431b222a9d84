package explain

import (
	"net/netip"
	"slices"
	"strings"
	"testing"

	"github.com/weir-net/weir/policy/ruleset"
)

func acrossNodes() Explanation {
	return Explanation{Result: Dropped, Paths: []Path{{
		From: Place{Address: netip.MustParseAddr("10.0.1.2"), Pod: "a/client", Node: "w1"},
		To:   Place{Address: netip.MustParseAddr("10.0.2.2"), Pod: "a/server", Node: "w2"}, Protocol: ruleset.TCP, Port: 80,
		Result: Dropped, Sides: []Side{
			{Direction: ruleset.Egress, Result: Allowed, Reason: Open, Pod: "a/client", Node: "w1", Policies: []string{}},
			{
				Direction: ruleset.Ingress, Result: Dropped, Reason: Isolated, Pod: "a/server", Node: "w2",
				Policies: []string{"a/deny", "a/more"},
			},
		},
	}}}
}

func agentOf(k Kernel) Explanation {
	e := acrossNodes()
	e.Paths[0].Kernel = &k
	return e
}

// TestBothNodes: a path gets the state of the kernels at both ends. Differs returns true if a kernel differs from the
// policies, or if an agent's explanation disagrees.
func TestBothNodes(t *testing.T) {
	e := acrossNodes()
	if got := e.EnforcedOn(); !slices.Equal(got, []string{"w1", "w2"}) {
		t.Fatalf("%v", got)
	}
	e.AddNode("w2", agentOf(Kernel{Result: Dropped})) // agents answer in any order
	e.AddNode("w1", agentOf(Kernel{Result: Allowed}))
	k := e.Paths[0].Kernels
	if len(k) != 2 || k[0].Node != "w1" || k[0].Result != Allowed || k[1].Node != "w2" || k[1].Result != Dropped ||
		e.Differs() {
		t.Errorf("%+v", k)
	}

	e = acrossNodes()
	e.AddNode("w2", agentOf(Kernel{Result: Allowed, Differences: []string{"a set lacks an address"}}))
	if !e.Differs() {
		t.Error("a difference of a kernel is lost")
	}

	for name, change := range map[string]func(*Side){
		"policies": func(s *Side) { s.Policies = []string{"a/deny"} },
		"result":   func(s *Side) { s.Result = Allowed },
		"reason":   func(s *Side) { s.Reason, s.Policies = Closed, nil },
	} {
		of := agentOf(Kernel{Result: Dropped})
		change(&of.Paths[0].Sides[1])
		e = acrossNodes()
		e.AddNode("w1", of) // only the end on w2 has changed
		if e.Differs() {
			t.Errorf("%s: %+v", name, e.Paths[0].Kernels)
		}
		e.AddNode("w2", of)
		if !e.Differs() || !strings.Contains(e.Paths[0].Kernels[1].Differences[0], "a/deny, a/more") {
			t.Errorf("%s: %+v", name, e.Paths[0].Kernels)
		}
	}
	of := agentOf(Kernel{})
	of.Paths[0].Sides[1].Policies = []string{"a/more", "a/deny"}
	e = acrossNodes()
	if e.AddNode("w2", of); e.Differs() {
		t.Error("the order of the policies counts")
	}
}

// TestNodesAway: if a node doesn't answer, or its agent doesn't know the connection, the state of its kernel is
// unknown.
func TestNodesAway(t *testing.T) {
	e := acrossNodes()
	e.AddUnknown("w1", "the node is not ready")
	e.AddNode("w2", Explanation{})
	e.AddNode("w3", agentOf(Kernel{}))
	k := e.Paths[0].Kernels
	if len(k) != 2 || k[0].Unknown != "the node is not ready" || k[1].Unknown == "" || e.Differs() {
		t.Errorf("%+v", k)
	}
	e = acrossNodes()
	if e.AddNode("w2", acrossNodes()); e.Paths[0].Kernels[0].Unknown == "" {
		t.Errorf("%+v", e.Paths[0].Kernels)
	}
	e.Paths[0].Sides[0].Reason, e.Paths[0].Sides[1].Reason = FromNode, HostNetwork
	if got := e.EnforcedOn(); len(got) > 0 {
		t.Errorf("%v", got)
	}
}
