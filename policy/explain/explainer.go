package explain

import (
	"cmp"
	"fmt"
	"net/netip"
	"slices"

	"github.com/weir-net/weir/conf"
	"github.com/weir-net/weir/policy"
	"github.com/weir-net/weir/policy/ruleset"
	"github.com/weir-net/weir/policy/verdict"
)

const maxPaths = 100

type explainer struct {
	*Cluster
	evaluator   *verdict.Evaluator
	byNamespace map[string][]*policy.Pod
	Explanation
}

// Explain answers the query. An error is always an *InputError.
func Explain(c Cluster, q Query) (Explanation, error) {
	x := explainer{Cluster: &c, Explanation: Explanation{Query: q, Gaps: c.Gaps, Paths: []Path{}}}
	from, err := c.resolve(q.From)
	if err != nil {
		return Explanation{}, err
	}
	to, err := c.resolveTo(q.To, q.Port, from)
	if err != nil {
		return Explanation{}, err
	}
	if from.Kind == EndWorld && to.Kind == EndWorld {
		return Explanation{}, inputError("one end must be in the cluster")
	}
	if from.Kind == EndService {
		return Explanation{}, inputError("%s: a Service sends nothing itself; name one of its pods", from)
	}
	x.Query.From, x.Query.To = from, to
	sources, err := c.senders(from)
	if err != nil {
		return Explanation{}, err
	}
	in := entrance{address: to.Address, outside: c.outside(from)}
	if !in.outside {
		in.sender = sources[0].Node
	}
	if s, p := c.nodePort(to, q.Port); s != nil {
		x.note("port %d of a node is a nodePort of svc/%s: kube-proxy passes on what comes there to the Service's pods",
			q.Port.Number, s)
		to, q.Port = Ref{Kind: EndService, Namespace: s.Namespace, Name: s.Name}, Port{Number: p.Port, Proto: p.Proto}
		in.node = cmp.Or(x.Query.To.Name, c.placeOf(in.address).Node)
	} else if pod, h := c.hostPort(to, q.Port); pod != nil {
		x.note("port %d of %s is a hostPort of %s/%s: portmap translates it to the pod's port %d before weir checks the "+
			"packet", h.Port, cmp.Or(before("node ", pod.NodeName), "this node"), pod.Namespace, pod.Name, h.Target)
		to, q.Port = Ref{Kind: EndPod, Namespace: pod.Namespace, Name: pod.Name}, Port{Number: h.Target, Proto: h.Proto}
		if in.node = pod.NodeName; in.foreign() && !in.outside {
			sources = x.toHostPort(in, sources, to)
		}
	}
	targets, err := x.targets(to, q.Port, in)
	if err != nil {
		return Explanation{}, err
	}
	if s := x.service(to); to.Kind == EndService && len(targets) > 0 {
		sources = x.admitted(s, in, sources)
		reaches := func(p Place) bool {
			return !in.address.IsValid() || conf.FamilyOf(in.address) == conf.FamilyOf(p.Address)
		}
		switch i := slices.IndexFunc(sources, reaches); {
		case in.outside && i >= 0:
			sources = append(sources, x.forwarders(s, in, sources[i])...)
		case !in.outside && in.external(s):
			in.node = cmp.Or(in.node, in.sender) // if the address isn't a node's, the sender's own node translates it
			sources = x.throughNode(s, in, sources)
		}
	}
	x.connect(sources, targets, in)
	x.sumUp()
	x.notes(from, to)
	return x.Explanation, nil
}

type target struct {
	Place
	proto   ruleset.Protocol
	port    uint16
	through string
	notes   []string
	on      string // the node of a Service's endpoint, if known
	ending  bool   // true for an endpoint that kube-proxy uses only if it can use no ready endpoint
}

func (x *explainer) connect(sources []Place, targets []target, in entrance) {
	addresses := map[netip.Addr]bool{}
	for _, s := range sources {
		addresses[s.Address] = true
	}
	for _, t := range targets {
		addresses[t.Address] = true
	}
	x.evaluator = verdict.New(x.about(addresses))
	for _, f := range conf.Families {
		for _, s := range sources {
			for _, t := range targets {
				if conf.FamilyOf(s.Address) == f && conf.FamilyOf(t.Address) == f && s.uses(t.Place) && in.passes(s, t) {
					x.add(x.path(s, t))
				}
			}
		}
	}
	if len(x.Paths) == 0 && len(sources) > 0 && len(targets) > 0 {
		x.Notes = append(x.Notes, fmt.Sprintf("%s and %s have no address of the same family", x.Query.From, x.Query.To))
	}
}

// uses reports whether packets from p to t can have p's address as their source. A node's tunnel address is the source
// only of packets to pods of other nodes, because only these packets travel through the tunnel.
func (p Place) uses(t Place) bool {
	return !p.isTunnel || t.Pod != "" && !t.HostNetwork && t.Node != p.Node
}

func (x *explainer) add(p Path) {
	for i := range x.Paths {
		o := &x.Paths[i]
		same := o.Through == p.Through && o.From == p.From && o.To.Here == p.To.Here && o.Port == p.Port
		if p.Through != "" && same && alike(o.Sides, p.Sides) && slices.Equal(o.Notes, p.Notes) {
			o.Alike = append(o.Alike, x.label(p.To))
			return
		}
	}
	x.Paths = append(x.Paths, p)
}

func (x *explainer) label(p Place) string {
	if p.Pod != "" {
		return p.Pod
	}
	return p.Address.String()
}

func alike(a, b []Side) bool {
	return slices.EqualFunc(a, b, func(x, y Side) bool {
		return x.Result == y.Result && x.Reason == y.Reason && slices.Equal(x.Policies, y.Policies) &&
			slices.Equal(x.Audited, y.Audited) && x.WouldDrop == y.WouldDrop && slices.Equal(x.OnlyAudited, y.OnlyAudited) &&
			slices.Equal(x.Allows, y.Allows) && slices.EqualFunc(x.Nearest, y.Nearest, func(m, n verdict.Near) bool {
			return m.Policy == n.Policy && m.Field == n.Field && len(m.Misses) == len(n.Misses)
		})
	})
}

func (x *explainer) path(s Place, t target) Path {
	f := conf.FamilyOf(s.Address)
	p := Path{
		Family: f.String(), From: s, To: t.Place, Protocol: t.proto, Port: t.port, Through: t.through, Notes: t.notes,
	}
	if p.Protocol == ruleset.ICMP && f == conf.IPv6 {
		p.Protocol = ruleset.ICMPv6
	}
	packet := verdict.Packet{Src: s.Address, Dst: t.Address, Proto: p.Protocol, Port: t.port}
	v := x.evaluator.Evaluate(packet)
	p.Sides = []Side{
		x.side(ruleset.Egress, v.Egress, packet, s, t.Place), x.side(ruleset.Ingress, v.Ingress, packet, t.Place, s),
	}
	if v.Self {
		for i := range p.Sides {
			p.Sides[i].allow(Itself)
		}
	}
	p.Result = Allowed
	for _, side := range p.Sides {
		if side.Result == Dropped {
			p.Result = Dropped
		}
	}
	if p.Result == Allowed && !v.Self {
		x.audit(&p.Sides[0], v.Egress, packet, t.Place)
		x.audit(&p.Sides[1], v.Ingress, packet, s)
	}
	return p
}

func (x *explainer) audit(s *Side, v verdict.Side, p verdict.Packet, peer Place) {
	if s.WouldDrop = s.Reason != FromNode && !v.AllowedByAll(); s.WouldDrop {
		s.NearestAudited = x.nearest(s.Direction, p, peer, true)
	}
}

func (x *explainer) side(d ruleset.Direction, v verdict.Side, p verdict.Packet, at, peer Place) Side {
	s := Side{Direction: d, Result: Dropped, Pod: v.Pod, Node: at.Node, Policies: []string{}}
	if slices.Contains(x.owners(at.Address), at.Pod) {
		s.Pod = at.Pod
	}
	for _, one := range append([]verdict.Side{v}, v.Either...) {
		for _, np := range one.Policies {
			if !slices.Contains(s.Policies, np.Name) {
				s.Policies = append(s.Policies, np.Name)
			}
			for _, r := range np.Rules {
				if r.Allows() {
					s.Allows = append(s.Allows, ruleOf(np.Name, r))
				}
			}
		}
		for _, np := range one.Audited {
			if !slices.Contains(s.Audited, np.Name) {
				s.Audited = append(s.Audited, np.Name)
			}
			for _, r := range np.Rules {
				if r.Allows() {
					s.OnlyAudited = append(s.OnlyAudited, ruleOf(np.Name, r))
				}
			}
		}
	}
	if v.Allowed() {
		s.Result = Allowed
	}
	switch {
	case v.Off:
		s.Reason = Off
	case v.Unknown:
		s.Reason = Closed
	case len(v.Either) > 0:
		s.Reason = Uncertain
	case len(v.Policies) > 0:
		s.Reason = Isolated
	case v.Pod == "" && at.HostNetwork:
		s.Reason, s.Pod = HostNetwork, at.Pod
	case v.Pod == "" && at.isVacant:
		s.Result, s.Reason = Dropped, Vacant
		return s
	case v.Pod == "":
		s.Reason = NoPod
	default:
		s.Reason = Open
	}
	sameNode := peer.Node != "" && peer.Node == at.Node || peer.isOwn && at.Here
	if d == ruleset.Ingress && peer.isNode && sameNode && v.Pod != "" {
		s.allow(FromNode)
		return s
	}
	if s.Result == Allowed {
		s.OnlyAudited = nil
	}
	if s.Result == Dropped && s.Reason != Closed {
		s.Allows = nil
		s.Nearest = x.nearest(d, p, peer, false)
		if len(s.Nearest) == 0 || len(s.Nearest[0].Misses) > fewMisses || x.isolatesToo(s.Nearest[0], d, p) {
			s.Change = x.needed(s, at, peer, p)
		}
	}
	return s
}

// allow sets the side's result to Allowed, for a reason other than policies, and removes the suggested changes.
func (s *Side) allow(why Reason) {
	s.Result, s.Reason, s.Nearest, s.Change, s.OnlyAudited = Allowed, why, nil, "", nil
}

func ruleOf(name string, r verdict.Rule) Rule {
	rule := Rule{Policy: name, Field: "spec." + r.Field}
	if r.Peer != verdict.Everyone {
		rule.Peer = "spec." + r.Peer
	}
	if r.Port != verdict.EveryPort {
		rule.Port = "spec." + r.Port
	}
	return rule
}

func (x *explainer) sumUp() {
	x.Result = Nothing
	for i, p := range x.Paths {
		switch {
		case i == 0:
			x.Result = p.Result
		case x.Result != p.Result:
			x.Result = Mixed
		}
	}
}
