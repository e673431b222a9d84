package nftables

import (
	"slices"

	"golang.org/x/sys/unix"

	"github.com/weir-net/weir/conf"
	"github.com/weir-net/weir/netfilter/nftnl"
	"github.com/weir-net/weir/policy/ruleset"
)

// variants returns rules that together match the same packets as the rule. nftables can't compare two addresses of a
// packet with each other. If the rule compares two addresses, its variant looks them up as a pair, in a set that has
// each pod's address twice. If the parameter ports is false, the kernel can't match bridge ports. Then a rule with a
// bridge port and the action Return has no variant, and other rules with a bridge port match packets from all ports.
func variants(r rule, f conf.Family, ports bool) []rule {
	with := func(track ruleset.Track, sets []ruleset.SetMatch, match ...condition) rule {
		v := r
		v.Shape, v.Track, v.InPort = "", track, ""
		v.Sets, v.Match = append(slices.Clone(sets), r.Sets...), match
		return v
	}
	icmp := func(proto ruleset.Protocol, sets []ruleset.SetMatch, match ...condition) rule {
		v := with(r.Track, sets, match...)
		v.Proto, v.icmpType = proto, true
		return v
	}
	// For IPv6, the rules need no protocol: their condition, the variable directly, compares it.
	proto := [...]ruleset.Protocol{conf.IPv4: ruleset.ICMP, conf.IPv6: ""}[f]
	self := []ruleset.SetMatch{{Name: f.Set(conf.SelfSet), By: bothEnds}}
	inner := []ruleset.SetMatch{{Name: f.Set(conf.ErrorsSet), By: innerEnd}}
	switch {
	case r.InPort != "":
		return byPort(r, ports)
	case r.Shape == ruleset.ToItself:
		return []rule{with(r.Track, self)}
	case r.Shape == ruleset.NoICMPError || r.Shape == ruleset.HonestICMP:
		var all []rule
		for _, match := range noErrors[f] {
			all = append(all, icmp(proto, nil, match...))
		}
		if r.Shape == ruleset.HonestICMP {
			all = append(all, icmp(proto, inner, anError[f]...))
		}
		return all
	case r.Shape == ruleset.Solicitation:
		return []rule{icmp(ruleset.ICMPv6, nil, icmpType("icmpv6 type nd-neighbor-solicit", unix.NFT_CMP_EQ, 135), hopLimit)}
	case r.Shape == ruleset.Advertisement:
		return []rule{icmp(ruleset.ICMPv6, nil, icmpType("icmpv6 type nd-neighbor-advert", unix.NFT_CMP_EQ, 136), hopLimit)}
	case r.Track == ruleset.Untranslated:
		return []rule{
			with("", nil, ctState("invalid,untracked", stateInvalid|stateUntracked)),
			with("", nil, untranslated),
		}
	case r.Track == ruleset.First:
		return []rule{with("", nil, unconfirmed), with("", nil, ctState("untracked", stateUntracked))}
	}
	return []rule{r}
}

func byPort(r rule, ports bool) []rule {
	port := r.InPort
	r.InPort = ""
	switch {
	case ports:
		r.Match = append(r.Match, condition{"xt match physdev", func(e nftnl.Expressions) nftnl.Expressions {
			return e.InPort(port)
		}})
	case r.Action == ruleset.Return:
		return nil
	}
	return []rule{r}
}

func icmpType(words string, op uint32, number byte) condition {
	return condition{words, func(e nftnl.Expressions) nftnl.Expressions {
		return e.Payload(unix.NFT_PAYLOAD_TRANSPORT_HEADER, 0, 1, 0).Compare(op, []byte{number})
	}}
}

// directly is the condition that a packet is an ICMPv6 packet without extension headers. Its text is empty, because
// nft prints no text for it.
var directly = condition{"", func(e nftnl.Expressions) nftnl.Expressions {
	return e.Payload(unix.NFT_PAYLOAD_NETWORK_HEADER, 6, 1, 0).Compare(unix.NFT_CMP_EQ, []byte{unix.IPPROTO_ICMPV6})
}}

var hopLimit = condition{"ip6 hoplimit 255", func(e nftnl.Expressions) nftnl.Expressions {
	return e.Payload(unix.NFT_PAYLOAD_NETWORK_HEADER, 7, 1, 0).Compare(unix.NFT_CMP_EQ, []byte{255})
}}

// noErrors has conditions for the types of ICMP packets that are not errors. The errors are types 3, 4, 5, 11 and 12 in
// IPv4, and types 0 to 127 and 137 in IPv6.
var noErrors = [len(conf.Families)][][]condition{
	conf.IPv4: {
		{icmpType("icmp type < destination-unreachable", unix.NFT_CMP_LT, 3)},
		{{"icmp type 6-10", func(e nftnl.Expressions) nftnl.Expressions {
			return e.Payload(unix.NFT_PAYLOAD_TRANSPORT_HEADER, 0, 1, 0).Compare(unix.NFT_CMP_GTE, []byte{6}).
				Compare(unix.NFT_CMP_LTE, []byte{10})
		}}},
		{icmpType("icmp type > parameter-problem", unix.NFT_CMP_GT, 12)},
	},
	conf.IPv6: {{
		directly, icmpType("icmpv6 type >= echo-request", unix.NFT_CMP_GTE, 128),
		icmpType("icmpv6 type != nd-redirect", unix.NFT_CMP_NEQ, 137),
	}},
}

// anError matches ICMP errors except redirects. It needn't compare the error's receiver with the inner packet's sender:
// the kernel has done that (nf_conntrack_inet_error in net/netfilter/nf_conntrack_proto.c).
var anError = [len(conf.Families)][]condition{
	conf.IPv4: {icmpType("icmp type != redirect", unix.NFT_CMP_NEQ, 5)},
	conf.IPv6: {directly, icmpType("icmpv6 type < echo-request", unix.NFT_CMP_LT, 128)},
}
