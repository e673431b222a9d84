package client

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"time"

	"github.com/weir-net/weir/agentapi"
	"github.com/weir-net/weir/policy"
	"github.com/weir-net/weir/policy/enforced"
)

type Waited struct {
	Kind            string `json:"kind"`
	Namespace       string `json:"namespace"`
	Name            string `json:"name"`
	UID             string `json:"uid,omitempty"`
	ResourceVersion string `json:"resourceVersion,omitempty"`
	// Audited means that the policy is audited and not enforced (see policy.AuditAnnotation).
	Audited bool `json:"audited,omitempty"`
	// Nodes are the nodes that must enforce the object.
	Nodes []string `json:"nodes"`
	// Missing has the nodes that don't enforce the object, with the reasons.
	Missing map[string]string `json:"missing,omitempty"`
}

// NoNode is the key of Waited.Missing if the pod itself lacks something: it has no node or no address yet.
const NoNode = "-"

type Wait struct {
	Kind string // "policy" or "pod"
	Name policy.Name
	// If Deleted is true, Wait waits until nothing of the deleted policy is enforced any more.
	Deleted bool
	AskOptions
	Progress *Progress
}

const (
	// firstPause is the first pause between two readings of the objects. The pause doubles each time, up to maxPause.
	firstPause = 200 * time.Millisecond
	maxPause   = 5 * time.Second
	agentWaits = 5 * time.Second
)

// Wait returns when each node that must enforce the object enforces the version that existed when Wait began, or a
// newer version. If ctx ends first, Missing has the reasons. Wait computes what each node must enforce, and compares
// the result with the answer of the node's agent.
func (c *Cluster) Wait(ctx context.Context, w Wait) (Waited, error) {
	result := Waited{Kind: w.Kind, Namespace: w.Name.Namespace, Name: w.Name.Name, Missing: map[string]string{}}
	var pending map[string]bool // nil before the first round
	for pause := firstPause; ; pause = min(2*pause, maxPause) {
		w.Progress.Say("reading objects")
		x, err := c.expect(ctx)
		if err != nil {
			return result, cmp.Or(ended(ctx, pending), err)
		}
		g, err := w.goal(x, &result, pending == nil)
		if err != nil {
			return result, err
		}
		if g != nil {
			if pending == nil {
				result.Nodes, pending = g.concerned(x), map[string]bool{}
				for _, node := range result.Nodes {
					pending[node] = true
				}
			}
			if err := c.askPending(ctx, w, *g, x, pending, &result); err != nil {
				return result, cmp.Or(ended(ctx, pending), err)
			}
			if len(pending) == 0 {
				return result, nil
			}
		}
		select {
		case <-ctx.Done():
			return result, context.Cause(ctx)
		case <-time.After(pause):
		}
	}
}

func ended(ctx context.Context, pending map[string]bool) error {
	if pending == nil {
		return nil
	}
	return context.Cause(ctx)
}

// goal returns the pods for which Wait waits. It returns nil without an error if the pod has no node or no address yet.
func (w Wait) goal(x *expected, result *Waited, first bool) (*goal, error) {
	if w.Kind == "policy" {
		meta, exists := x.policies[w.Name]
		switch {
		case exists && w.Deleted:
			return nil, Usage(fmt.Errorf("the NetworkPolicy %s/%s exists, so --deleted would never end", w.Name.Namespace,
				w.Name.Name))
		case !exists && !w.Deleted && first:
			return nil, Usage(fmt.Errorf("there is no NetworkPolicy %s/%s (kubectl get networkpolicies -n %s); --deleted waits "+
				"until nothing of it is enforced", w.Name.Namespace, w.Name.Name, w.Name.Namespace))
		case !exists && !w.Deleted, exists && !first && string(meta.UID) != result.UID:
			return nil, fmt.Errorf("the NetworkPolicy %s/%s was deleted while weirctl waited", w.Name.Namespace, w.Name.Name)
		}
		if first {
			result.UID, result.ResourceVersion = string(meta.UID), meta.ResourceVersion
			result.Audited = meta.Annotations[policy.AuditAnnotation] == "true"
		}
		return &goal{namespace: w.Name.Namespace}, nil
	}
	pod, exists := x.pods[w.Name]
	switch {
	case !exists && result.UID == "":
		return nil, Usage(fmt.Errorf("there is no pod %s/%s (kubectl get pods -n %s)", w.Name.Namespace, w.Name.Name,
			w.Name.Namespace))
	case !exists, result.UID != "" && pod.UID != result.UID, pod.Finished:
		return nil, fmt.Errorf("the pod %s/%s is gone or has ended", w.Name.Namespace, w.Name.Name)
	case pod.HostNetwork:
		return nil, Usage(fmt.Errorf("the pod %s/%s has its node's network: no policy selects it", w.Name.Namespace,
			w.Name.Name))
	}
	result.UID = pod.UID
	if pod.NodeName == "" || len(pod.Addresses) == 0 {
		result.Missing[NoNode] = "the pod has no node or no address yet"
		return nil, nil //nolint:nilnil // the comment of goal explains nil
	}
	delete(result.Missing, NoNode)
	if first {
		result.ResourceVersion = pod.version
	}
	return &goal{pod: &pod}, nil
}

// askPending asks the nodes in the map pending whether they enforce the goal. It removes each node that enforces the
// goal from pending, and writes into result what the other nodes lack.
func (c *Cluster) askPending(
	ctx context.Context, w Wait, g goal, x *expected, pending map[string]bool, result *Waited,
) error {
	agents, err := c.Agents(ctx)
	if err != nil {
		return err
	}
	by := map[string]Agent{}
	for _, a := range agents {
		by[a.Node] = a
	}
	now := g.concerned(x)
	var ask []Agent
	for _, node := range slices.Sorted(maps.Keys(pending)) {
		if !slices.Contains(now, node) { // the node need not enforce the object any more
			delete(pending, node)
			delete(result.Missing, node)
			continue
		}
		if _, known := by[node]; !known {
			by[node] = Agent{Node: node, Down: "no pod of weir runs on this node"}
		}
		ask = append(ask, by[node])
	}
	return AskAll(ctx, ask, w.AskOptions,
		func(ctx context.Context, of Agent) (a enforced.Answer, err error) {
			q := g.question(x, of.Node)
			q.Wait = min(agentWaits, w.Within/2)
			return a, c.Ask(ctx, of, agentapi.EnforcedPath, q, &a)
		},
		func(a Answer[enforced.Answer]) {
			var why string
			if a.Err != nil {
				why = a.Err.Error()
			} else {
				why = g.lacks(x, a.Node, g.question(x, a.Node), a.Value)
			}
			if result.Missing[a.Node] = why; why == "" {
				delete(result.Missing, a.Node)
				delete(pending, a.Node)
			}
			w.Progress.Say("%d of %d nodes enforce it", len(result.Nodes)-len(pending), len(result.Nodes))
		})
}

// ErrTimeout is the cause of a context that ends because Wait takes too long.
var ErrTimeout = errors.New("not enforced in time")
