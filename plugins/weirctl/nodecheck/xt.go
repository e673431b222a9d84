package nodecheck

import (
	"slices"
	"strings"
)

type xtUse struct {
	name   string
	target bool
	// family is 4 if only rules of IPv4 use the match or target, 6 if only rules of IPv6 use it, and otherwise 0.
	family int
	module string
}

var xtUses = []xtUse{
	{name: "set", module: "xt_set"},
	{name: "conntrack", module: "xt_conntrack"},
	{name: "connlabel", module: "xt_connlabel"},
	{name: "comment", module: "xt_comment"},
	{name: "mark", module: "xt_mark"},
	{name: "multiport", module: "xt_multiport"},
	{name: "bpf", module: "xt_bpf"},
	{name: "physdev", module: "xt_physdev"},
	{name: "tcp", module: "xt_tcpudp"},
	{name: "udp", module: "xt_tcpudp"},
	{name: "sctp", module: "xt_sctp"},
	{name: "icmp6", module: "ip6_tables", family: 6},
	{name: "hl", module: "xt_hl", family: 6},
	{name: "NFLOG", target: true, module: "xt_NFLOG"},
	{name: "MARK", target: true, module: "xt_mark"},
	{name: "SET", target: true, module: "xt_set"},
	{name: "MASQUERADE", target: true, module: "xt_MASQUERADE"},
}

func xtFeature(flavour string, u xtUse) Feature {
	kind := " match "
	if u.target {
		kind = " target "
	}
	return Feature("iptables-" + flavour + kind + u.name)
}

func xtOf(f Feature) (flavour string, ok bool) {
	rest, ok := strings.CutPrefix(string(f), "iptables-")
	flavour, _, _ = strings.Cut(rest, " ")
	return flavour, ok
}

func xtName(f Feature) string {
	_, name, _ := strings.Cut(string(f), " ")
	return name
}

func modulesOf(names []string) (all []string) {
	for _, o := range names {
		_, name, _ := strings.Cut(o, " ")
		i := slices.IndexFunc(xtUses, func(u xtUse) bool { return u.name == name })
		if i >= 0 && !slices.Contains(all, xtUses[i].module) {
			all = append(all, xtUses[i].module)
		}
	}
	return all
}
