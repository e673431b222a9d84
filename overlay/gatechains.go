package overlay

import (
	"encoding/binary"
	"fmt"
	"strings"

	"github.com/google/nftables"
	"github.com/google/nftables/binaryutil"
	"github.com/google/nftables/expr"
	"golang.org/x/sys/unix"

	"github.com/weir-net/weir/bridge"
	"github.com/weir-net/weir/conf"
	"github.com/weir-net/weir/internal/nft"
)

type gateChain struct {
	name     string
	hook     *nftables.ChainHook
	priority nftables.ChainPriority
	rules    []gateRule
}

type gateRule struct {
	nft.Rule
	words string
}

func (c gateChain) kernel() nft.Chain {
	chain := nft.Chain{Chain: &nftables.Chain{Name: c.name, Table: gateTable()}}
	if c.hook != nil {
		chain.Chain = nft.BaseChain(gateTable(), c.name, c.hook, c.priority)
	}
	for _, r := range c.rules {
		chain.Rules = append(chain.Rules, r.Rule)
	}
	return chain
}

const (
	rawPriority    = -300 // after defragmentation (-400), before connection tracking (-200)
	filterPriority = -160 // before most chains of iptables and other programs
	lastPriority   = 300  // after the chains of iptables and other programs, to count the packets that they accept
)

// untracked is NF_CT_STATE_UNTRACKED_BIT (include/uapi/linux/netfilter/nf_conntrack_common.h).
const untracked = 1 << 6

const (
	acceptedComment  = "weir: from a network of the node whose tunnel it is"
	deliveredComment = "weir: let in by all firewalls of the host"
)

func gateChains(p Plan) []gateChain {
	raw, forward, input := tunnelPortRules(p)
	jump := rule("weir: pods' packets come by the way that leads to them", match{}, verdict(expr.VerdictJump, "way"))
	last := []gateRule{rule(deliveredComment, toTunnel(p), counter)}
	return []gateChain{
		{name: "prerouting", hook: nftables.ChainHookPrerouting, priority: rawPriority, rules: raw},
		{name: "output", hook: nftables.ChainHookOutput, priority: rawPriority, rules: raw},
		{name: "tunnel", rules: tunnelRules(p)},
		{name: "way", rules: wayRules()},
		{name: "forward", hook: nftables.ChainHookForward, priority: filterPriority, rules: append(forward, jump)},
		{name: "input", hook: nftables.ChainHookInput, priority: filterPriority, rules: append(input, jump)},
		{name: "last", hook: nftables.ChainHookInput, priority: lastPriority, rules: last},
	}
}

func toPort(p Plan) match {
	return join(is("meta l4proto udp", nft.LoadMeta(expr.MetaKeyL4PROTO, 1), []byte{unix.IPPROTO_UDP}),
		is(fmt.Sprintf("udp dport %d", p.Port), loadTransport(2, 2, 1), binary.BigEndian.AppendUint16(nil, p.Port)))
}

// toTunnel matches packets to the tunnels' port with weir's VNI. Other programs may use the port with other VNIs.
func toTunnel(p Plan) match {
	vni := binary.BigEndian.AppendUint32(nil, p.VNI)[1:]
	return join(toPort(p), is(fmt.Sprintf("@th,96,24 %d", p.VNI), loadTransport(12, 3, 1), vni))
}

func tunnelPortRules(p Plan) (raw, forward, input []gateRule) {
	if p.Encapsulation == Never {
		return nil, nil, nil
	}
	fromLinks := match{"iifname @links", []expr.Any{nft.LoadIIFName(1), lookup("links", false)}}
	// Ordinary packets of pods come from weir0. A packet comes from a bridge port only if its frame bypassed the
	// bridge.
	fromPort := match{
		fmt.Sprintf(`iifname "%s*"`, bridge.PortPrefix), nft.IIFName(expr.CmpOpEq, []byte(bridge.PortPrefix)),
	}
	for _, f := range conf.Families {
		toNodes := join(toPort(p), address(f, "daddr", "nodes", false))
		raw = append(raw, rule("weir: tunnels aren't tracked", toNodes, match{"notrack", []expr.Any{&expr.Notrack{}}}))
		forward = append(forward, strangers("weir: a node's tunnel packets aren't another's to forward", toNodes))
	}
	for _, f := range conf.Families {
		toOthers := join(fromLinks, toPort(p), address(f, "daddr", "networks", true))
		forward = append(forward, strangers("weir: pods send to the tunnels' port of pods only", toOthers))
	}
	input = []gateRule{
		strangers("weir: pods send nothing into tunnels", join(fromLinks, toPort(p))),
		strangers("weir: pods send nothing into tunnels", join(fromPort, toPort(p))),
		rule("weir: a tunnel packet", toTunnel(p), verdict(expr.VerdictJump, "tunnel")),
	}
	return raw, forward, input
}

func tunnelRules(p Plan) []gateRule {
	var rules []gateRule
	if p.NodeAddress.IsValid() {
		outer := conf.FamilyOf(p.NodeAddress)
		tracked := match{"ct state != untracked", []expr.Any{
			&expr.Ct{Key: expr.CtKeySTATE, Register: 1},
			&expr.Cmp{Op: expr.CmpOpNeq, Register: 1, Data: binaryutil.NativeEndian.PutUint32(untracked)},
		}}
		rules = append(rules,
			strangers("weir: a tunnel packet that was translated, or that comes to another address than InternalIPs", tracked),
			strangers("weir: tunnel packets come to the addresses that nodes know of each other",
				address(outer, "daddr", "nodes", true)))
		for _, f := range conf.Families {
			rules = append(rules, rule(acceptedComment, fromSender(outer, f), counter, verdict(expr.VerdictReturn, "")))
		}
	}
	return append(rules, strangers(
		"weir: a tunnel packet from no node, or under an address that isn't of that node's pods", match{}))
}

func wayRules() []gateRule {
	fromLoopback := match{`iifname "lo"`, nft.IIFName(expr.CmpOpEq, nft.LinkName("lo"))}
	fromTunnel := match{fmt.Sprintf("iifname %q", conf.Tunnel), nft.IIFName(expr.CmpOpEq, nft.LinkName(conf.Tunnel))}
	notFromBridge := match{
		fmt.Sprintf("iifname != %q", conf.Bridge), nft.IIFName(expr.CmpOpNeq, nft.LinkName(conf.Bridge)),
	}
	rules := []gateRule{rule("weir: the node's own", fromLoopback, verdict(expr.VerdictReturn, ""))}
	for _, f := range conf.Families {
		fromPod := join(fromTunnel, address(f, "saddr", "tunnelled", false))
		rules = append(rules, rule("weir: out of a tunnel", fromPod, verdict(expr.VerdictReturn, "")))
	}
	rules = append(rules, astray("weir: out of a tunnel, under an address that doesn't travel in tunnels", fromTunnel))
	for _, f := range conf.Families {
		rules = append(rules, astray("weir: pods elsewhere come out of tunnels", address(f, "saddr", "tunnelled", false)))
	}
	for _, f := range conf.Families {
		rules = append(rules, astray("weir: this node's pods don't come from outside",
			join(notFromBridge, address(f, "saddr", "own", false), wrongLink)))
	}
	return rules
}

// match is a condition or a statement of a rule: in nft's words, and in the library's types.
type match struct {
	words string
	exprs []expr.Any
}

func join(matches ...match) match {
	var all match
	for _, m := range matches {
		all.words = strings.TrimSpace(all.words + " " + m.words)
		all.exprs = append(all.exprs, m.exprs...)
	}
	return all
}

func rule(comment string, matches ...match) gateRule {
	m := join(matches...)
	return gateRule{nft.Rule{Comment: comment, Exprs: m.exprs}, m.words}
}

func strangers(comment string, m match) gateRule { return dropped(comment, conf.TunnelLogPrefix, m) }

func astray(comment string, m match) gateRule { return dropped(comment, conf.WayLogPrefix, m) }

func dropped(comment, prefix string, m match) gateRule {
	log := match{fmt.Sprintf("log prefix %q group %d", prefix, conf.LogGroup), nft.Log(prefix, conf.LogGroup)}
	return rule(comment, m, log, counter, verdict(expr.VerdictDrop, ""))
}

var counter = match{"counter", nft.Counter()}

func verdict(kind expr.VerdictKind, chain string) match {
	words := map[expr.VerdictKind]string{
		expr.VerdictDrop: "drop", expr.VerdictReturn: "return", expr.VerdictJump: "jump " + chain,
	}[kind]
	return match{words, nft.Verdict(kind, chain)}
}

func is(words string, load expr.Any, value []byte) match {
	return match{words, nft.Equal(load, value)}
}

func loadTransport(offset, length, register uint32) expr.Any {
	return nft.LoadPayload(expr.PayloadBaseTransportHeader, offset, length, register)
}

func loadAddress(f conf.Family, field string) expr.Any {
	offset, length := map[string]uint32{"saddr": 12, "daddr": 16}[field], uint32(4)
	if f == conf.IPv6 {
		offset, length = map[string]uint32{"saddr": 8, "daddr": 24}[field], 16
	}
	return nft.LoadPayload(expr.PayloadBaseNetworkHeader, offset, length, 1)
}

func lookup(set string, not bool) expr.Any {
	return &expr.Lookup{SourceRegister: 1, SetName: set, Invert: not}
}

func ofFamily(f conf.Family) match {
	load := nft.LoadMeta(expr.MetaKeyNFPROTO, 1)
	if f == conf.IPv6 {
		return is("meta nfproto ipv6", load, []byte{unix.NFPROTO_IPV6})
	}
	return is("meta nfproto ipv4", load, []byte{unix.NFPROTO_IPV4})
}

// address matches packets whose address is in the set. The parameter field is "saddr" or "daddr". If the parameter not
// is true, address matches packets whose address isn't in the set.
func address(f conf.Family, field, set string, not bool) match {
	protocol := map[conf.Family]string{conf.IPv4: "ip", conf.IPv6: "ip6"}[f]
	unequal := ""
	if not {
		unequal = "!= "
	}
	words := fmt.Sprintf("%s %s %s@%s", protocol, field, unequal, setName(f, set))
	return join(ofFamily(f), match{words, []expr.Any{loadAddress(f, field), lookup(setName(f, set), not)}})
}

// fromSender matches a tunnel packet if its outer and its inner source address together are an element of the
// senders' set. The packet inside must be of the family inner. The inner Ethernet header begins 16 bytes after the
// beginning of the UDP header: 8 bytes of UDP, and 8 of VXLAN (RFC 7348, section 5).
func fromSender(outer, inner conf.Family) match {
	ethertype, at, length, words := uint16(unix.ETH_P_IP), uint32(30+12), uint32(4), "@th,224,16 0x0800"
	if inner == conf.IPv6 {
		ethertype, at, length, words = unix.ETH_P_IPV6, 30+8, 16, "@th,224,16 0x86dd"
	}
	name, behind := "ip", uint32(unix.NFT_REG32_01)
	if outer == conf.IPv6 {
		name, behind = "ip6", unix.NFT_REG_2
	}
	isInner := is(words, loadTransport(28, 2, 1), binary.BigEndian.AppendUint16(nil, ethertype))
	return join(ofFamily(outer), isInner, match{
		fmt.Sprintf("%s saddr . @th,%d,%d @%s", name, at*8, length*8, setName(inner, "senders")),
		[]expr.Any{
			loadAddress(outer, "saddr"), loadTransport(at, length, behind), lookup(setName(inner, "senders"), false),
		},
	})
}

// wrongLink matches a packet if the route to its source leads to another link than the one by which the packet came,
// or if there is no route to its source.
var wrongLink = match{"fib saddr . iif oif 0", []expr.Any{
	&expr.Fib{Register: 1, FlagSADDR: true, FlagIIF: true, ResultOIF: true},
	&expr.Cmp{Op: expr.CmpOpEq, Register: 1, Data: make([]byte, 4)},
}}
