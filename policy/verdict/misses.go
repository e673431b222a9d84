package verdict

import (
	"cmp"
	"fmt"
	"maps"
	"net/netip"
	"slices"

	networkingv1 "k8s.io/api/networking/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/labels"

	"github.com/weir-net/weir/policy/ruleset"
)

// Miss is a condition of a policy's rule that a packet doesn't meet.
type Miss struct {
	Object string `json:"object,omitempty"`
	// Field is the field of the policy with the condition, such as spec.ingress[0].from[0].podSelector.
	Field string `json:"field"`
	Wants string `json:"wants,omitempty"`
	// Why says why the packet doesn't meet the condition. Change says which change would help.
	Why    string `json:"why"`
	Change string `json:"change"`
	Kind   Kind   `json:"kind"`
	// Label is the same change as Change in a form for programs, if Change is to give the object a label.
	Label LabelChange `json:"-"`
}

// LabelChange gives a label a value. An empty Key means that there is no change to apply.
type LabelChange struct{ Key, Value string }

// Apply returns a copy of the labels with the change.
func (c LabelChange) Apply(labels map[string]string) map[string]string {
	changed := maps.Clone(labels)
	if changed == nil {
		changed = map[string]string{}
	}
	changed[c.Key] = c.Value
	return changed
}

type Kind string

// MissUnreadable is a peer or port with an error, which matches nothing. The other kinds name the part that doesn't
// match.
const (
	MissLabel          Kind = "label"
	MissNamespaceLabel Kind = "namespaceLabel"
	// MissNamespace: a podSelector without a namespaceSelector selects only pods of the policy's own namespace.
	MissNamespace Kind = "namespace"
	// MissNoPod: the peer has a selector, which matches only pods, and no pod has the address.
	MissNoPod      Kind = "noPod"
	MissBlock      Kind = "ipBlock"
	MissPort       Kind = "port"
	MissNamedPort  Kind = "namedPort"
	MissProtocol   Kind = "protocol"
	MissUnreadable Kind = "unreadable"
)

// distance returns how far the packet is from meeting the condition: 1 for labels, namespaces, ports and protocols, 2
// for an ipBlock, and 3 if the rule needs another peer or the policy has an error.
func (m Miss) distance() int {
	switch m.Kind {
	case MissNoPod, MissUnreadable:
		return 3
	case MissBlock:
		return 2
	}
	return 1
}

// Near is a rule that doesn't allow a packet. Misses has the unmet conditions of the rule's nearest peer and nearest
// port.
type Near struct {
	Policy string `json:"policy"` // namespace/name
	Field  string `json:"field"`  // such as spec.ingress[0]
	Misses []Miss `json:"misses"`
}

func (n Near) distance() (sum int) {
	for _, m := range n.Misses {
		sum += m.distance()
	}
	return sum
}

// Nearest returns rules that don't allow the packet, the nearest first. They are rules of policies that certainly
// isolate the end in this direction: of audited policies if the parameter audited is true, otherwise of enforced
// policies.
func (e *Evaluator) Nearest(d ruleset.Direction, p Packet, audited bool) []Near {
	src, dst := e.end(p.Src), e.end(p.Dst)
	subject, peer := src, dst
	if d == ruleset.Ingress {
		subject, peer = dst, src
	}
	var all []Near
	for _, np := range e.policies {
		if len(np.rules[d]) == 0 || np.audited != audited {
			continue
		}
		if certainly, _ := np.selectsOneOf(subject.pods); !certainly {
			continue
		}
		verb, word, list := "from", "ingress", rawRules(np.NetworkPolicy, d)
		if d == ruleset.Egress {
			verb, word = "to", "egress"
		}
		for i, r := range list {
			near := Near{Policy: np.name, Field: fmt.Sprintf("spec.%s[%d]", word, i)}
			near.Misses = slices.Concat(
				fewest(r.peers, func(i int, peerOf networkingv1.NetworkPolicyPeer) []Miss {
					return missedPeer(np.Namespace, fmt.Sprintf("%s.%s[%d]", near.Field, verb, i), peerOf, peer)
				}),
				fewest(r.ports, func(i int, port networkingv1.NetworkPolicyPort) []Miss {
					return missedPort(fmt.Sprintf("%s.ports[%d]", near.Field, i), port, p, dst)
				}))
			if len(near.Misses) > 0 {
				all = append(all, near)
			}
		}
	}
	slices.SortStableFunc(all, func(a, b Near) int { return cmp.Compare(a.distance(), b.distance()) })
	return all
}

type rawRule struct {
	peers []networkingv1.NetworkPolicyPeer
	ports []networkingv1.NetworkPolicyPort
}

func rawRules(np *networkingv1.NetworkPolicy, d ruleset.Direction) (all []rawRule) {
	if d == ruleset.Ingress {
		for _, r := range np.Spec.Ingress {
			all = append(all, rawRule{r.From, r.Ports})
		}
		return all
	}
	for _, r := range np.Spec.Egress {
		all = append(all, rawRule{r.To, r.Ports})
	}
	return all
}

// fewest returns the misses of the list's nearest peer or port. For an empty list it returns none, because a rule
// without peers or ports matches everything.
func fewest[T any](list []T, misses func(int, T) []Miss) []Miss {
	var best []Miss
	for i, one := range list {
		m := misses(i, one)
		if i == 0 || (Near{Misses: m}).distance() < (Near{Misses: best}).distance() {
			best = m
		}
	}
	return best
}

func missedPeer(namespace, field string, p networkingv1.NetworkPolicyPeer, e end) []Miss {
	if matchPeer(namespace, p)(e) {
		return nil
	}
	unreadable := func(field string, why any) []Miss {
		return []Miss{{
			Field: field, Kind: MissUnreadable, Why: fmt.Sprintf("%v, so it matches nothing", why), Change: "correct " + field,
		}}
	}
	switch {
	case p.IPBlock != nil && (p.PodSelector != nil || p.NamespaceSelector != nil):
		return unreadable(field, "it has both an ipBlock and a selector")
	case p.IPBlock != nil:
		all := missedBlock(field+".ipBlock", *p.IPBlock, e.addr)
		if len(e.pods) > 0 && all[0].Kind == MissBlock {
			all[0].Change = addPod(e.pods[0])
		}
		return all
	case p.PodSelector == nil && p.NamespaceSelector == nil:
		return unreadable(field, "it has no selector and no ipBlock")
	}
	var all []Miss
	var pods, namespaces labels.Selector
	for _, s := range []struct {
		field string
		from  *metav1.LabelSelector
		into  *labels.Selector
	}{{"podSelector", p.PodSelector, &pods}, {"namespaceSelector", p.NamespaceSelector, &namespaces}} {
		if *s.into = labels.Everything(); s.from == nil {
			continue
		}
		parsed, err := metav1.LabelSelectorAsSelector(s.from)
		if err != nil {
			return unreadable(field+"."+s.field, err)
		}
		*s.into = parsed
	}
	if len(e.pods) == 0 {
		return []Miss{{
			Field: field, Kind: MissNoPod, Wants: "a pod",
			Why:    fmt.Sprintf("%s is the address of no pod, and selectors match only pods", e.addr),
			Change: fmt.Sprintf("add an ipBlock with %s to the rule", e.addr),
		}}
	}
	for _, o := range e.pods {
		all = missedSelectors(namespace, field, p, o, namespaces, pods)
		if len(all) > 0 {
			break
		}
	}
	return all
}

func missedBlock(field string, b networkingv1.IPBlock, a netip.Addr) []Miss {
	m := Miss{Field: field + ".cidr", Wants: b.CIDR, Kind: MissBlock}
	cidr, err := netip.ParsePrefix(b.CIDR)
	switch {
	case err != nil || isMapped(cidr):
		m.Kind, m.Why, m.Change = MissUnreadable, fmt.Sprintf("%q is no network, so it matches nothing", b.CIDR), "correct it"
		return []Miss{m}
	case !cidr.Contains(a):
		m.Why = fmt.Sprintf("%s isn't in %s", a, b.CIDR)
		m.Change = fmt.Sprintf("add an ipBlock with %s to the rule", a)
		return []Miss{m}
	}
	for i, text := range b.Except {
		m.Field, m.Wants = fmt.Sprintf("%s.except[%d]", field, i), "not "+text
		except, ok := ExceptOf(cidr, text)
		if !ok {
			m.Kind, m.Change = MissUnreadable, "correct it"
			m.Why = fmt.Sprintf("%q is no network within %s, so the ipBlock matches nothing", text, b.CIDR)
			return []Miss{m}
		}
		if except.Contains(a) {
			// A narrower except would also allow other hosts.
			m.Why = fmt.Sprintf("%s is in %s, which is excepted", a, text)
			m.Change = fmt.Sprintf("add an ipBlock with %s to the rule", a)
			return []Miss{m}
		}
	}
	return nil
}
