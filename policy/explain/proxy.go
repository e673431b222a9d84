package explain

import (
	"cmp"
	"fmt"
	"net/netip"
	"slices"

	"github.com/weir-net/weir/conf"
	"github.com/weir-net/weir/policy"
)

// entrance says how a connection comes to a Service. kube-proxy's choice of endpoints depends on the entrance.
type entrance struct {
	outside bool
	// address is the destination. If the query names the Service instead of an address, address is invalid (the
	// zero value).
	address netip.Addr
	// node is the node whose nodePort or hostPort is the destination, or "". If a sender in the cluster connects to
	// an externalIP or a load balancer's address, node is the sender's node.
	node string
	// sender is the sender's node, or "" if the sender is outside of the cluster or its node is unknown.
	sender string
}

// external reports whether the connection goes to an address by which hosts outside of the cluster reach the Service.
func (in entrance) external(s *policy.Service) bool {
	return in.outside || in.node != "" || in.address.IsValid() && !slices.Contains(s.ClusterIPs, in.address)
}

// receiver returns the only node whose endpoints kube-proxy may use, and the field of the Service that says so.
// field is "" if kube-proxy may use endpoints on all nodes. With internalTrafficPolicy: Local, node is "" if the
// sender's node is unknown. externalTrafficPolicy: Local doesn't limit connections to a nodePort of the sender's node.
func (in entrance) receiver(s *policy.Service) (node, field string) {
	switch {
	case s.Headless:
	case in.node != "" && s.Local && in.sender != in.node:
		return in.node, "externalTrafficPolicy"
	case s.InternalLocal && !in.external(s):
		return in.sender, "internalTrafficPolicy"
	}
	return "", ""
}

// onReceiver leaves out the endpoints on other nodes if kube-proxy may use only the endpoints of one node
// (in.receiver). If the source has no EndpointSlices, endpoints on unknown nodes stay.
func (x *explainer) onReceiver(s *policy.Service, in entrance, all []target) []target {
	node, field := in.receiver(s)
	if node == "" {
		if s.InternalLocal && !s.Headless && !in.external(s) {
			x.note("svc/%s has internalTrafficPolicy: Local, so only endpoints on the sender's node get its connections. It "+
				"is unknown on which node the sender is", s)
		}
		return all
	}
	near := slices.DeleteFunc(slices.Clone(all), func(t target) bool {
		return t.on != node && (t.on != "" || s.Endpoints != nil)
	})
	switch unknown := slices.ContainsFunc(near, func(t target) bool { return t.on == "" }); {
	case len(near) == 0 && len(all) > 0:
		x.note("svc/%s has %s: Local, and node %s has no endpoint of it, so kube-proxy drops connections to it there, "+
			"whatever the policies are", s, field, node)
	case unknown:
		x.note("svc/%s has %s: Local, so only endpoints on node %s get these connections. It is unknown on which nodes its "+
			"pods are", s, field, node)
	case len(near) < len(all):
		x.note("svc/%s has %s: Local, so only endpoints on node %s get these connections", s, field, node)
	}
	return near
}

// inFamilies keeps only endpoints of the Service's families. If the query names an address, it keeps only endpoints of
// the address's family.
func (x *explainer) inFamilies(s *policy.Service, in entrance, all []target) []target {
	families := s.Families
	if in.address.IsValid() {
		families = []conf.Family{conf.FamilyOf(in.address)}
	}
	if len(families) == 0 {
		return all
	}
	kept := slices.DeleteFunc(slices.Clone(all), func(t target) bool {
		return !slices.Contains(families, conf.FamilyOf(t.Address))
	})
	if len(kept) == 0 && len(all) > 0 {
		x.note("svc/%s leads to %s addresses only, and its pods have none", s, families[0])
	}
	return kept
}

// admitted leaves out senders whose connections kube-proxy drops because of loadBalancerSourceRanges.
func (x *explainer) admitted(s *policy.Service, in entrance, sources []Place) []Place {
	if len(s.Ranges) == 0 || s.Kind != "LoadBalancer" {
		return sources
	}
	if !slices.Contains(s.Balancer, in.address) {
		if in.outside && !in.address.IsValid() && in.node == "" {
			x.note("svc/%s has loadBalancerSourceRanges: kube-proxy drops connections to the load balancer's addresses from "+
				"outside of %s", s, listPrefixes(s.Ranges))
		}
		return sources
	}
	sources = slices.Clone(sources)
	fits := func(p Place) bool { return conf.FamilyOf(p.Address) == conf.FamilyOf(in.address) }
	if !slices.ContainsFunc(sources, fits) {
		return sources
	}
	return slices.DeleteFunc(sources, func(p Place) bool {
		if !fits(p) {
			return true
		}
		if p.Invented || slices.ContainsFunc(s.Ranges, func(r netip.Prefix) bool { return r.Contains(p.Address) }) {
			return false
		}
		hint := ""
		if p.isWorld {
			hint = ". Ask about an address there"
		}
		x.note("%s isn't in the loadBalancerSourceRanges of svc/%s (%s), so kube-proxy drops its connections to %s, "+
			"whatever the policies are%s", x.label(p), s, listPrefixes(s.Ranges), in.address, hint)
		return true
	})
}

func listPrefixes(all []netip.Prefix) string {
	text := ""
	for i, p := range all[:min(len(all), 5)] {
		if i > 0 {
			text += ", "
		}
		text += p.String()
	}
	if more := len(all) - 5; more > 0 {
		text += fmt.Sprintf(" and %d more", more)
	}
	return text
}

// forwarders returns the nodes that may forward packets of the sender "from" to the Service's pods on other nodes. The
// forwarded packets have an address of the forwarding node as their source.
func (x *explainer) forwarders(s *policy.Service, in entrance, from Place) []Place {
	if s.Local || !s.IsExternal() || len(x.Nodes) < 2 {
		return nil
	}
	of, isAny := x.Nodes[0], true
	what := "stands for the node that receives the packet, if it isn't the pod's own node"
	if i := slices.IndexFunc(x.Nodes, func(n policy.Node) bool { return n.Name == in.node }); i >= 0 {
		of, isAny = x.Nodes[i], false
		what = fmt.Sprintf("node %s, which receives the packet and passes it on", in.node)
	}
	var all []Place
	seen := map[conf.Family]bool{}
	for _, cidr := range x.podCIDRs(of) {
		f := conf.FamilyOf(cidr.Addr())
		if !seen[f] && (f == conf.FamilyOf(from.Address) || from.isWorld && !in.address.IsValid()) {
			seen[f] = true
			all = append(all, Place{Address: cidr.Addr(), What: what, isNode: true, forwards: true, isAnyNode: isAny})
		}
	}
	return all
}

// foreign reports whether the connection comes to a node's nodePort or hostPort from outside of the node.
func (in entrance) foreign() bool { return in.node != "" && (in.outside || in.sender != in.node) }

// passes reports whether there is a path from s to t. If in.node forwards a packet to a pod of another node, the
// packet's source becomes an address of in.node (s.forwards). Packets to the pods of in.node keep their source. A
// sender on in.node also has a path under its own address to other nodes' pods, because its egress policies decide on
// that address. If in.node or t.on is empty, passes returns true.
func (in entrance) passes(s Place, t target) bool {
	switch {
	case in.node == "" || t.on == "":
		return true
	case s.forwards:
		return t.on != in.node
	}
	return !in.foreign() || t.on == in.node
}

// throughNode returns the places that the Service's pods can see as the sender of a connection. The connection comes
// from the cluster, and goes to a nodePort, an externalIP or a load balancer's address. If a pod sends to another
// node's nodePort, throughNode adds the paths to that node. The pod's egress policies decide on these paths, because
// the pod's node doesn't translate the nodePort of another node.
func (x *explainer) throughNode(s *policy.Service, in entrance, sources []Place) []Place {
	var seen []Place
	for _, from := range sources {
		unreachable := in.address.IsValid() && conf.FamilyOf(in.address) != conf.FamilyOf(from.Address)
		if unreachable || from.isTunnel && in.foreign() {
			continue // nodes send to each other's addresses without the tunnel
		}
		isPod := from.Pod != "" && !from.HostNetwork
		switch {
		case isPod && in.foreign():
			kubeProxy := door{"kube-proxy", "nodePort", "the pods of svc/" + s.String()}
			seen = append(seen, x.fromOtherNode(kubeProxy, in, from)...)
		case isPod && !s.Local && x.hasOthers(s, in):
			x.note("kube-proxy on %s sends connections to nodePorts, externalIPs and load balancers' addresses under an "+
				"address of the node if the pod is on another node (externalTrafficPolicy: Cluster). The ingress policies of "+
				"that pod then decide on the node's address. Only the egress policies of %s decide on the pod's own address",
				cmp.Or(before("node ", in.node), "the sender's node"), from.Pod)
			seen = append(seen, from)
		default:
			seen = append(seen, from)
		}
		if isPod || in.foreign() {
			for _, by := range x.forwarders(s, in, from) {
				if !slices.Contains(seen, by) {
					seen = append(seen, by)
				}
			}
		}
	}
	return seen
}

// hasOthers reports whether the Service has a ready endpoint on another node than in.node, or on an unknown node.
func (x *explainer) hasOthers(s *policy.Service, in entrance) bool {
	return slices.ContainsFunc(x.behind(s), func(b behind) bool { return !b.ending && b.on != in.node })
}

// toHostPort is for connections from other nodes of the cluster to a node's hostPort. It returns the places that the
// pod with the hostPort can see as the sender. If a pod is the sender, toHostPort adds the paths to the node itself.
func (x *explainer) toHostPort(in entrance, sources []Place, pod Ref) (seen []Place) {
	for _, from := range sources {
		switch {
		case in.address.IsValid() && conf.FamilyOf(in.address) != conf.FamilyOf(from.Address), from.isTunnel:
		case from.Pod != "" && !from.HostNetwork:
			seen = append(seen, x.fromOtherNode(door{"portmap", "hostPort", pod.String()}, in, from)...)
		default:
			seen = append(seen, from)
		}
	}
	return seen
}

// door has the words by which a note describes a port of a node that leads to pods (a nodePort or a hostPort).
type door struct{ by, kind, to string }

func (x *explainer) fromOtherNode(to door, in entrance, from Place) []Place {
	at := func(node string) []Place {
		all, err := x.places(Ref{Kind: EndNode, Name: node})
		if err != nil {
			return nil
		}
		return slices.DeleteFunc(slices.Clone(all), func(o Place) bool {
			return o.isTunnel || conf.FamilyOf(o.Address) != conf.FamilyOf(from.Address)
		})
	}
	receivers := slices.DeleteFunc(at(in.node), func(o Place) bool {
		return in.address.IsValid() && o.Address != in.address
	})
	if len(receivers) == 0 {
		return nil
	}
	node := target{Place: receivers[0], proto: x.Query.Port.Proto, port: x.Query.Port.Number}
	x.connect([]Place{from}, []target{node}, entrance{})
	x.note("%s on the node of %s doesn't translate the %s of another node: the egress policies of %s decide on port %d "+
		"of node %s, and the ingress policies of %s decide on what node %s passes on",
		to.by, from.Pod, to.kind, from.Pod, node.port, in.node, to.to, in.node)
	if !x.masqueraded(&Path{From: from, To: node.Place}) {
		return []Place{from}
	}
	senders, what := at(in.sender), "node "+in.sender
	isAny := len(senders) == 0
	if isAny {
		x.note("weir masquerades packets from pods to nodes, and it is unknown which address the node of %s has. So the "+
			"answer for the ingress policies of %s is about another node", from.Pod, to.to)
		what = "stands for the unknown node of " + from.Pod
		if i := slices.IndexFunc(x.Nodes, func(n policy.Node) bool { return n.Name != in.node }); i >= 0 {
			senders = at(x.Nodes[i].Name)
		}
	}
	for i := range senders {
		senders[i].What = fmt.Sprintf("%s, which sends the packets of %s under its own address", what, from.Pod)
		senders[i].isAnyNode = isAny
	}
	return senders
}
