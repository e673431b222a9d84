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

// Engine compiles the ruleset of one node, and keeps it up to date from deltas. Compile gives the same ruleset for the
// same state, except for the order of problems. Most events cost the same in a small and in a large cluster:
//
//   - If a pod of another node changes, and no policy of this node's pods has it as a peer, a few look-ups are enough.
//   - If a peer in a policy of this node's pods changes, only entries of sets change.
//   - If a pod of the node or one of its policies changes, the rules of the namespace are compiled again.
//
// The time for an event of a Node grows with the number of Nodes. If the Node has pods, the time also grows with the
// number of pods in the cluster.
//
// Only one goroutine may use an Engine. The rulesets that it returns never change.
type Engine struct {
	node string

	pods     hashed.Map[Name, pod] // the first pod of each name
	spaces   map[string]*space
	crowds   int
	unparsed map[Name]float64
	names    ordered.Map[string, bool] // names of policies (NAMESPACE/NAME), and whether each is audited
	places   places
	// placed is how many pods with an address each Node has. Pods with the node's network don't count.
	placed   map[string]int
	networks [len(conf.Families)]ruleset.Entries // podCIDRs of all Nodes
	workload []Workload

	endpoints map[string]Endpoint        // by ID
	attached  map[Name][]string          // IDs of a pod's endpoints, in order
	local     map[string]map[string]bool // IDs of endpoints, by namespace
	expected  map[string]map[*pod]bool   // pods of this node that have no address and no endpoint yet, by namespace
	refused   ruleset.Refused
	strays6   bool

	addresses addressBook
	selectors selectorIndex
	moving    moving
	unswept   []*crowd // crowds (pods with equal labels) whose field matches may have unused selectors
	reports   reports

	compiler *compiler
	touched  map[string]bool // namespaces to compile again
	common   bool            // true if rules and sets that belong to no policy must be compiled again
	stale    bool            // true if a set's size, or what the kernel refuses, has changed
	ruleset  ruleset.Ruleset
}

type pod struct {
	*Pod
	next         *pod // another pod of the same name, or nil
	fromWorkload bool // true if the engine made the pod from a workload, because the source has no such pod
	// crowd is nil if the pod uses its node's addresses (HostNetwork), or if the field addresses is empty.
	crowd *crowd
	place int  // index in crowd.pods
	local bool // true if the pod is on this node
	// addresses are those of the pod's endpoints on this node. If the pod has no endpoint here, addresses are those of
	// its status that policies may use (places.believed).
	addresses []netip.Addr
}

func (p *pod) key() Name { return p.name() }

// NewEngine returns an engine for the node of this name. The name may be empty if it isn't known.
func NewEngine(node string) *Engine {
	e := &Engine{
		node: node, pods: hashed.New((*pod).key), spaces: map[string]*space{}, unparsed: map[Name]float64{},
		names: ordered.New[string, bool](cmp.Compare), placed: map[string]int{},
		endpoints: map[string]Endpoint{}, attached: map[Name][]string{}, local: map[string]map[string]bool{},
		expected: map[string]map[*pod]bool{}, touched: map[string]bool{}, common: true,
		addresses: newAddressBook(), selectors: newSelectorIndex(), moving: newMoving(),
	}
	e.places = newPlaces(State{Node: node})
	e.compiler = newCompiler(e, usualLimits)
	return e
}

// Apply makes the changes of a delta. It ignores Nodes (see SetNodes) and Unenforced.
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

// SetRefused tells the engine which parts of rulesets the node's kernel refuses. Later rulesets don't have these parts.
func (e *Engine) SetRefused(r ruleset.Refused) {
	if !maps.Equal(e.refused, r) {
		e.refused, e.stale = r, true
		e.compiler.setRefused(r)
	}
}

// SetStrays6 tells the engine whether the kernel has IPv6 addresses of pods that may have no endpoint (State.Strays6).
func (e *Engine) SetStrays6(strays bool) {
	if e.strays6 != strays {
		e.strays6, e.common = strays, true
	}
}

// SetNodes replaces all Nodes. The Nodes must have only valid claims (package claims).
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
	e.readmit(func(node string) bool { return all || changed[node] })
	e.settle()
}

// SetEndpoints replaces all attachments of this node.
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
			e.countEndpoint(e.endpoints[id], -1)
			removeFrom(e.local, name.Namespace, id)
		}
		delete(e.attached, name)
	}
	e.endpoints = now
	for _, id := range slices.Sorted(maps.Keys(now)) {
		if name := now[id].Pod.name(); changed[name] {
			e.attached[name] = append(e.attached[name], id)
			e.countEndpoint(now[id], 1)
			addTo(e.local, name.Namespace, id)
		}
	}
	for name := range changed {
		e.setPods(name, e.given(name))
	}
	e.settle()
}

func (p PodRef) name() Name { return Name{p.Namespace, p.Name} }

func addTo[T comparable](to map[string]map[T]bool, namespace string, v T) {
	if to[namespace] == nil {
		to[namespace] = map[T]bool{}
	}
	to[namespace][v] = true
}

func removeFrom[T comparable](from map[string]map[T]bool, namespace string, v T) {
	if delete(from[namespace], v); len(from[namespace]) == 0 {
		delete(from, namespace)
	}
}

func (e *Engine) countEndpoint(of Endpoint, by int) {
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
		if !p.fromWorkload {
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
	fromWorkload := local && len(pods) == 0
	if fromWorkload {
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
	e.countPlaced(e.pods.Get(name), -1)
	e.pods.Delete(name)
	var first, last *pod
	for _, p := range pods {
		if next := (&pod{Pod: p, fromWorkload: fromWorkload}); first == nil {
			first, last = next, next
		} else {
			last.next, last = next, next
		}
	}
	if first != nil {
		e.pods.Put(first)
		e.countPlaced(first, 1)
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
		removeFrom(e.expected, p.Namespace, p)
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
	e.leaveCrowd(p)
}

func (e *Engine) admit(p *pod) {
	name := p.name()
	addresses := e.endpointAddresses(name)
	p.addresses, p.local = addresses, addresses != nil
	if p.NodeName == e.node && len(p.Addresses) == 0 && e.attached[name] == nil && !p.HostNetwork && !p.Finished {
		addTo(e.expected, p.Namespace, p)
		e.touched[p.Namespace] = true
	}
	if p.HostNetwork {
		return
	}
	if !p.local && !p.Finished {
		var problems []ruleset.Problem
		p.addresses, problems = e.places.believed(*p.Pod)
		e.reports.set(reportOf{pod: p}, problems)
	}
	if len(p.addresses) == 0 {
		return
	}
	e.joinCrowd(p)
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

// Pods returns the pods of this name that Apply has been given. It leaves out pods that the engine made from workloads.
func (e *Engine) Pods(name Name) []*Pod { return e.given(name) }

// Policies returns the names of all policies (NAMESPACE/NAME) in order, and whether each is audited. The returned map
// never changes.
func (e *Engine) Policies() ordered.Map[string, bool] { return e.names }
