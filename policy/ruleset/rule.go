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
	In     string // the link that the packet came in by
	Out    string // the link that it leaves by
	Proto  Protocol
	InPort string // the port of a bridge that the packet came in by
	Sets   []SetMatch
	Ports  []PortRange // of the destination; any number of ranges
	Track  Track
	Shape  Shape
	// Comment explains the rule to an operator who lists the kernel's rules.
	Comment string
	Action  Action
	// To is the target chain of Jump and GoTo, or the prefix of Log's messages.
	To string
	// Audits is for Log: audited policies would drop the packet in this direction. It is empty if the packet is dropped.
	Audits Direction
	// Policies are the policies that the rule belongs to, in order. A rule with Policies only allows packets: without
	// the rule, the ruleset drops more.
	Policies []string
}

// SetMatch matches a packet if the set contains the part By of the packet. With Not, the set must not contain
// it.
type SetMatch struct {
	Name string
	By   Part
	Not  bool
}

// Part is the part of a packet that a rule looks up in a set.
type Part string

// The comments name the kinds of sets that can contain the Part.
const (
	Source          Part = "source"               // Addresses, Networks
	Destination     Part = "destination"          // Addresses, Networks
	DestinationPort Part = "port"                 // Ports
	SourcePair      Part = "source and port"      // AddressPorts: the source's address, and the destination's port
	DestinationPair Part = "destination and port" // AddressPorts
	SourceLink      Part = "source and link"      // AddressLinks
)

func (m SetMatch) ports() bool {
	return m.By == DestinationPort || m.By == DestinationPair || m.By == SourcePair
}

// Track matches the state that connection tracking gives a packet.
type Track string

const (
	// Established packets belong to a connection that was allowed and is not cut.
	Established Track = "established"
	// Cut packets belong to a connection that policies allowed and no longer allow.
	Cut Track = "cut"
	// Related packets are ICMP errors about a connection, or begin an announced connection (FTP's data).
	Related Track = "related"
	// Untranslated packets still have the destination that their sender gave them.
	Untranslated Track = "untranslated"
	// Midstream packets are TCP packets of an unknown connection that don't begin one. Untracked packets
	// (NOTRACK) are not among them.
	Midstream Track = "midstream"
	// First packets are those that begin a connection, and untracked packets.
	First Track = "first"
)

// Shape matches a combination of values in the packet's headers. A packet that is too short doesn't match, so
// no rule with a shape may drop packets.
type Shape string

const (
	// ToItself packets have the same address as source and destination.
	ToItself Shape = "to its own sender"
	// HonestICMP packets are ICMP packets that are no errors, and honest errors: the error's receiver has sent
	// the packet that the error is about. Redirects and later fragments don't match.
	//
	// Errors are the types that connection tracking relates to connections. For ICMP these are types 3
	// (destination unreachable), 4 (source quench), 11 (time exceeded) and 12 (parameter problem). For ICMPv6
	// they are all types below 128 (RFC 4443, section 2.1).
	HonestICMP Shape = "no ICMP error, or one about a packet to its sender"
	// NoICMPError packets are ICMP packets that are no errors.
	NoICMPError Shape = "no ICMP error"
	// Solicitation packets are ICMPv6 neighbour solicitations: a host asks for another's link address. A hop
	// limit of 255 proves that no router has forwarded them (RFC 4861, section 7.1).
	Solicitation Shape = "neighbour solicitation"
	// Advertisement packets are ICMPv6 neighbour advertisements, which answer solicitations.
	Advertisement Shape = "neighbour advertisement"
)

// Action is what a rule does with a packet that matches.
type Action string

// Accept and Drop decide on the packet: no later rule of the hook checks it.
const (
	Accept Action = "accept"
	Drop   Action = "drop"
	// Return ends the chain. The packet continues after the last Jump that led to the chain; without a Jump, after
	// the hook.
	Return Action = "return"
	// Jump sends the packet through the chain To. The packet continues after the jump if that chain returns.
	Jump Action = "jump"
	// GoTo sends the packet through the chain To. The packet never continues in the rule's own chain.
	GoTo Action = "goto"
	// Log copies the packet to weir's log group (NFLOG). The packet continues with the next rule.
	Log Action = "log"
	// Masquerade translates the connection's source address to the node's address.
	Masquerade Action = "masquerade"
)

// Protocol is a protocol above IP, by its lower-case name or its number in decimal; empty for any protocol.
type Protocol string

// The protocols that a NetworkPolicyPort can have.
const (
	TCP  Protocol = "tcp"
	UDP  Protocol = "udp"
	SCTP Protocol = "sctp"
)

// The protocols of ICMP errors and of IPv6's neighbour discovery.
const (
	ICMP   Protocol = "icmp"
	ICMPv6 Protocol = "ipv6-icmp"
)

// PortRange is the ports from First to Last, both included.
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

// Equal reports whether the rules are the same, including their comments and policies.
func (r Rule) Equal(o Rule) bool {
	return r.Comment == o.Comment && slices.Equal(r.Policies, o.Policies) && r.SameAs(o)
}

// SameAs reports whether the rules have the same conditions and actions. Their comments and policies may
// differ.
func (r Rule) SameAs(o Rule) bool {
	return r.Src == o.Src && r.Dst == o.Dst && r.In == o.In && r.Out == o.Out && r.Proto == o.Proto &&
		r.InPort == o.InPort && slices.Equal(r.Sets, o.Sets) && slices.Equal(r.Ports, o.Ports) && r.Track == o.Track &&
		r.Shape == o.Shape && r.Action == o.Action && r.To == o.To && r.Audits == o.Audits
}

// Key returns a text for the rule's conditions and action. Two rules have equal keys only if SameAs is true for
// them.
func (r Rule) Key() string {
	var b strings.Builder
	r.encode(&b)
	return b.String()
}

// encode writes lengths before values: so different rules never give equal texts.
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

// Identity returns a name for these rules: a hash of the context and the rules, with 16 letters and digits (80
// bits).
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

// Hash returns a hash with 16 letters and digits (80 bits): short enough for names of sets and chains.
func Hash(text string) string {
	sum := sha256.Sum256([]byte(text))
	return base32.StdEncoding.WithPadding(base32.NoPadding).EncodeToString(sum[:10])
}
