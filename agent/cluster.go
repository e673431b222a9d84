package agent

import (
	"context"
	"fmt"
	"maps"
	"slices"

	"github.com/weir-net/weir/conf"
	"github.com/weir-net/weir/endpoint"
	"github.com/weir-net/weir/policy"
)

// clusterView is the agent's view of the cluster. Invariants, while source is not nil:
//   - source has the objects that the source gave last, with only the Nodes that the agent accepts.
//   - objects is source with the looked-up pods. A looked-up pod replaces a pod of the same name.
//   - parsed has the parsed policies of source, and names has their names in order.
//
// Nothing that a clusterView points to is ever changed. A new state is a new value, so snapshots may share the old
// one.
type clusterView struct {
	source  *policy.Objects
	lookups map[string]lookup // by endpoint ID
	objects *policy.Objects
	parsed  *policy.Parsed
	names   []string
	nodes   nodeClaims
}

// lookup says that the agent asked the source for this pod, because the source's objects didn't include the pod.
type lookup struct {
	pod policy.Pod
	// namesake is the pod of the same name that the source's objects had when the agent asked; empty if they had none.
	namesake policy.Pod
}

func newClusterView() clusterView {
	return clusterView{lookups: map[string]lookup{}, names: []string{}}
}

// update takes a new state of the source's objects, with only the accepted Nodes.
func (c *clusterView) update(o *policy.Objects, endpoints map[string]endpoint.Endpoint) {
	c.source = o
	c.parse()
	c.join(endpoints)
}

// parse parses the policies that are new or have changed.
func (c *clusterView) parse() {
	parsed := policy.Parse(c.source.Policies, c.parsed)
	if parsed == c.parsed {
		return
	}
	c.parsed, c.names = parsed, make([]string, 0, len(c.source.Policies))
	for _, p := range c.source.Policies {
		c.names = append(c.names, p.Namespace+"/"+p.Name)
	}
	slices.Sort(c.names)
}

// addLookup stores the answer to a Lookup.
func (c *clusterView) addLookup(id string, l lookup, endpoints map[string]endpoint.Endpoint) {
	c.lookups[id] = l
	c.join(endpoints)
}

// join adds the looked-up pods to the source's objects, which may be older than the answers. It removes the lookup of
// an endpoint that has ended. It also removes a lookup if the source's objects now have a pod of that name that they
// didn't have when the agent asked. Such a pod is the looked-up one, or a newer one.
func (c *clusterView) join(endpoints map[string]endpoint.Endpoint) {
	if c.source == nil {
		return
	}
	maps.DeleteFunc(c.lookups, func(id string, l lookup) bool {
		e, ok := endpoints[id]
		if !ok {
			return true
		}
		p, _ := findPod(c.source.Pods, e.Pod)
		return p.Name != "" && p.UID != l.namesake.UID
	})
	joined := *c.source
	if len(c.lookups) > 0 {
		joined.Pods = slices.Clone(joined.Pods)
	}
	for _, id := range slices.Sorted(maps.Keys(c.lookups)) {
		pod := c.lookups[id].pod
		namesake := func(p policy.Pod) bool { return p.Namespace == pod.Namespace && p.Name == pod.Name }
		joined.Pods = append(slices.DeleteFunc(joined.Pods, namesake), pod)
	}
	c.objects = &joined
}

// knows reports whether the endpoint's pod can be put into its classes: the pod is among the objects, a workload of the
// objects makes such pods, or no policy is enforced on the pod.
func (c *clusterView) knows(e endpoint.Endpoint) bool {
	if e.Enforcement == conf.Off {
		return true
	}
	p, ok := findPod(c.objects.Pods, e.Pod)
	if ok || p.Name != "" {
		return ok
	}
	made, _ := policy.MadeBy(c.objects.Workloads, e.Pod.Namespace, e.Pod.Name)
	return len(made) > 0
}

// findPod returns the pod with that namespace and name, and whether its UID is the wanted one. It returns an empty pod
// if there is none.
func findPod(pods []policy.Pod, p endpoint.Pod) (policy.Pod, bool) {
	i := slices.IndexFunc(pods, func(o policy.Pod) bool { return o.Namespace == p.Namespace && o.Name == p.Name })
	if i < 0 {
		return policy.Pod{}, false
	}
	return pods[i], policy.SameUID(pods[i].UID, p.UID)
}

// runSource sends an event for each change of the source's objects.
func (a *agent) runSource(ctx context.Context) error {
	all := newAccumulated()
	err := a.Source.Run(ctx, func(d *policy.Delta, err error) { a.send(ctx, sourceUpdate{all.add(d), err}) })
	if err != nil {
		return fmt.Errorf("source of policies: %w", err)
	}
	return nil
}

// takeUpdate takes a new state of the source's objects. objects is nil if they haven't changed, or if the source has no
// usable state yet.
func (a *agent) takeUpdate(objects *policy.Objects, err error) {
	if objects != nil {
		if a.cluster.nodes.latest == nil {
			a.cluster.nodes.readLocal(a.netlink, a.Node)
		}
		a.acceptNodes(objects)
	}
	a.reportFiles()
	a.reportUnenforced()
	a.faults.nothingKnown = a.cluster.source == nil
	a.faults.set(partSource, err)
}

// lookup asks the source for an endpoint's pod that the source's objects don't have. The endpoint's plugin waits for
// an answer, but the loop doesn't: the answer comes as an event (podLookedUp).
func (a *agent) lookup(ctx context.Context, e endpoint.Endpoint) {
	source, ok := a.Source.(Lookup)
	if !ok {
		return
	}
	namesake, _ := findPod(a.cluster.source.Pods, e.Pod)
	go func() {
		pod, ok, err := source.Lookup(ctx, e.Pod)
		if err != nil {
			a.Log.Warn("a new pod isn't known yet, and asking the API server has failed", "pod", e.Pod.String(), "error", err)
		}
		if !ok || !policy.SameUID(pod.UID, e.Pod.UID) {
			return
		}
		a.send(ctx, podLookedUp{e.ID(), lookup{pod, namesake}})
	}()
}
