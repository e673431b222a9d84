package ruleset

import (
	"crypto/sha256"
	"encoding/base32"
	"fmt"
	"net/netip"
	"slices"
	"strconv"
	"strings"
)

// Rule has conditions, and an action for packets that match all of them. An empty field is no condition.
type Rule struct {
	Src    netip.Prefix
	Dst    netip.Prefix
	In     string // the link by which the packet came in
	Out    string // the link by which the packet goes out
	Proto  Protocol
	InPort string // the port of a bridge by which the packet came in
	Sets   []SetMatch
	Ports  []PortRange // ranges of destination ports; any number of ranges
	Track  Track
	Shape  Shape
	// Comment explains the rule to people who list the kernel's rules.
	Comment string
	Action  Action
	// To is the target chain of Jump and GoTo, or the prefix of Log's messages.
	To string
	// Audits is for rules that log. It is the direction in which audited policies would drop the packet. It is empty if
	// the packet is really dropped.
	Audits Direction
	// Policies has the names of the policies to which the rule belongs, in order. Rules with Policies can only allow
	// packets. So without such a rule, all denied packets stay denied.
	Policies []string
}

// SetMatch matches a packet if the set contains the part By of the packet. If Not is true, the set must not contain it.
type SetMatch struct {
	Name string
	By   Part
	Not  bool
}

// Part is a part of a packet that a rule looks up in a set.
type Part string

// The comments in this block name the kinds of sets that can contain the part.
const (
	Source          Part = "source"               // in Addresses sets and Networks sets
	Destination     Part = "destination"          // in Addresses sets and Networks sets
	DestinationPort Part = "port"                 // in Ports sets
	SourcePair      Part = "source and port"      // in AddressPorts sets: the source's address, the destination's port
	DestinationPair Part = "destination and port" // in AddressPorts sets
	SourceLink      Part = "source and link"      // in AddressLinks sets
)

func (m SetMatch) ports() bool {
	return m.By == DestinationPort || m.By == DestinationPair || m.By == SourcePair
}

// Track matches the state that connection tracking has found for a packet.
type Track string

const (
	// Established packets belong to a connection that was allowed, and is not cut.
	Established Track = "established"
	// Cut packets belong to a connection that policies allowed before, and don't allow any more.
	Cut Track = "cut"
	// Related packets are ICMP errors about a connection. They are also the first packets of a connection that another
	// connection has announced (FTP's data).
	Related Track = "related"
	// Untranslated packets still have the destination to which their sender has sent them.
	Untranslated Track = "untranslated"
	// Midstream packets are TCP packets of an unknown connection that don't begin a connection. Untracked packets
	// (NOTRACK) don't match.
	Midstream Track = "midstream"
	// First packets begin a connection. Untracked packets also match.
	First Track = "first"
)

// Shape matches a combination of values in a packet's headers. A packet that is too short doesn't match. So no rule
// with a shape may drop packets: short packets would pass.
type Shape string

const (
	// ToItself packets have the same address as source and destination.
	ToItself Shape = "to its own sender"
	// HonestICMP packets are ICMP packets that are no errors, and honest ICMP errors. An error contains the beginning of
	// the packet that it is about. The error is honest if the addresses of that inner packet say that the error's receiver
	// sent it to the error's sender. Redirects and later fragments don't match.
	//
	// Errors of ICMP are the types 3 (destination unreachable), 4 (source quench), 5 (redirect), 11 (time exceeded) and 12
	// (parameter problem). Errors of ICMPv6 are all types below 128 (RFC 4443, section 2.1), and 137 (redirect).
	HonestICMP Shape = "no ICMP error, or one about a packet to its sender"
	// NoICMPError packets are ICMP packets that are no errors.
	NoICMPError Shape = "no ICMP error"
	// Solicitation packets are ICMPv6 neighbour solicitations, by which a host asks for another host's link address.
	// Their hop limit must be 255, which shows that no router has forwarded them (RFC 4861, section 7.1).
	Solicitation Shape = "neighbour solicitation"
	// Advertisement packets are ICMPv6 neighbour advertisements, which answer solicitations.
	Advertisement Shape = "neighbour advertisement"
)

// Action is what a rule does with a packet that matches.
type Action string

// Accept and Drop decide on the packet: no later rule of the hook checks the packet.
const (
	Accept Action = "accept"
	Drop   Action = "drop"
	// Return ends the chain. The packet continues after the rule with the last Jump. If there was no Jump, it passes
	// the hook.
	Return Action = "return"
	// Jump leads the packet to the chain To. If that chain returns, the packet continues with the next rule.
	Jump Action = "jump"
	// GoTo leads the packet to the chain To. The packet doesn't come back to the rule's own chain.
	GoTo Action = "goto"
	// Log copies the packet to weir's log group (NFLOG). The packet continues with the next rule.
	Log Action = "log"
	// Masquerade replaces the connection's source address by an address of the node.
	Masquerade Action = "masquerade"
)

// Protocol is a protocol above IP: its lower-case name, or its number in decimal. It is empty for all protocols.
type Protocol string

// These are the protocols that a NetworkPolicyPort can have.
const (
	TCP  Protocol = "tcp"
	UDP  Protocol = "udp"
	SCTP Protocol = "sctp"
)

// These are the protocols of ICMP errors and of IPv6's neighbour discovery.
const (
	ICMP   Protocol = "icmp"
	ICMPv6 Protocol = "ipv6-icmp"
)

// PortRange has the ports from First to Last, both included.
type PortRange struct {
	First uint16 `json:"first"`
	Last  uint16 `json:"last"`
}

// String returns the range as "80" or "80-90".
func (p PortRange) String() string {
	if p.First == p.Last {
		return strconv.Itoa(int(p.First))
	}
	return fmt.Sprintf("%d-%d", p.First, p.Last)
}

// Equal reports whether the rules are equal, including their comments and policies.
func (r Rule) Equal(o Rule) bool {
	return r.Comment == o.Comment && slices.Equal(r.Policies, o.Policies) && r.SameAs(o)
}

// SameAs reports whether the rules have the same conditions and action. Comments and policies may differ.
func (r Rule) SameAs(o Rule) bool {
	return r.Src == o.Src && r.Dst == o.Dst && r.In == o.In && r.Out == o.Out && r.Proto == o.Proto &&
		r.InPort == o.InPort && slices.Equal(r.Sets, o.Sets) && slices.Equal(r.Ports, o.Ports) && r.Track == o.Track &&
		r.Shape == o.Shape && r.Action == o.Action && r.To == o.To && r.Audits == o.Audits
}

// Key returns a text for the rule's conditions and action. Two rules have the same key only if SameAs returns true for
// them.
func (r Rule) Key() string {
	var b strings.Builder
	r.encode(&b)
	return b.String()
}

// encode writes the rule as text. It writes the length of each value, so that different rules never have the same text.
func (r Rule) encode(b *strings.Builder) {
	b.Grow(128)
	put := func(field byte, value string) {
		if value != "" {
			b.WriteByte(field)
			b.WriteString(strconv.Itoa(len(value)))
			b.WriteByte(':')
			b.WriteString(value)
		}
	}
	if r.Src.IsValid() {
		put('s', r.Src.String())
	}
	if r.Dst.IsValid() {
		put('d', r.Dst.String())
	}
	put('i', r.In)
	put('o', r.Out)
	put('p', string(r.Proto))
	put('b', r.InPort)
	put('t', string(r.Track))
	put('h', string(r.Shape))
	for _, m := range r.Sets {
		if m.Not {
			b.WriteByte('!')
		}
		put('m', string(m.By))
		put('n', m.Name)
	}
	for _, p := range r.Ports {
		put('r', p.String())
	}
	put('a', string(r.Action))
	put('c', r.To)
	put('u', string(r.Audits))
}

// Identity returns a name for the rules: a hash of the rules and the context, as 16 letters and digits (80 bits).
// Equal rules with different contexts, such as the names of their policies, have different names.
func Identity(context string, rules []Rule) string {
	var b strings.Builder
	b.WriteString(context)
	for _, r := range rules {
		b.WriteByte('\n')
		r.encode(&b)
		b.WriteByte('#')
		b.WriteString(strconv.Itoa(len(r.Comment)))
		b.WriteByte(':')
		b.WriteString(r.Comment)
	}
	return Hash(b.String())
}

// Hash returns a hash of 80 bits as 16 letters and digits. It is short enough for the names of sets and chains.
func Hash[T string | []byte](text T) string {
	sum := sha256.Sum256([]byte(text))
	return base32.StdEncoding.WithPadding(base32.NoPadding).EncodeToString(sum[:10])
}
