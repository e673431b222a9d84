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

// clusterView has the source's objects and the pods that were looked up.
//
// Invariants:
//   - engine has the source's objects, with only the accepted claims of the Nodes.
//   - In engine, a looked-up pod replaces the source's pods of its name. hidden keeps the replaced pods.
type clusterView struct {
	node       string // the name of this node's Node
	engine     *policy.Engine
	attached   *recordsCopy
	delta      uint64
	known      bool
	lookups    map[string]lookup // the results of look-ups, by endpoint ID
	hidden     map[policy.Name][]*policy.Pod
	workloads  []policy.Workload
	unattached unattached
	unenforced []policy.Unenforced
	nodes      nodeClaims
	parsing    bool // true while a goroutine parses a large policy, and while it rests afterwards
	// hurried means that the next reconcile is for events. This reconcile leaves large sets to later reconciles, so that
	// no event waits for large sets.
	hurried bool
	// A slice is a round that makes a part of the new sets. slices counts the slices in a row after which sets were still
	// missing. sliced is when the last of these slices ended.
	slices int
	sliced time.Time
}

// lookup is the source's answer about a pod that the source hadn't reported yet.
type lookup struct {
	pod *policy.Pod
	// namesake is the UID that the source's pod of this name had when the agent asked. It is empty if there was no such
	// pod.
	namesake string
}

func newClusterView(node string) clusterView {
	return clusterView{
		node: node, engine: policy.NewEngine(node), unattached: newUnattached(), lookups: map[string]lookup{},
		hidden: map[policy.Name][]*policy.Pod{},
	}
}

func (c *clusterView) update(d *policy.Delta, endpoints map[string]endpoint.Endpoint) {
	c.known, c.delta = true, d.Number
	if d.Workloads != nil {
		c.workloads = *d.Workloads
	}
	if d.Unenforced != nil {
		c.unenforced = *d.Unenforced
	}
	c.unattached.take(c.node, d.Pods)
	for name := range c.hidden {
		if pods, changed := d.Pods[name]; changed {
			c.hidden[name] = pods
			delete(d.Pods, name)
		}
	}
	c.engine.Apply(d)
	c.dropLookups(endpoints)
}

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

// dropLookups forgets the look-ups of ended endpoints. It also forgets a look-up if the source now has a pod of the
// same name that the source didn't have when the agent asked (lookup.namesake).
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

// knows reports whether the agent knows enough of the pod to enrol it. If the source has no pod of this name, a
// workload that makes pods with such names is enough. No policy isolates a pod with enforcement "off", so the agent
// needs to know nothing of such a pod.
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

func (a *agent) runSource(ctx context.Context) error {
	err := a.Source.Run(ctx, func(d *policy.Delta, err error) { a.send(ctx, sourceUpdate{d, err, time.Now()}) })
	if err != nil {
		return fmt.Errorf("source of policies: %w", err)
	}
	return nil
}

// takeUpdate takes the source's changes, and returns the work that they cause. In a large cluster, most changes cause
// no work.
func (a *agent) takeUpdate(d *policy.Delta, err error) work {
	first := !a.cluster.known
	remaining := work{reconcile: d == nil || first || d.Nodes != nil}
	if d != nil {
		if d.Nodes != nil || first {
			a.takeNodes(d)
		}
		a.cluster.update(d, a.records.endpoints)
		if first {
			a.lookupWaiting()
		}
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

func (a *agent) takeParsed(p *policy.Unparsed) work {
	a.cluster.engine.TakeParsed(p)
	if a.cluster.engine.HasSlice() {
		return work{reconcile: true}
	}
	a.publishSource()
	return work{}
}

// lookupWaiting looks up pods that the source's first report lacks, if their plugins wait for an answer.
func (a *agent) lookupWaiting() {
	for _, w := range a.enrolments.waiting {
		if ep, ok := a.records.endpoints[w.id]; ok && !a.cluster.knows(ep) {
			a.lookup(w.ctx, ep)
		}
	}
}

// lookup asks the source for a pod that the source hasn't reported yet. If the source finds the pod, and the pod has
// the UID that the runtime gave, the answer comes as an event (podLookedUp).
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
