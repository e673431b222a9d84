package explain

import (
	"cmp"
	"fmt"
	"iter"
	"net/netip"
	"slices"
	"strings"

	networkingv1 "k8s.io/api/networking/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/labels"

	"github.com/weir-net/weir/conf"
	"github.com/weir-net/weir/internal/excerpt"
	"github.com/weir-net/weir/policy"
	"github.com/weir-net/weir/policy/ruleset"
)

func (x *explainer) note(format string, args ...any) {
	if n := fmt.Sprintf(format, args...); !slices.Contains(x.Notes, n) {
		x.Notes = append(x.Notes, n)
	}
}

func (x *explainer) notes(from, to Ref) {
	for i := range x.Paths {
		x.pathNotes(&x.Paths[i])
	}
	if s := x.service(to); to.Kind == EndService && s != nil {
		x.serviceNotes(from, s)
	} else if to.Kind == EndPod && s != nil {
		x.note("there is also a Service of this name: ask about svc/%s", s)
	}
	for _, s := range x.Services {
		if to.Kind == EndAddress && slices.Contains(s.Proxied, to.Address) {
			x.note("%s is an address of the load balancer of svc/%s, with ipMode: Proxy. kube-proxy doesn't translate it, so "+
				"the egress policies of the sender decide on it, and the ingress policies of the Service's pods decide on an "+
				"address of the load balancer", to.Address, s)
		}
	}
	if from.Kind == EndWorld || to.Kind == EndWorld {
		x.worldNotes(from)
	}
	x.otherAddresses(from)
	x.otherAddresses(to)
	for _, u := range x.Unenforced {
		x.note("%s", u.String())
	}
}

// otherAddresses adds a note with the addresses of the pod's other attachments. The answer is about one address of each
// family.
func (x *explainer) otherAddresses(end Ref) {
	if end.Kind != EndPod {
		return
	}
	var others []string
	for _, e := range x.Endpoints {
		for _, a := range e.Addresses {
			sameFamily := func(p Path) bool { return p.Family == conf.FamilyOf(a.Addr).String() }
			answered := func(p Path) bool { return p.From.Address == a.Addr || p.To.Address == a.Addr }
			isOf := e.Pod.Namespace == end.Namespace && e.Pod.Name == end.Name
			if isOf && slices.ContainsFunc(x.Paths, sameFamily) && !slices.ContainsFunc(x.Paths, answered) {
				others = append(others, a.Addr.String())
			}
		}
	}
	if len(others) > 0 {
		x.note("%s also has %s, which this answer leaves out: ask about the address instead of the pod", end,
			strings.Join(others, " and "))
	}
}

func (x *explainer) pathNotes(p *Path) {
	for _, side := range p.Sides {
		x.sideNotes(side)
	}
	for _, end := range []Place{p.From, p.To} {
		if end.HostNetwork {
			x.note("%s uses the network of its node %s: no policy selects it, no selector matches it, and its address is "+
				"the node's", end.Pod, end.Node)
		}
	}
	if p.To.isUnused && !p.To.isVacant {
		x.note("no pod is known to have the address %s in the pods' network of node %s. If no pod has it, this node drops "+
			"the packets, whatever the policies are", p.To.Address, p.To.Node)
	}
	ingress := p.Sides[1]
	switch {
	case p.From.isNode && ingress.Reason == FromNode:
		x.note("%s is on the same node, and packets from a node to its own pods aren't checked (kubelet's probes need that)",
			x.label(p.To))
	case p.From.isNode && ingress.Reason == Isolated:
		x.note("only an ipBlock matches a node's address. weir sees a node's address for hostNetwork pods, for kubelet and " +
			"the API server (webhooks), and for connections from outside that kube-proxy passes on to another node")
	}
	if p.Result == Allowed && p.From.Pod != "" && !p.From.HostNetwork && x.masqueraded(p) {
		x.note("%s sees the address of the pod's node%s, not the pod's: weir masquerades packets that leave the pods' "+
			"networks", x.label(p.To), before(" ", p.From.Node))
	}
	if p.From.Pod == "" && p.To.Pod == "" {
		x.note("neither %s nor %s is a pod: policies decide only about pods' connections", x.label(p.From), x.label(p.To))
	}
	x.problemNotes(p)
}

func before(prefix, text string) string {
	if text == "" {
		return ""
	}
	return prefix + text
}

// masqueraded reports whether weir on the sender's node replaces the packet's source by the node's own address. weir
// leaves the packets of chained attachments to the other plugin.
func (x *explainer) masqueraded(p *Path) bool {
	if slices.ContainsFunc(x.Endpoints, func(e policy.Endpoint) bool {
		return e.Chained && slices.ContainsFunc(e.Addresses, func(a policy.Address) bool { return a.Addr == p.From.Address })
	}) {
		return false
	}
	onNode := p.To.isOwn && p.From.Here || p.To.isNode && p.To.Node != "" && p.To.Node == p.From.Node
	if p.To.Pod != "" && !p.To.HostNetwork || x.isOurs(p.To.Address) || onNode {
		return false // packets to pods keep their source, and packets to the sender's own node don't leave the node
	}
	for _, n := range x.Nodes {
		for _, cidr := range n.PodCIDRs {
			if cidr.Contains(p.To.Address) {
				return false
			}
		}
	}
	return p.From.Address.Is4() || p.From.Address.IsPrivate()
}

func (x *explainer) sideNotes(s Side) {
	switch s.Reason {
	case Closed:
		x.note("pod %s is closed: the agent doesn't know the pod's labels, so it drops the pod's new connections until "+
			"its source knows the pod (weirctl status)", s.Pod)
	case Off:
		x.note("enforcement is off for pod %s in its network's configuration, so policies don't apply to it", s.Pod)
	case Uncertain:
		x.note("it is uncertain which of several pods %s is, so each of them must be allowed", s.Pod)
	case Open, Isolated:
		x.strayPolicies(s)
	}
}

func (x *explainer) strayPolicies(s Side) {
	namespace, name, _ := strings.Cut(s.Pod, "/")
	if s.Result == Allowed && s.Reason == Isolated {
		return
	}
	pods := x.pods(namespace, name)
	if len(pods) != 1 {
		return
	}
	said := 0
	for np, selector := range x.strays(pods[0], s.Direction) {
		if slices.ContainsFunc(x.in(np.Namespace), func(p *policy.Pod) bool {
			return !p.HostNetwork && selector.Matches(labels.Set(p.Labels))
		}) {
			continue // no note, because the policy selects pods of its own namespace
		}
		if said++; said > maxStrays {
			return
		}
		x.note("NetworkPolicy %s/%s would select %s, but a policy selects pods of its own namespace only, and selects none "+
			"there: is it meant for namespace %s?", np.Namespace, np.Name, s.Pod, namespace)
	}
}

const maxStrays = 3

func (x *explainer) in(namespace string) []*policy.Pod {
	if x.byNamespace == nil {
		x.byNamespace = map[string][]*policy.Pod{}
		for i := range x.Pods {
			p := &x.Pods[i]
			x.byNamespace[p.Namespace] = append(x.byNamespace[p.Namespace], p)
		}
	}
	return x.byNamespace[namespace]
}

// strays returns policies of other namespaces that would isolate the pod if they were in the pod's namespace. Policies
// with an empty podSelector are left out.
func (c *Cluster) strays(pod *policy.Pod, d ruleset.Direction) iter.Seq2[*networkingv1.NetworkPolicy, labels.Selector] {
	return func(yield func(*networkingv1.NetworkPolicy, labels.Selector) bool) {
		for _, np := range c.Policies {
			s := &np.Spec.PodSelector
			if np.Namespace == pod.Namespace || !isolates(np, d) || len(s.MatchLabels)+len(s.MatchExpressions) == 0 {
				continue
			}
			fits := true // a quick comparison first, because parsing each selector takes too long
			for key, value := range s.MatchLabels {
				fits = fits && pod.Labels[key] == value
			}
			if !fits {
				continue
			}
			selector, err := metav1.LabelSelectorAsSelector(s)
			if err == nil && selector.Matches(labels.Set(pod.Labels)) && !yield(np, selector) {
				return
			}
		}
	}
}

func isolates(np *networkingv1.NetworkPolicy, d ruleset.Direction) bool {
	if len(np.Spec.PolicyTypes) == 0 {
		return d == ruleset.Ingress || len(np.Spec.Egress) > 0
	}
	want := networkingv1.PolicyTypeIngress
	if d == ruleset.Egress {
		want = networkingv1.PolicyTypeEgress
	}
	return slices.Contains(np.Spec.PolicyTypes, want)
}

// owners returns the names of all pods that have the address according to the evaluator.
func (x *explainer) owners(a netip.Addr) (names []string) {
	for _, o := range x.evaluator.At(a).Pods() {
		names = append(names, o.Namespace+"/"+o.Name)
	}
	slices.Sort(names)
	return slices.Compact(names)
}

func (x *explainer) ownerNotes(end Place) {
	switch names := x.owners(end.Address); {
	case len(names) > 1:
		x.note("%s is the address of several pods: %s. Policies that select any of them isolate it, and a selector must "+
			"match all of them. If one of them has ended, its status is outdated", end.Address, excerpt.List(names, ", "))
	case len(names) == 1 && end.Pod != "" && !end.HostNetwork && names[0] != end.Pod:
		x.note("%s states the address %s, but %s has it: the policies of %s decide", end.Pod, end.Address, names[0], names[0])
	}
}

func (x *explainer) problemNotes(p *Path) {
	for i, end := range []Place{p.From, p.To} {
		x.ownerNotes(end)
		if end.Pod != "" && !end.HostNetwork && p.Sides[i].Pod == "" && p.Sides[i].Reason == NoPod {
			x.note("%s isn't within the podCIDRs of %s's Node %s, so weir doesn't believe that it is the pod's address: no "+
				"policy applies to it, and no selector matches it", end.Address, end.Pod, cmp.Or(end.Node, "(unknown)"))
		}
		for _, problem := range ruleset.Together(x.Problems) {
			for _, name := range p.Sides[i].Policies {
				if of, ok := problem.Policy(); ok && of == name {
					x.note("%s", problem)
				}
			}
		}
	}
}

func (x *explainer) serviceNotes(from Ref, s *policy.Service) {
	switch {
	case !x.outside(from):
	case !s.IsExternal():
		x.note("svc/%s has the type ClusterIP, so nothing outside of the cluster reaches it: what comes through an ingress "+
			"controller comes from the controller's pods", s)
	case s.Local:
		x.note("svc/%s has externalTrafficPolicy: Local, so pods see the clients' own addresses, and kube-proxy drops "+
			"connections to a node without a ready endpoint", s)
	default:
		x.note("svc/%s has externalTrafficPolicy: Cluster. A node that passes a client's packet on to a pod on another node "+
			"sends it under its own address, so an ipBlock with the clients' network doesn't match it. "+
			"externalTrafficPolicy: Local keeps the clients' addresses", s)
	}
}

func (x *explainer) worldNotes(from Ref) {
	for _, p := range x.Paths {
		side, world := p.Sides[0], p.To
		if from.Kind == EndWorld {
			side, world = p.Sides[1], p.From
		}
		if !world.isWorld {
			continue
		}
		var blocks []string
		for _, np := range x.Policies {
			if !slices.Contains(side.Policies, np.Namespace+"/"+np.Name) {
				continue
			}
			for _, peer := range peersOf(np, side.Direction) {
				if peer.IPBlock == nil {
					continue
				}
				cidr, err := netip.ParsePrefix(peer.IPBlock.CIDR)
				if err != nil || conf.FamilyOf(cidr.Addr()) != conf.FamilyOf(world.Address) {
					continue
				}
				if !cidr.Contains(world.Address) {
					blocks = append(blocks, peer.IPBlock.CIDR)
					continue
				}
				for _, x := range peer.IPBlock.Except {
					blocks = append(blocks, "except "+x)
				}
			}
		}
		slices.Sort(blocks)
		if blocks = slices.Compact(blocks); len(blocks) > 0 {
			more := ""
			if len(blocks) > 5 {
				more = fmt.Sprintf(" and %d more", len(blocks)-5)
				blocks = blocks[:5]
			}
			x.note("world means addresses that no ipBlock names. The policies of %s also name %s%s: ask about an address there",
				side.Pod, strings.Join(blocks, ", "), more)
		}
	}
}
