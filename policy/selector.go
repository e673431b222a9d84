package policy

import (
	"encoding/json"
	"net/netip"

	networkingv1 "k8s.io/api/networking/v1"

	"github.com/weir-net/weir/policy/ruleset"
)

type selector struct {
	// namespace is the policy's own namespace. It is empty if there is a namespaceSelector.
	namespace  string
	namespaces *matcher
	pods       matcher
	key        string // a hash of the selectors as text; selectors with the same key are equal
}

// selector parses a peer's selectors. Without a podSelector, all pods match. If err isn't nil, field is the field with
// the error.
func (p *parser) selector(peer *networkingv1.NetworkPolicyPeer) (s selector, field string, err error) {
	if peer.NamespaceSelector == nil {
		s.namespace = p.namespace
	} else {
		namespaces, err := newMatcher(peer.NamespaceSelector)
		if err != nil {
			return selector{}, "namespaceSelector", err
		}
		if s.namespaces = &everything; !namespaces.Empty() {
			own := namespaces
			s.namespaces = &own
		}
	}
	if peer.PodSelector != nil {
		if s.pods, err = newMatcher(peer.PodSelector); err != nil {
			return selector{}, "podSelector", err
		}
	}
	p.text = s.appendKey(p.text[:0])
	s.key = ruleset.Hash(p.text)
	return s, "", nil
}

// appendKey appends the text that the function key would return for the selector's parts. Labels need no escapes in
// JSON.
func (s selector) appendKey(text []byte) []byte {
	namespace := key("selector", s.namespace)
	text = append(append(text, namespace[:len(namespace)-1]...), `,"`...)
	if s.namespaces != nil {
		text = s.namespaces.appendTo(append(text, "selector "...))
	}
	return append(s.pods.appendTo(append(text, `","`...)), `"]`...)
}

// matches reports whether the selector certainly matches the pod. If this depends on an unknown label, it returns
// false.
func (s selector) matches(ns Namespace, p *Pod) bool {
	return s.matchesNamespace(p.Namespace, ns) && p.matchedBy(s.pods) == yes
}

func (s selector) matchesNamespace(name string, ns Namespace) bool {
	if s.namespaces == nil {
		return name == s.namespace
	}
	return ns.matchedBy(*s.namespaces, name) == yes
}

func (s selector) String() string { return string(s.appendTo(nil)) }

func (s selector) appendTo(text []byte) []byte {
	if s.pods.Empty() {
		text = append(text, "all pods"...)
	} else {
		text = s.pods.appendTo(append(text, "pods with "...))
	}
	switch {
	case s.namespaces == nil:
		return append(append(text, " in namespace "...), s.namespace...)
	case s.namespaces.Empty():
		return append(text, " in all namespaces"...)
	}
	return s.namespaces.appendTo(append(text, " in namespaces with "...))
}

// key returns a text that is different for different lists: each part is written as a JSON string.
func key(parts ...string) string {
	b, err := json.Marshal(parts)
	if err != nil {
		panic(err) // impossible: a list of strings can always be encoded
	}
	return string(b)
}

func hostPrefix(a netip.Addr) netip.Prefix { return netip.PrefixFrom(a, a.BitLen()) }
