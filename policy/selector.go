package policy

import (
	"encoding/json"
	"fmt"
	"net/netip"
	"strings"

	networkingv1 "k8s.io/api/networking/v1"
)

type selector struct {
	// namespace is the policy's own namespace. It is empty if there is a namespaceSelector.
	namespace  string
	namespaces *matcher
	pods       matcher
	key        string
}

// parseSelector parses a peer's selectors. Without a podSelector, all pods match. If it returns an error, field is the
// wrong field.
func parseSelector(namespace string, peer networkingv1.NetworkPolicyPeer) (s selector, field string, err error) {
	if peer.NamespaceSelector == nil {
		s.namespace = namespace
	} else {
		namespaces, err := newMatcher(peer.NamespaceSelector)
		if err != nil {
			return selector{}, "namespaceSelector", err
		}
		s.namespaces = &namespaces
	}
	if peer.PodSelector != nil {
		if s.pods, err = newMatcher(peer.PodSelector); err != nil {
			return selector{}, "podSelector", err
		}
	}
	inNamespaces := ""
	if s.namespaces != nil {
		inNamespaces = "selector " + s.namespaces.String()
	}
	s.key = key("selector", s.namespace, inNamespaces, s.pods.String())
	return s, "", nil
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

func (s selector) String() string {
	var b strings.Builder
	if s.pods.Empty() {
		b.WriteString("all pods")
	} else {
		fmt.Fprintf(&b, "pods with %s", s.pods)
	}
	switch {
	case s.namespaces == nil:
		fmt.Fprintf(&b, " in namespace %s", s.namespace)
	case s.namespaces.Empty():
		b.WriteString(" in all namespaces")
	default:
		fmt.Fprintf(&b, " in namespaces with %s", s.namespaces)
	}
	return b.String()
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
