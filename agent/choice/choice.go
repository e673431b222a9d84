// Package choice decides which backend a node uses. The functions get all facts about the node as arguments.
//
// Invariants:
//   - A backend that works is chosen, even if kube-proxy uses a backend that doesn't work.
//   - The choice depends only on the arguments, and says its reason.
package choice

import (
	"strings"

	"github.com/weir-net/weir/conf"
)

// Seen has the facts about a node on which the choice depends.
type Seen struct {
	// Nftables is true if kube-proxy has a table in nftables, in either family. Iptables is true if kube-proxy has
	// chains in iptables, in either family and flavour. Chains of kubelet or Docker don't count.
	Nftables, Iptables bool
	// If kube-proxy has rules in both backends, Newest is the backend that kube-proxy uses now. It is empty if that
	// backend is unknown.
	Newest conf.Backend
	// Lacks returns the features that the backend needs and the node lacks. The result is nil if the backend works.
	// Choose calls Lacks for a second backend only if the first backend doesn't work.
	Lacks func(conf.Backend) []string
}

// Choice is a backend. Reason says why it was chosen, and which features the node lacks for a preferred backend.
type Choice struct {
	Backend conf.Backend // empty if neither backend works
	Reason  string
}

// Choose prefers the backend that kube-proxy uses. If that backend is unknown, Choose prefers previous, the backend
// that the node has used before. If previous is empty, Choose prefers a default. If the node lacks features of the
// preferred backend, Choose returns the other backend. If the node lacks features of both, the result has no backend.
func Choose(s Seen, previous conf.Backend) Choice {
	wanted, why := want(s, previous)
	for _, b := range [...]conf.Backend{wanted, Other(wanted)} {
		lacks := s.Lacks(b)
		if len(lacks) == 0 {
			return Choice{b, why}
		}
		why += "; " + string(b) + " can't be used, the node lacks: " + strings.Join(lacks, ", ")
	}
	return Choice{"", why}
}

func want(s Seen, previous conf.Backend) (b conf.Backend, why string) {
	switch {
	case s.Nftables && !s.Iptables:
		return conf.Nftables, "kube-proxy uses nftables"
	case s.Iptables && !s.Nftables:
		return conf.Iptables, "kube-proxy uses iptables"
	case s.Iptables && s.Newest != "":
		return s.Newest, "kube-proxy's rules are in nftables and in iptables, and it uses " + string(s.Newest) + " now"
	case s.Iptables && previous != "":
		return previous, "kube-proxy's rules are in nftables and in iptables, and the node used " + string(previous) +
			" before"
	case s.Iptables:
		return conf.Nftables, "kube-proxy's rules are in nftables and in iptables"
	case previous != "":
		return previous, "kube-proxy has no rules, and the node used " + string(previous) + " before"
	}
	return conf.Iptables, "kube-proxy has no rules, and iptables is the default"
}

// Other returns the one of the two backends that isn't b. For an empty b, it returns Nftables.
func Other(b conf.Backend) conf.Backend {
	if b == conf.Nftables {
		return conf.Iptables
	}
	return conf.Nftables
}

// Appeared returns the backend to which kube-proxy has moved last, or "" if this backend is unknown. The parameters
// before and now are an earlier and a later look at the node. The parameter last is the result of the previous call.
func Appeared(before, now Seen, last conf.Backend) conf.Backend {
	nftables, iptables := now.Nftables && !before.Nftables, now.Iptables && !before.Iptables
	switch {
	case nftables && iptables:
		return ""
	case nftables:
		return conf.Nftables
	case iptables:
		return conf.Iptables
	}
	return last
}
