package explain

import (
	"fmt"
	"net/netip"
	"slices"
	"strings"

	"github.com/weir-net/weir/conf"
	"github.com/weir-net/weir/internal/excerpt"
	"github.com/weir-net/weir/policy"
	"github.com/weir-net/weir/policy/ruleset"
)

// resolve finds the object that r names, or the Service that has r's address. If a pod and a Service have the name, it
// returns the pod. It returns an error if no object has the name, or if r has no namespace and several objects have the
// name.
func (c *Cluster) resolve(r Ref) (Ref, error) {
	switch r.Kind {
	case EndWorld:
		return r, nil
	case EndAddress:
		if p := c.placeOf(r.Address); p.isNode || p.Pod != "" {
			return r, nil
		}
		if all := c.servicesAt(r.Address, Ref{}); len(all) > 0 {
			return refTo(all[0], r.Address), nil
		}
		return r, nil
	case EndNode:
		if !slices.ContainsFunc(c.Nodes, func(n policy.Node) bool { return n.Name == r.Name }) {
			var all []string
			for _, n := range c.Nodes {
				all = append(all, "node/"+n.Name)
			}
			return Ref{}, unknown("node", r, all)
		}
		return r, nil
	}
	var found []Ref
	pods, services := c.PodNames(), c.serviceNames()
	if r.Kind != EndService {
		found = append(found, matching(r, EndPod, pods)...)
	}
	if r.Kind != EndPod && len(found) == 0 {
		found = matching(r, EndService, services)
	}
	switch {
	case len(found) == 1:
		return found[0], nil
	case len(found) > 1:
		var forms []string
		for _, f := range found[:min(len(found), 5)] {
			forms = append(forms, f.String())
		}
		return Ref{}, inputError("%s is ambiguous: write %s", r, strings.Join(forms, " or "))
	case r.Kind == EndService:
		return Ref{}, unknown("Service", r, prefixed("svc/", services))
	}
	return Ref{}, unknown("pod", r, slices.Concat(pods, prefixed("svc/", services)))
}

// resolveTo returns the object that a connection from the end "from" to the port of r reaches, such as a pod or a
// Service. Several Services may share an address, and each has its own ports. An address of a node may also be an
// address of Services. If none of these Services has the port, the connection reaches the node.
func (c *Cluster) resolveTo(r Ref, port Port, from Ref) (Ref, error) {
	if r.Kind != EndAddress {
		return c.resolve(r)
	}
	all := c.servicesAt(r.Address, from)
	var names []string
	for _, s := range all {
		if slices.ContainsFunc(s.Ports, port.isOf) {
			return refTo(s, r.Address), nil
		}
		names = append(names, "svc/"+s.String())
	}
	switch {
	case len(all) == 0, port != Port{} && c.placeOf(r.Address).isNode:
		return r, nil
	case len(all) == 1 || port.Proto == ruleset.ICMP:
		return refTo(all[0], r.Address), nil
	case port == Port{}:
		return r, inputError("%s is the address of several Services, %s: name one of them, or a port", r,
			excerpt.List(names, ", "))
	}
	return r, inputError("%s is the address of several Services, %s, and none of them has port %s", r,
		excerpt.List(names, ", "), portForm(port))
}

func refTo(s *policy.Service, a netip.Addr) Ref {
	return Ref{Kind: EndService, Namespace: s.Namespace, Name: s.Name, Address: a}
}

// servicesAt returns the Services that a connection from the end "from" reaches at the address. A Service's field
// Proxied has addresses of a load balancer that kube-proxy doesn't translate (ipMode: Proxy). At such an address,
// only connections from outside of the cluster reach the Service.
func (c *Cluster) servicesAt(a netip.Addr, from Ref) (all []*policy.Service) {
	outside := c.outside(from)
	for i := range c.Services {
		if s := &c.Services[i]; s.Has(a) || outside && slices.Contains(s.Proxied, a) {
			all = append(all, s)
		}
	}
	return all
}

func (c *Cluster) outside(r Ref) bool {
	if r.Kind != EndAddress {
		return r.Kind == EndWorld
	}
	p := c.placeOf(r.Address)
	return p.Pod == "" && p.Node == ""
}

func (c *Cluster) nodePort(to Ref, port Port) (*policy.Service, policy.ServicePort) {
	if port.Number == 0 || (to.Kind != EndNode && (to.Kind != EndAddress || !c.placeOf(to.Address).isNode)) {
		return nil, policy.ServicePort{}
	}
	for i := range c.Services {
		for _, p := range c.Services[i].Ports {
			if p.NodePort == port.Number && p.Proto == port.Proto {
				return &c.Services[i], p
			}
		}
	}
	return nil, policy.ServicePort{}
}

// PodNames returns "NAMESPACE/NAME" of each pod once, in order, also of pods that have only an endpoint on the node.
func (c *Cluster) PodNames() []string {
	var all []string
	for i := range c.Pods {
		all = append(all, c.Pods[i].Namespace+"/"+c.Pods[i].Name)
	}
	for _, e := range c.Endpoints {
		all = append(all, e.Pod.String())
	}
	slices.Sort(all)
	return slices.Compact(all)
}

func (c *Cluster) serviceNames() (all []string) {
	for _, s := range c.Services {
		all = append(all, s.String())
	}
	return all
}

func prefixed(prefix string, names []string) []string {
	all := make([]string, len(names))
	for i, n := range names {
		all[i] = prefix + n
	}
	return all
}

func matching(r Ref, kind EndKind, names []string) (found []Ref) {
	for _, n := range names {
		namespace, name, _ := strings.Cut(n, "/")
		if name == r.Name && (r.Namespace == "" || namespace == r.Namespace) {
			found = append(found, Ref{Kind: kind, Namespace: namespace, Name: name})
		}
	}
	return found
}

// CheckName returns an InputError with the nearest names if the wanted name isn't in the list of names. kind is a word
// such as pod. The names in the list include their namespaces. The wanted name may include a namespace.
func CheckName(kind, want string, names []string) error {
	r := Ref{Kind: EndNamed, Name: want}
	if namespace, name, has := strings.Cut(want, "/"); has {
		r.Namespace, r.Name = namespace, name
	}
	if len(matching(r, EndNamed, names)) > 0 {
		return nil
	}
	return unknown(kind, r, names)
}

func unknown(kind string, r Ref, names []string) error {
	want := r.String()
	candidates := names
	if r.Namespace == "" && r.Kind != EndNode {
		candidates = nil
		for _, n := range names {
			candidates = append(candidates, n[strings.LastIndexByte(n, '/')+1:])
		}
	}
	near := nearest(want, candidates)
	if r.Namespace == "" && r.Kind != EndNode { // show the similar names with their namespaces
		var whole []string
		for _, n := range names {
			if slices.Contains(near, n[strings.LastIndexByte(n, '/')+1:]) && len(whole) < 3 {
				whole = append(whole, n)
			}
		}
		near = whole
	}
	if len(near) == 0 {
		// The name may be right and its namespace wrong.
		for _, n := range names {
			if strings.HasSuffix(n, "/"+r.Name) && len(near) < 3 {
				near = append(near, n)
			}
		}
	}
	err := inputError("there is no %s %s", kind, want)
	if len(near) > 0 {
		err = inputError("there is no %s %s; the nearest names are %s", kind, want, strings.Join(near, ", "))
	}
	err.missing = want
	return err
}

func (c *Cluster) service(r Ref) *policy.Service {
	i := slices.IndexFunc(c.Services, func(s policy.Service) bool {
		return s.Namespace == r.Namespace && s.Name == r.Name
	})
	if i < 0 {
		return nil
	}
	return &c.Services[i]
}

func (c *Cluster) pods(namespace, name string) (all []*policy.Pod) {
	for i := range c.Pods {
		if p := &c.Pods[i]; p.Namespace == namespace && p.Name == name {
			all = append(all, p)
		}
	}
	return all
}

// senders returns the addresses from which the end sends. A pod that uses its node's network sends from its node's
// addresses.
func (c *Cluster) senders(r Ref) ([]Place, error) {
	all, err := c.places(r)
	if err != nil || r.Kind != EndPod || !all[0].HostNetwork {
		return all, err
	}
	node, err := c.nodePlaces(all[0].Node)
	if err != nil {
		return all, nil //nolint:nilerr // the Node is unknown, but the pod's addresses are known
	}
	for _, p := range node {
		if p.isTunnel {
			p.Pod, p.HostNetwork = all[0].Pod, true
			p.What = "under which its node " + p.Node + " sends through the tunnel"
			all = append(all, p)
		}
	}
	return all, nil
}

func (c *Cluster) places(r Ref) ([]Place, error) {
	switch r.Kind {
	case EndAddress:
		return []Place{c.placeOf(r.Address)}, nil
	case EndNode:
		return c.nodePlaces(r.Name)
	case EndWorld:
		return c.worldPlaces(), nil
	}
	var all []Place
	seen := map[conf.Family]bool{}
	add := func(a netip.Addr, here bool) {
		if seen[conf.FamilyOf(a)] {
			return
		}
		seen[conf.FamilyOf(a)] = true
		p := Place{Address: a, Pod: r.Namespace + "/" + r.Name, Here: here, Invented: c.IsInvented(a)}
		for _, o := range c.pods(r.Namespace, r.Name) {
			p.Node, p.HostNetwork = nodeOf(o), o.HostNetwork
		}
		if here {
			p.Node = c.Node
		}
		p.isNode = p.HostNetwork
		all = append(all, p)
	}
	for _, e := range c.Endpoints {
		if e.Pod.Namespace == r.Namespace && e.Pod.Name == r.Name {
			for _, a := range e.Addresses {
				add(a.Addr, true)
			}
		}
	}
	pods := c.pods(r.Namespace, r.Name)
	for _, p := range pods {
		if p.Finished && len(all) == 0 {
			return nil, inputError("pod %s has ended, so it has no address any more", r)
		}
		for _, a := range p.Addresses {
			add(a, false)
		}
		if p.HostNetwork && len(all) == 0 {
			nodes, err := c.nodePlaces(p.NodeName)
			if err != nil {
				return nil, inputError("pod %s uses its node's network, and no address of the node is known: ask about one", r)
			}
			for _, n := range nodes {
				add(n.Address, false)
			}
		}
	}
	if len(all) == 0 {
		return nil, inputError("pod %s has no address yet: it has not started, or weir has not attached it", r)
	}
	return all, nil
}

func (c *Cluster) placeOf(a netip.Addr) Place {
	p := Place{Address: a}
	for _, e := range c.Endpoints {
		for _, own := range e.Addresses {
			if own.Addr == a {
				return Place{Address: a, Pod: e.Pod.String(), Node: c.Node, Here: true}
			}
		}
	}
	for i := range c.Pods {
		o := &c.Pods[i]
		if slices.Contains(o.Addresses, a) && !o.Finished && !o.HostNetwork {
			p.Pod, p.Node, p.Invented = o.Namespace+"/"+o.Name, nodeOf(o), c.IsInvented(a)
			return p
		}
	}
	if slices.Contains(c.Own, a) {
		return Place{Address: a, Node: c.Node, What: "an address of this node", isNode: true, isOwn: true}
	}
	for _, n := range c.Nodes {
		if slices.Contains(n.Addresses, a) {
			p.Node, p.What, p.isNode = n.Name, "an address of node "+n.Name, true
			return p
		}
		for _, cidr := range c.podCIDRs(n) {
			if a == cidr.Addr() || a == cidr.Addr().Next() {
				p.Node, p.isNode = n.Name, true
				p.What = fmt.Sprintf("the address of node %s in the pods' network", n.Name)
				return p
			}
			if cidr.Contains(a) {
				p.Node, p.What = n.Name, fmt.Sprintf("in the pods' network of node %s, but of no pod", n.Name)
				p.isUnused, p.isVacant = true, c.isComplete()
			}
		}
	}
	if c.isOurs(a) {
		what := "in the pods' network of this node, but of no pod"
		return Place{Address: a, Node: c.Node, What: what, isUnused: true, isVacant: true}
	}
	if p.What == "" && len(c.Nodes) > 0 {
		p.What = "outside of the pods' networks"
	}
	return p
}

// nodePlaces returns the addresses from which the node sends: its InternalIP, and for the tunnel to other nodes the
// network address of its podCIDR.
func (c *Cluster) nodePlaces(name string) (all []Place, err error) {
	for _, n := range c.Nodes {
		if n.Name != name {
			continue
		}
		for _, a := range n.Addresses {
			own := slices.Contains(c.Own, a)
			all = append(all, Place{Address: a, Node: name, What: "an address of node " + name, isNode: true, isOwn: own})
		}
		for _, cidr := range c.podCIDRs(n) {
			all = append(all, Place{
				Address: cidr.Addr(), Node: name, isNode: true, isTunnel: true,
				What: fmt.Sprintf("node %s's address in the pods' network, under which it sends through the tunnel", name),
			})
		}
	}
	if len(all) == 0 {
		return nil, inputError("node %s has no InternalIP and no podCIDR", name)
	}
	return all, nil
}
