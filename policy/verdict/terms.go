package verdict

import (
	"maps"
	"net/netip"
	"slices"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/labels"

	"github.com/weir-net/weir/conf"
	"github.com/weir-net/weir/policy"
	"github.com/weir-net/weir/policy/ruleset"
)

// This file exports the parts from which a verdict is computed: ends, isolating policies and their rules. Callers that
// need verdicts on many packets use them.

// End is one end of connections: an address with its pods, or a pod without an address.
type End struct{ end end }

// At returns the end with this address. It has no pods if no pod has the address.
func (e *Evaluator) At(a netip.Addr) End { return End{e.end(a)} }

// Without returns the end of a pod that has no address. No ipBlock contains this end.
func (e *Evaluator) Without(p policy.Pod) End {
	return End{end{name: p.Namespace + "/" + p.Name, pods: []pod{newPod(e.namespaces, p)}}}
}

// Known returns, in order, the addresses at which the state has a pod or an attachment.
func (e *Evaluator) Known() []netip.Addr {
	return slices.SortedFunc(maps.Keys(e.ends), netip.Addr.Compare)
}

// Name returns "NAMESPACE/NAME" of the end's pod, or "" if there is no pod.
func (e End) Name() string { return e.end.name }

// Pods returns the end's pods. There are several if it is uncertain which pod has the address.
func (e End) Pods() (all []policy.Pod) {
	for _, p := range e.end.pods {
		all = append(all, p.Pod)
	}
	return all
}

// Off reports whether enforcement is off for the end's pod, so that no policy isolates the pod.
func (e End) Off() bool { return e.end.enforcement == conf.Off }

func newPod(namespaces map[string]policy.Namespace, p policy.Pod) pod {
	known := pod{Pod: p, labels: p.Labels, namespace: labels.Set{corev1.LabelMetadataName: p.Namespace}}
	if n, ok := namespaces[p.Namespace]; ok {
		known.inKnownNamespace, known.namespace, known.unknown = true, n.Labels, n.Unknown
	}
	return known
}

func byName(namespaces []policy.Namespace) map[string]policy.Namespace {
	by := make(map[string]policy.Namespace, len(namespaces))
	for _, n := range namespaces {
		if _, twice := by[n.Name]; !twice {
			by[n.Name] = n
		}
	}
	return by
}

type Isolation struct {
	// Closed is true if nothing is allowed, because the pod is unknown.
	Closed bool
	// Either has an element for each isolated pod that may have the end's address. If the end isn't on this node, the
	// list has only one element, which stands for all these pods. A packet is allowed if all elements allow the packet.
	// So if Either is empty and Closed is false, all packets are allowed.
	Either []Isolated
}

// Isolated has the policies that isolate a pod, and the terms of their rules. The policies allow a packet if at least
// one of the terms allows the packet.
type Isolated struct {
	Policies []string // namespace/name
	Terms    []Terms
}

// Terms are the peers and ports of one rule. The rule allows a packet if a peer and a port match. Two Terms of the same
// rule are equal (==).
type Terms struct {
	Policy string // namespace/name
	*rule
}

func (t Terms) Direction() ruleset.Direction { return t.direction }

// Field returns the field of the rule in the policy, such as "ingress[0]".
func (t Terms) Field() string { return t.field }

// ByName reports whether one of the rule's ports is a name, so that its number depends on the destination.
func (t Terms) ByName() bool { return t.byName }

// Means reports whether one of the rule's peers matches the end.
func (t Terms) Means(peer End) bool {
	return first(t.peers, func(m peerMatch) bool { return m(peer.end) }) != ""
}

// Opens reports whether one of the rule's ports matches the protocol and the port at the destination.
func (t Terms) Opens(proto ruleset.Protocol, port uint16, dst End) bool {
	return first(t.ports, func(m portMatch) bool { return m(proto, port, dst.end) }) != ""
}

func (e *Evaluator) Isolation(d ruleset.Direction, of End) Isolation {
	subject := of.end
	if subject.enforcement == conf.Off {
		return Isolation{}
	}
	if subject.here && len(subject.pods) == 0 {
		return Isolation{Closed: true}
	}
	alone := [][]pod{subject.pods}
	if subject.here {
		alone = nil
		for _, p := range subject.pods {
			alone = append(alone, []pod{p})
		}
	}
	var i Isolation
	for _, pods := range alone {
		if isolated, ok := e.isolated(d, pods); ok {
			i.Either = append(i.Either, isolated)
		}
	}
	return i
}

// isolated returns the enforced policies that may isolate the end's pods. It returns only the terms of policies that
// certainly select one of the pods.
func (e *Evaluator) isolated(d ruleset.Direction, pods []pod) (by Isolated, ok bool) {
	for i := range e.policies {
		np := &e.policies[i]
		rules, isolates := np.rules[d]
		certainly, possibly := np.selectsOneOf(pods)
		if !isolates || !possibly || np.audited {
			continue
		}
		by.Policies = append(by.Policies, np.name)
		for j := range rules {
			if certainly {
				by.Terms = append(by.Terms, Terms{np.name, &rules[j]})
			}
		}
	}
	return by, len(by.Policies) > 0
}
