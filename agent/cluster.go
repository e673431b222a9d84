package agent

import (
	"context"
	"fmt"
	"maps"
	"slices"
	"time"

	"github.com/weir-net/weir/conf"
	"github.com/weir-net/weir/endpoint"
	"github.com/weir-net/weir/policy"
)

// clusterView is the agent's view of the cluster. Invariants:
//   - engine has the source's objects, with only the accepted claims of the Nodes. In place of the pods of a name in
//     hidden, engine has the looked-up pod.
//   - hidden has the source's pods of each name that the agent has looked up.
type clusterView struct {
	engine *policy.Engine
	// attached is the copy of the records with the endpoints that engine has; nil before it has got any.
	attached *recordsCopy
	// delta is the number of the last delta that engine has.
	delta uint64
	// known is true once the source has given a usable state.
	known      bool
	lookups    map[string]lookup // by endpoint ID
	hidden     map[policy.Name][]*policy.Pod
	workloads  []policy.Workload
	unenforced []policy.Unenforced
	nodes      nodeClaims
	parsing    bool
}

// lookup is the source's answer about a pod that its objects didn't have.
type lookup struct {
	pod *policy.Pod
	// namesake is the UID of the pod of the same name that the source's objects had then. It is empty if they had
	// none.
	namesake string
}

func newClusterView(node string) clusterView {
	return clusterView{
		engine: policy.NewEngine(node), lookups: map[string]lookup{}, hidden: map[policy.Name][]*policy.Pod{},
	}
}

// update takes the changes of the source's objects. Pods of a looked-up name go into hidden instead of the engine.
func (c *clusterView) update(d *policy.Delta, endpoints map[string]endpoint.Endpoint) {
	c.known, c.delta = true, d.Number
	if d.Workloads != nil {
		c.workloads = *d.Workloads
	}
	if d.Unenforced != nil {
		c.unenforced = *d.Unenforced
	}
	for name := range c.hidden {
		if pods, changed := d.Pods[name]; changed {
			c.hidden[name] = pods
			delete(d.Pods, name)
		}
	}
	c.engine.Apply(d)
	c.dropLookups(endpoints)
}

// addLookup stores the answer to a Lookup. It drops earlier answers about other pods of the same name.
func (c *clusterView) addLookup(id string, l lookup, endpoints map[string]endpoint.Endpoint) {
	name := policy.Name{Namespace: l.pod.Namespace, Name: l.pod.Name}
	if _, ok := c.hidden[name]; !ok {
		c.hidden[name] = c.engine.Pods(name)
	}
	maps.DeleteFunc(c.lookups, func(_ string, o lookup) bool {
		return o.pod.Namespace == name.Namespace && o.pod.Name == name.Name && o.pod.UID != l.pod.UID
	})
	c.lookups[id] = l
	c.show(name)
	c.dropLookups(endpoints)
}

// dropLookups removes the lookups of ended endpoints. It also removes a lookup if the source has reported another
// pod of that name since. That pod is the looked-up one, or a newer one.
func (c *clusterView) dropLookups(endpoints map[string]endpoint.Endpoint) {
	for id, l := range c.lookups {
		name := policy.Name{Namespace: l.pod.Namespace, Name: l.pod.Name}
		pods := c.hidden[name]
		if _, ok := endpoints[id]; ok && (len(pods) == 0 || pods[0].UID == l.namesake) {
			continue
		}
		delete(c.lookups, id)
		c.show(name)
	}
}

// show gives the engine the looked-up pod of that name. Without a lookup, it gives the source's pods.
func (c *clusterView) show(name policy.Name) {
	pods, hidden := c.hidden[name], false
	for _, id := range slices.Sorted(maps.Keys(c.lookups)) {
		if l := c.lookups[id]; l.pod.Namespace == name.Namespace && l.pod.Name == name.Name {
			pods, hidden = []*policy.Pod{l.pod}, true
		}
	}
	if !hidden {
		delete(c.hidden, name)
	}
	d := policy.NewDelta()
	d.Pods[name] = pods
	c.engine.Apply(d)
}

// knows reports whether the endpoint's pod can be put into its classes. If the objects have no pod of this name, a
// workload that makes such pods is enough.
func (c *clusterView) knows(e endpoint.Endpoint) bool {
	if e.Enforcement == conf.Off {
		return true
	}
	if uid, ok := c.uid(e.Pod); ok {
		return policy.SameUID(uid, e.Pod.UID)
	}
	made, _ := policy.MadeBy(c.workloads, e.Pod.Namespace, e.Pod.Name)
	return len(made) > 0
}

func (c *clusterView) uid(p endpoint.Pod) (string, bool) {
	pods := c.engine.Pods(policy.Name{Namespace: p.Namespace, Name: p.Name})
	if len(pods) == 0 {
		return "", false
	}
	return pods[0].UID, true
}

// namesake returns the UID of the source's pod of that name. It is empty if the source has none. A looked-up pod
// doesn't count.
func (c *clusterView) namesake(p endpoint.Pod) string {
	if pods, ok := c.hidden[policy.Name{Namespace: p.Namespace, Name: p.Name}]; ok {
		if len(pods) == 0 {
			return ""
		}
		return pods[0].UID
	}
	uid, _ := c.uid(p)
	return uid
}

// runSource runs the source until ctx ends, and sends an event for each of the source's updates.
func (a *agent) runSource(ctx context.Context) error {
	err := a.Source.Run(ctx, func(d *policy.Delta, err error) { a.send(ctx, sourceUpdate{d, err, time.Now()}) })
	if err != nil {
		return fmt.Errorf("source of policies: %w", err)
	}
	return nil
}

// takeUpdate takes the changes of the source's objects, and returns the work that remains. d may be nil. In a large
// cluster most changes leave no work.
func (a *agent) takeUpdate(d *policy.Delta, err error) work {
	remaining := work{reconcile: d == nil || !a.cluster.known || d.Nodes != nil}
	if d != nil {
		if d.Nodes != nil || !a.cluster.known {
			a.takeNodes(d)
		}
		a.cluster.update(d, a.records.endpoints)
	}
	a.reportFiles()
	a.reportUnenforced()
	a.faults.nothingKnown = !a.cluster.known
	a.faults.set(partSource, err)
	if remaining.reconcile = remaining.reconcile || a.cluster.engine.HasSlice(); !remaining.reconcile {
		a.publishSource()
	}
	return remaining
}

// takeParsed takes parsed policies. It returns the work that remains: none if no pod of this node has the policies.
func (a *agent) takeParsed(p *policy.Unparsed) work {
	a.cluster.parsing = false
	a.cluster.engine.TakeParsed(p)
	if a.cluster.engine.HasSlice() {
		return work{reconcile: true}
	}
	a.publishSource()
	return work{}
}

// lookup asks the source for an endpoint's pod that its objects don't have. The loop doesn't wait: the answer comes
// as an event (podLookedUp). Without an answer, no event comes.
func (a *agent) lookup(ctx context.Context, e endpoint.Endpoint) {
	source, ok := a.Source.(Lookup)
	if !ok {
		return
	}
	namesake := a.cluster.namesake(e.Pod)
	go func() {
		pod, ok, err := source.Lookup(ctx, e.Pod)
		if err != nil {
			a.Log.Warn("a new pod isn't known yet, and asking the API server has failed", "pod", e.Pod.String(), "error", err)
		}
		if !ok || !policy.SameUID(pod.UID, e.Pod.UID) {
			return
		}
		a.send(ctx, podLookedUp{e.ID(), lookup{&pod, namesake}})
	}()
}
