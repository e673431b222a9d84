package nftables

import (
	"encoding/binary"
	"fmt"
	"net/netip"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/weir-net/weir/conf"
	"github.com/weir-net/weir/netfilter/nftnl"
	"github.com/weir-net/weir/netfilter/probe"
	"github.com/weir-net/weir/policy/ruleset"
)

type rule struct {
	ruleset.Rule
	// Verdicts is the name of the map in which the rule looks up the verdict. By is the part of the packet that the rule
	// looks up there. If Verdicts is empty, Action is the verdict.
	Verdicts string
	By       ruleset.Part
	// Log is the prefix with which the rule logs a packet before it drops the packet. If Log is empty, the rule doesn't
	// log.
	Log   string
	Match []condition
	// icmpType is true if a condition of Match compares the packet's ICMP type.
	icmpType bool
	from     *ruleset.Rule
}

func (r rule) byPort() bool {
	return r.from != nil && r.from.InPort != "" && len(r.Match) > 0
}

const (
	bothEnds ruleset.Part = "source and destination"               // for sets with the layout AddressPair
	innerEnd ruleset.Part = "source, and destination inside of it" // for sets with the layout InnerPair
)

// labels is the action that gives a connection the label of cut connections (see package cut). No packet meets the rule
// with this action. The rule exists because the kernel makes room for labels only while some rule writes labels.
const labels ruleset.Action = "label as cut"

type condition struct {
	text        string
	expressions func(nftnl.Expressions) nftnl.Expressions
}

type statement struct {
	family conf.Family
	words  []string
	e      nftnl.Expressions
}

func (r rule) write(f conf.Family) (nftnl.Rule, string) {
	s := &statement{family: f}
	s.link("iifname", unix.NFT_META_IIFNAME, r.In)
	s.link("oifname", unix.NFT_META_OIFNAME, r.Out)
	s.address("saddr", 0, r.Src)
	s.address("daddr", 1, r.Dst)
	s.protocol(r)
	for _, c := range r.Match {
		s.add(c)
	}
	s.track(r.Track)
	s.ports(r)
	for _, m := range r.Sets {
		s.set(m, r.Proto)
	}
	if r.Verdicts != "" {
		s.load(r.By, "")
		s.words[len(s.words)-1] += " vmap @" + r.Verdicts
		s.e = s.e.LookupVerdict(r.Verdicts)
	} else {
		s.act(r)
	}
	words := nftnl.Comment(conf.Comment(r.Comment))
	if words != "" {
		s.say("comment %q", words)
	}
	return nftnl.Rule{Expressions: s.e, Comment: words}, strings.Join(s.words, " ")
}

func (s *statement) say(format string, args ...any) {
	s.words = append(s.words, fmt.Sprintf(format, args...))
}

func (s *statement) add(c condition) {
	if c.text != "" {
		s.say("%s", c.text)
	}
	s.e = c.expressions(s.e)
}

func (s *statement) ip() string {
	if s.family == conf.IPv6 {
		return "ip6"
	}
	return "ip"
}

func (s *statement) link(word string, key uint32, name string) {
	if name == "" {
		return
	}
	s.say("%s %q", word, name)
	s.e = s.e.Meta(key, 0).Compare(unix.NFT_CMP_EQ, append([]byte(name), make([]byte, unix.IFNAMSIZ-len(name))...))
}

func (s *statement) addressAt(which uint32) (offset, length uint32) {
	if s.family == conf.IPv6 {
		return 8 + 16*which, 16
	}
	return 12 + 4*which, 4
}

// address compares the packet's address with the network. Like nft, it loads only the network's bytes if the network's
// length is a multiple of 8 bits.
func (s *statement) address(word string, which uint32, p netip.Prefix) {
	if !p.IsValid() {
		return
	}
	offset, length := s.addressAt(which)
	text := p.String()
	if p.IsSingleIP() {
		text = p.Addr().String()
	}
	s.say("%s %s %s", s.ip(), word, text)
	data := p.Masked().Addr().AsSlice()
	switch bits := p.Bits(); {
	case bits%8 == 0 && bits > 0:
		length = uint32(bits / 8)
		s.e = s.e.Payload(unix.NFT_PAYLOAD_NETWORK_HEADER, offset, length, 0)
		data = data[:length]
	default:
		mask := make([]byte, length)
		for i := range bits {
			mask[i/8] |= 0x80 >> (i % 8)
		}
		s.e = s.e.Payload(unix.NFT_PAYLOAD_NETWORK_HEADER, offset, length, 0).And(mask)
	}
	s.e = s.e.Compare(unix.NFT_CMP_EQ, data)
}

var numbers = map[ruleset.Protocol]uint8{
	ruleset.TCP: unix.IPPROTO_TCP, ruleset.UDP: unix.IPPROTO_UDP, ruleset.SCTP: unix.IPPROTO_SCTP,
	ruleset.ICMP: unix.IPPROTO_ICMP, ruleset.ICMPv6: unix.IPPROTO_ICMPV6,
}

func numberOf(p ruleset.Protocol) uint8 {
	if n, ok := numbers[p]; ok {
		return n
	}
	n, _ := strconv.ParseUint(string(p), 10, 8)
	return uint8(n)
}

func (s *statement) protocol(r rule) {
	if r.Proto == "" {
		return
	}
	if !r.readsTransport() {
		s.say("meta l4proto %s", r.Proto)
	}
	s.e = s.e.Meta(unix.NFT_META_L4PROTO, 0).Compare(unix.NFT_CMP_EQ, []byte{numberOf(r.Proto)})
}

func (r rule) readsTransport() bool {
	if len(r.Ports) > 0 || r.Track == ruleset.Midstream || r.icmpType {
		return true
	}
	for _, m := range r.Sets {
		if m.By == ruleset.DestinationPort || m.By == ruleset.DestinationPair || m.By == ruleset.SourcePair {
			return true
		}
	}
	return false
}

func u32(n uint32) []byte { return binary.NativeEndian.AppendUint32(nil, n) }

const (
	stateInvalid     = 1 << 0
	stateEstablished = 1 << 1
	stateRelated     = 1 << 2
	stateNew         = 1 << 3
	stateUntracked   = 1 << 6
	statusConfirmed  = 1 << 3 // IPS_CONFIRMED
	statusDNAT       = 1 << 5 // IPS_DST_NAT
)

func has(e nftnl.Expressions, mask []byte, not bool) nftnl.Expressions {
	op := uint32(unix.NFT_CMP_NEQ)
	if not {
		op = unix.NFT_CMP_EQ
	}
	return e.And(mask).Compare(op, make([]byte, len(mask)))
}

func cutLabel() []byte {
	label := make([]byte, 16) // the kernel stores labels as longs, in the machine's byte order
	at := conf.CutLabel / 64 * 8
	binary.NativeEndian.PutUint64(label[at:at+8], 1<<(conf.CutLabel%64))
	return label
}

func ctState(words string, mask uint32) condition {
	return condition{"ct state " + words, func(e nftnl.Expressions) nftnl.Expressions {
		return has(e.Ct(unix.NFT_CT_STATE, 0), u32(mask), false)
	}}
}

func cut(not bool) condition {
	sign := ""
	if not {
		sign = "! "
	}
	return condition{fmt.Sprintf("ct label %s%d", sign, conf.CutLabel), func(e nftnl.Expressions) nftnl.Expressions {
		return has(e.Ct(unix.NFT_CT_LABELS, 0), cutLabel(), not)
	}}
}

// untranslated matches packets of connections whose destination wasn't translated. It matches no packet without a
// connection.
var untranslated = condition{"ct status ! dnat", func(e nftnl.Expressions) nftnl.Expressions {
	return has(e.Ct(unix.NFT_CT_STATUS, 0), u32(statusDNAT), true)
}}

// unconfirmed matches a connection's first packet: the kernel confirms the connection when this packet leaves the last
// hook.
var unconfirmed = condition{"ct status ! confirmed", func(e nftnl.Expressions) nftnl.Expressions {
	return has(e.Ct(unix.NFT_CT_STATUS, 0), u32(statusConfirmed), true)
}}

func (s *statement) track(t ruleset.Track) {
	switch t {
	case ruleset.Established:
		s.add(ctState("established", stateEstablished))
		s.add(cut(true))
	case ruleset.Cut:
		s.add(cut(false))
	case ruleset.Related:
		s.add(ctState("related", stateRelated))
	case ruleset.Midstream:
		s.add(condition{"tcp flags != syn / fin,syn,rst,ack", func(e nftnl.Expressions) nftnl.Expressions {
			const fin, syn, rst, ack = 0x01, 0x02, 0x04, 0x10
			return e.Payload(unix.NFT_PAYLOAD_TRANSPORT_HEADER, 13, 1, 0).And([]byte{fin | syn | rst | ack}).
				Compare(unix.NFT_CMP_NEQ, []byte{syn})
		}})
		s.add(condition{"ct state != untracked", func(e nftnl.Expressions) nftnl.Expressions {
			return e.Ct(unix.NFT_CT_STATE, 0).Compare(unix.NFT_CMP_NEQ, u32(stateUntracked))
		}})
	case probe.Untracked:
		s.add(ctState("untracked", stateUntracked))
	case probe.Unestablished:
		s.add(ctState("invalid,new,untracked", stateInvalid|stateNew|stateUntracked))
	}
}

func loadPort(e nftnl.Expressions, to int) nftnl.Expressions {
	return e.Payload(unix.NFT_PAYLOAD_TRANSPORT_HEADER, 2, 2, to)
}

func (s *statement) ports(r rule) {
	if len(r.Ports) == 0 {
		return
	}
	p := r.Ports[0] // the lowering has left at most one range of ports
	s.say("%s dport %s", r.Proto, p)
	s.e = loadPort(s.e, 0)
	if first := binary.BigEndian.AppendUint16(nil, p.First); p.First == p.Last {
		s.e = s.e.Compare(unix.NFT_CMP_EQ, first)
	} else {
		s.e = s.e.Compare(unix.NFT_CMP_GTE, first).Compare(unix.NFT_CMP_LTE, binary.BigEndian.AppendUint16(nil, p.Last))
	}
}

func (s *statement) load(by ruleset.Part, proto ruleset.Protocol) {
	word := "th" // nft's word for the transport header, if the rule has no protocol
	if proto != "" {
		word = string(proto)
	}
	source, length := s.addressAt(0)
	destination, _ := s.addressAt(1)
	next := int(length / 4) // the register after the address
	ip := func(offset uint32, to int) {
		s.e = s.e.Payload(unix.NFT_PAYLOAD_NETWORK_HEADER, offset, length, to)
	}
	pair := func() {
		s.e = loadPort(s.e.Meta(unix.NFT_META_L4PROTO, next), next+1)
	}
	switch by {
	case ruleset.Source:
		s.say("%s saddr", s.ip())
		ip(source, 0)
	case ruleset.Destination:
		s.say("%s daddr", s.ip())
		ip(destination, 0)
	case ruleset.DestinationPort:
		s.say("%s dport", word)
		s.e = loadPort(s.e, 0)
	case ruleset.SourcePair:
		s.say("%s saddr . meta l4proto . %s dport", s.ip(), word)
		ip(source, 0)
		pair()
	case ruleset.DestinationPair:
		s.say("%s daddr . meta l4proto . %s dport", s.ip(), word)
		ip(destination, 0)
		pair()
	case ruleset.SourceLink:
		s.say("%s saddr . iifname", s.ip())
		ip(source, 0)
		s.e = s.e.Meta(unix.NFT_META_IIFNAME, next)
	case sourceLinkOnly:
		s.say("iifname")
		s.e = s.e.Meta(unix.NFT_META_IIFNAME, 0)
	case bothEnds:
		s.say("%s saddr . %s daddr", s.ip(), s.ip())
		ip(source, 0)
		ip(destination, next)
	case innerEnd: // an ICMP error contains another packet, behind the eight bytes of the ICMP header
		offset := 8 + destination
		s.say("%s saddr . @th,%d,%d", s.ip(), 8*offset, 8*length)
		ip(source, 0)
		s.e = s.e.Payload(unix.NFT_PAYLOAD_TRANSPORT_HEADER, offset, length, next)
	}
}

// sourceLinkOnly is the part of a packet that rules look up in sets of links without addresses: the link by which the
// packet came in.
const sourceLinkOnly ruleset.Part = "link"

func (s *statement) set(m ruleset.SetMatch, proto ruleset.Protocol) {
	s.load(m.By, proto)
	sign := " "
	if m.Not {
		sign = " != "
	}
	s.words[len(s.words)-1] += sign + "@" + m.Name
	s.e = s.e.Lookup(m.Name, m.Not)
}

func (s *statement) act(r rule) {
	verdict := func(code int32, chain string) { s.e = s.e.Verdict(nftnl.Verdict{Code: code, Chain: chain}) }
	switch r.Action {
	case ruleset.Drop:
		s.say("counter")
		s.e = s.e.Counter()
		if r.Log != "" {
			s.say("log prefix %q group %d", r.Log, conf.LogGroup)
			s.e = s.e.Log(conf.LogGroup, r.Log)
		}
		s.say("drop")
		verdict(0, "") // NF_DROP
	case ruleset.Accept:
		s.say("accept")
		verdict(1, "") // NF_ACCEPT
	case ruleset.Return:
		s.say("return")
		verdict(unix.NFT_RETURN, "")
	case ruleset.Jump:
		s.say("jump %s", r.To)
		verdict(unix.NFT_JUMP, r.To)
	case ruleset.GoTo:
		s.say("goto %s", r.To)
		verdict(unix.NFT_GOTO, r.To)
	case ruleset.Log:
		s.say("log prefix %q group %d", r.To, conf.LogGroup)
		s.e = s.e.Log(conf.LogGroup, r.To)
	case ruleset.Masquerade:
		s.say("masquerade fully-random")
		s.e = s.e.Masquerade()
	case labels:
		s.say("ct label set %d", conf.CutLabel)
		s.e = s.e.Load(cutLabel()).SetCt(unix.NFT_CT_LABELS, 0)
	}
}
