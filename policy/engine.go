package policy

import (
	"cmp"
	"maps"
	"net/netip"
	"slices"

	"github.com/weir-net/weir/conf"
	"github.com/weir-net/weir/internal/hashed"
	"github.com/weir-net/weir/internal/ordered"
	"github.com/weir-net/weir/policy/ruleset"
)

// Engine compiles the ruleset of one node, and keeps it up to date from deltas. Compile gives the same ruleset
// for the same state, but perhaps with another order of problems. Most events cost the same in a cluster of any
// size:
//
//   - If no policy of the node's pods concerns the changed pod, a few look-ups are enough.
//   - If a peer changes, entries of sets change.
//   - If the node's own pods or their policies change, the rules of their namespaces are compiled again.
//
// An Engine isn't safe for concurrent use. The rulesets that it returns never change.
type Engine struct {
	node string

	pods     hashed.Map[Name, pod] // the first of each name
	spaces   map[string]*space
	crowds   int // the number of crowds in all spaces
	unparsed map[Name]float64
	names    ordered.Map[string, bool] // by the name of each policy, NAMESPACE/NAME: whether it is audited
	places   places
	networks [len(conf.Families)]ruleset.Entries // the podCIDRs of all Nodes
	workload []Workload

	endpoints map[string]Endpoint        // by ID
	attached  map[Name][]string          // the IDs of a pod's endpoints, in order
	local     map[string]map[string]bool // by namespace: the IDs of the endpoints
	expected  map[string]map[*pod]bool   // by namespace: the pods that will run on this node and have no address yet
	refused   ruleset.Refused

	addresses addressBook
	selectors selectorIndex
	moving    moving
	unswept   []*crowd // their matches may have selectors that are gone
	reports   reports

	compiler *compiler
	touched  map[string]bool // the namespaces that must be compiled again
	common   bool            // what belongs to no policy must be compiled again
	stale    bool            // what the kernel refuses, or the size of a set, has changed
	ruleset  ruleset.Ruleset
}

type pod struct {
	*Pod
	next *pod // another pod of the same name; nil if there is none
	made bool // a workload can have made the pod; the source doesn't have it
	// crowd is nil if the pod has no addresses of its own.
	crowd *crowd
	place int // the index in crowd.pods
	here  bool
	// addresses are those of the pod's endpoints here. Without endpoints here, they are those of the pod's status
	// that policy uses (places.believed).
	addresses []netip.Addr
}

func (p *pod) key() Name { return p.name() }

// NewEngine returns an engine for the node of that name. The name is empty if it isn't known.
func NewEngine(node string) *Engine {
	e := &Engine{
		node: node, pods: hashed.New((*pod).key), spaces: map[string]*space{}, unparsed: map[Name]float64{},
		names:     ordered.New[string, bool](cmp.Compare),
		endpoints: map[string]Endpoint{}, attached: map[Name][]string{}, local: map[string]map[string]bool{},
		expected: map[string]map[*pod]bool{}, touched: map[string]bool{}, common: true,
		addresses: newAddressBook(), selectors: newSelectorIndex(), moving: newMoving(),
	}
	e.places = newPlaces(State{Node: node})
	e.compiler = newCompiler(e)
	return e
}

// Apply takes the changes of a delta, except those of Nodes and Unenforced. SetNodes takes Nodes.
func (e *Engine) Apply(d *Delta) {
	for name, n := range d.Namespaces {
		e.setNamespace(name, n)
	}
	for name, policies := range d.Policies {
		e.setPolicies(name, policies)
	}
	if d.Workloads != nil {
		e.workload = *d.Workloads
		for name := range e.attached {
			e.setPods(name, e.given(name))
		}
	}
	for name, pods := range d.Pods {
		e.setPods(name, pods)
		e.settleSome()
	}
	if d.Problems != nil {
		e.reports.set(reportOf{}, *d.Problems)
	}
	e.settle()
}

// SetRefused takes the parts of rulesets that the node's kernel refuses.
func (e *Engine) SetRefused(r ruleset.Refused) {
	if !maps.Equal(e.refused, r) {
		e.refused, e.stale = r, true
		e.compiler.setRefused(r)
	}
}

// SetNodes replaces all Nodes. The new Nodes must have only the claims that count (package claims).
func (e *Engine) SetNodes(nodes []Node) {
	was := e.places
	e.places = newPlaces(State{Objects: Objects{Nodes: nodes}, Node: e.node})
	same := func(name string) bool {
		before, had := was.nodes[name]
		now, has := e.places.nodes[name]
		return had == has && slices.Equal(before.PodCIDRs, now.PodCIDRs)
	}
	changed := map[string]bool{}
	for _, all := range []map[string]Node{was.nodes, e.places.nodes} {
		for name := range all {
			if !same(name) {
				changed[name] = true
			}
		}
	}
	if len(changed) == 0 && was.unknown == e.places.unknown {
		return
	}
	e.networks, e.common = nodeNetworks(nodes), true
	all := changed[e.node] || was.unknown != e.places.unknown
	for _, first := range e.pods.All() {
		for p := first; p != nil; p = p.next {
			if len(p.Addresses) > 0 && (all || changed[p.NodeName]) && !p.here {
				e.withdraw(p)
				e.admit(p)
			}
		}
		e.settleSome()
	}
	e.settle()
}

// SetEndpoints replaces all attachments on this node.
func (e *Engine) SetEndpoints(endpoints []Endpoint) {
	now := make(map[string]Endpoint, len(endpoints))
	changed := map[Name]bool{}
	for _, n := range endpoints {
		now[n.ID] = n
		was, ok := e.endpoints[n.ID]
		switch {
		case ok && was.equal(n):
			continue
		case ok:
			changed[was.Pod.name()] = true
		}
		changed[n.Pod.name()] = true
	}
	for id, was := range e.endpoints {
		if _, ok := now[id]; !ok {
			changed[was.Pod.name()] = true
		}
	}
	if len(changed) == 0 {
		return
	}
	e.common = true
	for name := range changed {
		e.touched[name.Namespace] = true
		for p := e.pods.Get(name); p != nil; p = p.next {
			e.withdraw(p)
		}
		for _, id := range e.attached[name] {
			e.take(e.endpoints[id], -1)
			take(e.local, name.Namespace, id)
		}
		delete(e.attached, name)
	}
	e.endpoints = now
	for _, id := range slices.Sorted(maps.Keys(now)) {
		if name := now[id].Pod.name(); changed[name] {
			e.attached[name] = append(e.attached[name], id)
			e.take(now[id], 1)
			give(e.local, name.Namespace, id)
		}
	}
	for name := range changed {
		e.setPods(name, e.given(name))
	}
	e.settle()
}

func (p PodRef) name() Name { return Name{p.Namespace, p.Name} }

func give[T comparable](to map[string]map[T]bool, namespace string, v T) {
	if to[namespace] == nil {
		to[namespace] = map[T]bool{}
	}
	to[namespace][v] = true
}

func take[T comparable](from map[string]map[T]bool, namespace string, v T) {
	if delete(from[namespace], v); len(from[namespace]) == 0 {
		delete(from, namespace)
	}
}

func (e *Engine) take(of Endpoint, by int) {
	for _, a := range of.Addresses {
		e.touch(a.Addr)
		e.countFor(a.Addr, -1)
		if e.addresses.taken[a.Addr] += by; e.addresses.taken[a.Addr] == 0 {
			delete(e.addresses.taken, a.Addr)
		}
		e.countFor(a.Addr, 1)
	}
}

func (e *Engine) countFor(a netip.Addr, by int) {
	for _, p := range e.addresses.all(a) {
		for _, stated := range p.addresses {
			if stated == a {
				e.count(p, a, by)
			}
		}
	}
}

func (e *Engine) given(name Name) (pods []*Pod) {
	for p := e.pods.Get(name); p != nil; p = p.next {
		if !p.made {
			pods = append(pods, p.Pod)
		}
	}
	return pods
}

func (e *Engine) setPods(name Name, pods []*Pod) {
	for p := e.pods.Get(name); p != nil; p = p.next {
		e.withdraw(p)
	}
	local := e.attached[name] != nil
	var by []Workload
	made := local && len(pods) == 0
	if made {
		var all []Pod
		all, by = MadeBy(e.workload, name.Namespace, name.Name)
		for i := range all {
			pods = append(pods, &all[i])
		}
	}
	e.reports.set(reportOf{ambiguous: name}, nil)
	if local && len(pods) > 1 {
		values := make([]Pod, len(pods))
		for i, p := range pods {
			values[i] = *p
		}
		e.reports.set(reportOf{ambiguous: name}, []ruleset.Problem{ambiguous(values, by)})
	}
	e.pods.Delete(name)
	var first, last *pod
	for _, p := range pods {
		if next := (&pod{Pod: p, made: made}); first == nil {
			first, last = next, next
		} else {
			last.next, last = next, next
		}
	}
	if first != nil {
		e.pods.Put(first)
	}
	for p := first; p != nil; p = p.next {
		e.admit(p)
	}
	if local {
		e.touched[name.Namespace] = true
	}
}

func (e *Engine) withdraw(p *pod) {
	if e.expected[p.Namespace][p] {
		take(e.expected, p.Namespace, p)
		e.touched[p.Namespace] = true
	}
	e.reports.set(reportOf{pod: p}, nil)
	if p.crowd == nil {
		return
	}
	for _, a := range p.addresses {
		e.touch(a)
		e.count(p, a, -1)
	}
	for _, a := range p.addresses {
		e.addresses.remove(a, p)
	}
	e.leave(p)
}

func (e *Engine) admit(p *pod) {
	name := p.name()
	addresses := e.endpointAddresses(name)
	p.addresses, p.here = addresses, addresses != nil
	if p.NodeName == e.node && len(p.Addresses) == 0 && e.attached[name] == nil && !p.HostNetwork && !p.Finished {
		give(e.expected, p.Namespace, p)
		e.touched[p.Namespace] = true
	}
	if p.HostNetwork {
		return
	}
	if !p.here && !p.Finished {
		var problems []ruleset.Problem
		p.addresses, problems = e.places.believed(*p.Pod)
		e.reports.set(reportOf{pod: p}, problems)
	}
	if len(p.addresses) == 0 {
		return
	}
	e.join(p)
	for _, a := range p.addresses {
		e.touch(a)
		e.addresses.add(a, p)
		e.count(p, a, 1)
	}
}

func (e *Engine) endpointAddresses(name Name) (addresses []netip.Addr) {
	for _, id := range e.attached[name] {
		of := e.endpoints[id]
		if len(e.podsOf(of)) == 0 {
			continue
		}
		for _, a := range of.Addresses {
			addresses = append(addresses, a.Addr)
		}
	}
	return addresses
}

func (e *Engine) podsOf(of Endpoint) (pods []*Pod) {
	for p := e.pods.Get(of.Pod.name()); p != nil; p = p.next {
		if SameUID(p.UID, of.Pod.UID) {
			pods = append(pods, p.Pod)
		}
	}
	return pods
}

// Pods returns the pods of that name that Apply was told of. It leaves out pods that the engine made from workloads.
func (e *Engine) Pods(name Name) []*Pod { return e.given(name) }

// Policies returns the names of all policies (NAMESPACE/NAME) in order, and whether each is audited. The result
// never changes.
func (e *Engine) Policies() ordered.Map[string, bool] { return e.names }
