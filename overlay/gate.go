package overlay

import (
	"encoding/binary"
	"fmt"
	"net/netip"
	"slices"
	"strings"

	"github.com/google/nftables"
	"github.com/google/nftables/binaryutil"
	"github.com/google/nftables/expr"
	"go4.org/netipx"
	"golang.org/x/sys/unix"

	"github.com/weir-net/weir/bridge"
	"github.com/weir-net/weir/conf"
	"github.com/weir-net/weir/internal/nft"
)

// Gate is the nftables table "inet weir-tunnel". It says which packets may be tunnels', and which may be those of pods
// on other nodes. What a tunnel delivers has passed no rule of its sender's node again, so whoever could send into one,
// or under the address of a pod elsewhere, would be taken for that pod by every policy.
//
// A tunnel packet is UDP to the tunnels' port whose destination is a node's InternalIP. Untracked, it is never
// translated to another destination, and no ICMP error is RELATED to it. None is forwarded, be it that a Service or a
// hostPort has translated it to a node: what a node sends to another it sends itself. It is believed if it comes by the
// underlay, which is every link but weir's and those of pods (nodes with several NICs use them as they like),
// untranslated, and with a sender inside that is of a network of the node that it comes from (RFC 7348, section 5: the
// inner Ethernet header begins 16 bytes behind the UDP header's beginning). Networks of others may share the port: only
// those packets that name weir's VNI are judged so.
//
// Behind the tunnel, what comes out of it must be from a network whose packets travel in tunnels, and what is from such
// a network must come out of it. Packets under the addresses of this node's own pods come from where they would be sent
// to.
type Gate struct {
	sets   []gateSet
	chains []gateChain
}

// gateSet is a set of the table; ranges are the intervals that it holds, or the single elements.
type gateSet struct {
	name, comment string
	keyType       nftables.SetDatatype
	// interval sets hold ranges; in one that is also concatenated each element has the ends of its own range.
	interval, concatenated bool
	elements               []nftables.SetElement
	words                  []string // the elements in nft's words
}

// gateChain is a chain; without a hook other chains jump to it.
type gateChain struct {
	name     string
	hook     *nftables.ChainHook
	priority nftables.ChainPriority
	rules    []gateRule
}

// gateRule is a rule, with its text in nft's words.
type gateRule struct {
	nft.Rule
	words string
}

// Priorities of the chains: the kernel walks the chains of a hook from the lowest to the highest. raw comes after
// defragmentation (-400) and before connection tracking (-200). The judging chains come before those that iptables and
// other programs usually make. The last chain counts the packets that all others have accepted.
const (
	rawPriority   = -300
	filterPriority = -160
	lastPriority  = 300
)

// untracked is NF_CT_STATE_UNTRACKED_BIT (include/uapi/linux/netfilter/nf_conntrack_common.h).
const untracked = 1 << 6

// Comments of the rules whose counters are read.
const (
	acceptedComment = "weir: from a network of the node whose tunnel it is"
	deliveredComment  = "weir: let in by all firewalls of the host"
)

// NewGate is the gate for the plan. links are those that other plugins made for pods.
func NewGate(p Plan, links []string) Gate {
	var g Gate
	names := []string{conf.Bridge, conf.Tunnel}
	for _, l := range links {
		if !slices.Contains(names, l) {
			names = append(names, l)
		}
	}
	slices.Sort(names)
	pods := gateSet{name: "links", comment: "weir: links that no tunnel packet comes by", keyType: nftables.TypeIFName}
	for _, l := range names {
		pods.add(fmt.Sprintf("%q", l), nftables.SetElement{Key: nft.LinkName(l)})
	}
	g.sets = append(g.sets, pods)
	for _, f := range conf.Families {
		nodes := gateSet{name: setName(f, "nodes"), comment: "weir: InternalIPs of nodes", keyType: addressType(f)}
		addrs := slices.DeleteFunc(slices.Clone(p.Nodes), func(a netip.Addr) bool { return conf.FamilyOf(a) != f })
		slices.SortFunc(addrs, netip.Addr.Compare)
		for _, a := range slices.Compact(addrs) {
			nodes.add(a.String(), nftables.SetElement{Key: a.AsSlice()})
		}
		g.sets = append(g.sets, nodes,
			networkSet(f, "networks", "weir: networks of all pods", p.Networks),
			networkSet(f, "tunnelled", "weir: networks of pods whose packets come out of tunnels only", p.Tunnelled),
			networkSet(f, "own", "weir: networks of this node's pods", p.Own))
	}
	if p.NodeAddress.IsValid() {
		for _, f := range conf.Families {
			g.sets = append(g.sets, sendersSet(conf.FamilyOf(p.NodeAddress), f, p.Remotes))
		}
	}
	g.chains = chains(p)
	return g
}

func setName(f conf.Family, name string) string {
	return name + map[conf.Family]string{conf.IPv4: "4", conf.IPv6: "6"}[f]
}

func addressType(f conf.Family) nftables.SetDatatype {
	if f == conf.IPv6 {
		return nftables.TypeIP6Addr
	}
	return nftables.TypeIPAddr
}

func (s *gateSet) add(words string, elements ...nftables.SetElement) {
	s.words = append(s.words, words)
	s.elements = append(s.elements, elements...)
}

// networkSet holds the family's networks. Adjacent ones are put together, as one that ends where another begins is not
// what every kernel takes.
func networkSet(f conf.Family, name, comment string, networks []netip.Prefix) gateSet {
	s := gateSet{name: setName(f, name), comment: comment, keyType: addressType(f), interval: true}
	var b netipx.IPSetBuilder
	for _, n := range networks {
		if conf.FamilyOf(n.Addr()) == f {
			b.AddPrefix(n)
		}
	}
	all, err := b.IPSet()
	if err != nil { // no prefix is invalid here, and an empty set lets nothing through
		return s
	}
	for _, r := range all.Ranges() {
		// The end of an interval is the first address behind it. None of a pod's network is the last there is.
		end := nftables.SetElement{Key: r.To().Next().AsSlice(), IntervalEnd: true}
		s.add(r.String(), nftables.SetElement{Key: r.From().AsSlice()}, end)
	}
	return s
}

// senders are the tunnels' ends, of the outer family, each with its networks of the inner one.
func sendersSet(outer, inner conf.Family, peers []Remote) gateSet {
	s := gateSet{
		name: setName(inner, "senders"), comment: "weir: tunnels' ends and the networks behind each",
		keyType: nftables.MustConcatSetType(addressType(outer), addressType(inner)), interval: true, concatenated: true,
	}
	tunnelled := slices.DeleteFunc(slices.Clone(peers), func(p Remote) bool {
		return p.Direct || conf.FamilyOf(p.Network.Addr()) != inner
	})
	slices.SortFunc(tunnelled, func(a, b Remote) int { return a.Network.Addr().Compare(b.Network.Addr()) })
	for _, p := range tunnelled {
		r := netipx.RangeOfPrefix(p.Network)
		end := p.Address.AsSlice()
		s.add(fmt.Sprintf("%s . %s", p.Address, p.Network), nftables.SetElement{
			Key: slices.Concat(end, r.From().AsSlice()), KeyEnd: slices.Concat(end, r.To().AsSlice()),
		})
	}
	return s
}

func chains(p Plan) []gateChain {
	toPort := join(is("meta l4proto udp", nft.LoadMeta(expr.MetaKeyL4PROTO, 1), []byte{unix.IPPROTO_UDP}),
		is(fmt.Sprintf("udp dport %d", p.Port), transport(2, 2, 1), binary.BigEndian.AppendUint16(nil, p.Port)))
	weirs := join(toPort, is(fmt.Sprintf("@th,96,24 %d", p.VNI), transport(12, 3, 1), binary.BigEndian.AppendUint32(nil, p.VNI)[1:]))
	// Of weir0's ports: only frames that the bridge hands to IP as they came have such a name here.
	fromPort := match{fmt.Sprintf(`iifname "%s*"`, bridge.PortPrefix), nft.IIFName(expr.CmpOpEq, []byte(bridge.PortPrefix))}
	fromLinks := match{"iifname @links", []expr.Any{nft.LoadIIFName(1), lookup("links", false)}}
	fromTunnel := match{fmt.Sprintf("iifname %q", conf.Tunnel), nft.IIFName(expr.CmpOpEq, nft.LinkName(conf.Tunnel))}

	raw, forward := make([]gateRule, 0, 2), make([]gateRule, 0, 5)
	for _, f := range conf.Families {
		toNodes := join(toPort, address(f, "daddr", "nodes", false))
		raw = append(raw, rule("weir: tunnels aren't tracked", toNodes, match{"notrack", []expr.Any{&expr.Notrack{}}}))
		forward = append(forward, dropped("weir: a node's tunnel packets aren't another's to forward", toNodes))
	}
	for _, f := range conf.Families {
		toOthers := join(fromLinks, toPort, address(f, "daddr", "networks", true))
		forward = append(forward, dropped("weir: pods send to the tunnels' port of pods only", toOthers))
	}
	input := []gateRule{
		dropped("weir: pods send nothing into tunnels", join(fromLinks, toPort)),
		dropped("weir: pods send nothing into tunnels", join(fromPort, toPort)),
		rule("weir: a tunnel packet", weirs, verdict(expr.VerdictJump, "tunnel")),
	}
	if p.Encapsulation == Never { // the port is anybody's
		raw, forward, input = nil, nil, nil
	}
	var tunnel []gateRule
	if p.NodeAddress.IsValid() {
		outer := conf.FamilyOf(p.NodeAddress)
		tracked := match{"ct state != untracked", []expr.Any{
			&expr.Ct{Key: expr.CtKeySTATE, Register: 1},
			&expr.Cmp{Op: expr.CmpOpNeq, Register: 1, Data: binaryutil.NativeEndian.PutUint32(untracked)},
		}}
		tunnel = append(tunnel,
			dropped("weir: a tunnel packet that was translated, or that comes to another address than InternalIPs", tracked),
			dropped("weir: tunnel packets come to the addresses that nodes know of each other", address(outer, "daddr", "nodes", true)))
		for _, f := range conf.Families {
			tunnel = append(tunnel, rule(acceptedComment, join(inner(outer, f), counted), verdict(expr.VerdictReturn, "")))
		}
	}
	tunnel = append(tunnel, dropped("weir: a tunnel packet from no node, or under an address that isn't of that node's pods", match{}))
	way := []gateRule{rule("weir: the node's own", match{`iifname "lo"`, nft.IIFName(expr.CmpOpEq, nft.LinkName("lo"))}, verdict(expr.VerdictReturn, ""))}
	for _, f := range conf.Families {
		honest := join(fromTunnel, address(f, "saddr", "tunnelled", false))
		way = append(way, rule("weir: out of a tunnel", honest, verdict(expr.VerdictReturn, "")))
	}
	way = append(way, dropped("weir: out of a tunnel, under an address that doesn't travel in tunnels", fromTunnel))
	for _, f := range conf.Families {
		way = append(way, dropped("weir: pods elsewhere come out of tunnels", address(f, "saddr", "tunnelled", false)))
	}
	fromElsewhere := match{fmt.Sprintf("iifname != %q", conf.Bridge), nft.IIFName(expr.CmpOpNeq, nft.LinkName(conf.Bridge))}
	for _, f := range conf.Families {
		way = append(way, dropped("weir: this node's pods don't come from outside",
			join(fromElsewhere, address(f, "saddr", "own", false), wrongLink)))
	}
	jump := rule("weir: pods' packets come by the way that leads to them", match{}, verdict(expr.VerdictJump, "way"))
	return []gateChain{
		{name: "prerouting", hook: nftables.ChainHookPrerouting, priority: rawPriority, rules: raw},
		{name: "output", hook: nftables.ChainHookOutput, priority: rawPriority, rules: raw},
		{name: "tunnel", rules: tunnel},
		{name: "way", rules: way},
		{name: "forward", hook: nftables.ChainHookForward, priority: filterPriority, rules: append(forward, jump)},
		{name: "input", hook: nftables.ChainHookInput, priority: filterPriority, rules: append(input, jump)},
		{name: "last", hook: nftables.ChainHookInput, priority: lastPriority, rules: []gateRule{rule(deliveredComment, weirs, counted)}},
	}
}

// match is a condition, or a statement, in nft's words and as the kernel knows it.
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

func dropped(comment string, m match) gateRule {
	return rule(comment, m, counted, verdict(expr.VerdictDrop, ""))
}

var counted = match{"counter", nft.Counter()}

func verdict(kind expr.VerdictKind, chain string) match {
	words := map[expr.VerdictKind]string{
		expr.VerdictDrop: "drop", expr.VerdictReturn: "return", expr.VerdictJump: "jump " + chain,
	}[kind]
	return match{words, nft.Verdict(kind, chain)}
}

func is(words string, load expr.Any, value []byte) match {
	return match{words, nft.Equal(load, value)}
}

func transport(offset, length, register uint32) expr.Any {
	return nft.LoadPayload(expr.PayloadBaseTransportHeader, offset, length, register)
}

func lookup(set string, not bool) expr.Any {
	return &expr.Lookup{SourceRegister: 1, SetName: set, Invert: not}
}

func ofFamily(f conf.Family) match {
	if f == conf.IPv6 {
		return is("meta nfproto ipv6", nft.LoadMeta(expr.MetaKeyNFPROTO, 1), []byte{unix.NFPROTO_IPV6})
	}
	return is("meta nfproto ipv4", nft.LoadMeta(expr.MetaKeyNFPROTO, 1), []byte{unix.NFPROTO_IPV4})
}

// load puts the source or destination address into register 1 and those behind it.
func load(f conf.Family, field string) expr.Any {
	offset, length := map[string]uint32{"saddr": 12, "daddr": 16}[field], uint32(4)
	if f == conf.IPv6 {
		offset, length = map[string]uint32{"saddr": 8, "daddr": 24}[field], 16
	}
	return nft.LoadPayload(expr.PayloadBaseNetworkHeader, offset, length, 1)
}

// address matches packets of the family whose source or destination is in the family's set of that name, or isn't.
func address(f conf.Family, field, set string, not bool) match {
	protocol := map[conf.Family]string{conf.IPv4: "ip", conf.IPv6: "ip6"}[f]
	words := fmt.Sprintf("%s %s %s@%s", protocol, field, map[bool]string{true: "!= "}[not], setName(f, set))
	return join(ofFamily(f), match{words, []expr.Any{load(f, field), lookup(setName(f, set), not)}})
}

// inner matches tunnel packets whose sender and the sender inside, of the inner family, are in the set of senders
// together. Non-IP frames match in neither family.
func inner(outer, inside conf.Family) match {
	ethertype, at, length, words := uint16(unix.ETH_P_IP), uint32(30+12), uint32(4), "@th,224,16 0x0800"
	if inside == conf.IPv6 {
		ethertype, at, length, words = unix.ETH_P_IPV6, 30+8, 16, "@th,224,16 0x86dd"
	}
	name, behind := "ip", uint32(unix.NFT_REG32_01)
	if outer == conf.IPv6 {
		name, behind = "ip6", unix.NFT_REG_2
	}
	return join(ofFamily(outer), is(words, transport(28, 2, 1), binary.BigEndian.AppendUint16(nil, ethertype)), match{
		fmt.Sprintf("%s saddr . @th,%d,%d @%s", name, at*8, length*8, setName(inside, "senders")),
		[]expr.Any{load(outer, "saddr"), transport(at, length, behind), lookup(setName(inside, "senders"), false)},
	})
}

// noWayBack matches packets to whose source the node would send by another link than the one that they came by.
var wrongLink = match{"fib saddr . iif oif 0", []expr.Any{
	&expr.Fib{Register: 1, FlagSADDR: true, FlagIIF: true, ResultOIF: true},
	&expr.Cmp{Op: expr.CmpOpEq, Register: 1, Data: make([]byte, 4)},
}}

// String is the table as a person would list it.
func (g Gate) String() string {
	var b strings.Builder
	for _, s := range g.sets {
		fmt.Fprintf(&b, "set %s { %s } # %s\n", s.name, strings.Join(s.words, ", "), s.comment)
	}
	for _, c := range g.chains {
		fmt.Fprintf(&b, "chain %s", c.name)
		if c.hook != nil {
			fmt.Fprintf(&b, " hook %d priority %d", *c.hook, c.priority)
		}
		b.WriteByte('\n')
		for _, r := range c.rules {
			fmt.Fprintf(&b, "  %s # %s\n", r.words, r.Comment)
		}
	}
	return b.String()
}
