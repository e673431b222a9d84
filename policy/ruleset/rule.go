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

// Rule says what becomes of the packets that match it. A packet matches if it matches every field that is given.
type Rule struct {
	Src    netip.Prefix
	Dst    netip.Prefix
	In     string // the link that the packet came in by
	Out    string // the link that it leaves by
	Proto  Protocol
	InPort string // the port of a bridge that the packet came in by
	Sets   []SetMatch
	Ports  []PortRange // of the destination, however many
	Track  Track
	Shape  Shape
	// Comment is what an operator reads beside the rule.
	Comment string
	Action  Action
	// To is the chain that Jump and GoTo lead to; for Log, the prefix of what is logged.
	To string
	// Policy is the namespace/name of the policy that allows packets by the rule; empty if the rule belongs to no policy.
	// Without such a rule the rest of the ruleset holds, and the packets that it would allow are dropped.
	Policy string
}

// SetMatch matches packets whose part By is in the set of that name, or isn't if Not is true.
type SetMatch struct {
	Name string
	By   Part
	Not  bool
}

// Part of a packet that is looked up in a set.
type Part string

// The parts. Each fits sets of certain kinds.
const (
	Source          Part = "source"               // Addresses, Networks
	Destination     Part = "destination"          // Addresses, Networks
	DestinationPort Part = "port"                 // Ports
	DestinationPair Part = "destination and port" // AddressPorts
	SourceLink      Part = "source and link"      // AddressLinks
)

// ports reports whether the match is by the destination's port, alone or with its address.
func (m SetMatch) ports() bool { return m.By == DestinationPort || m.By == DestinationPair }

// Track matches by what connection tracking knows of the packet. The first packet of a connection, which is the one
// that a Simulator knows, belongs to no connection.
type Track string

const (
	// Established packets belong to a connection that was allowed, and was not cut since.
	Established Track = "established"
	// Cut packets belong to a connection that a later change of policy forbids.
	Cut Track = "cut"
	// Related packets are about a connection, or belong to one that another one has announced.
	Related Track = "related"
	// Untranslated packets go to the address that their sender sent them to: no rule has translated their destination.
	Untranslated Track = "untranslated"
	// Midstream packets are TCP's that don't begin a connection. Packets that are not tracked (NOTRACK) are not among
	// them: the kernel checks each of those as if it were the first.
	Midstream Track = "midstream"
)

// Shape matches by what the packet's headers say together; each backend has its own way to look. A packet that is too
// short to tell doesn't match, so a rule with a shape must not drop packets.
type Shape string

const (
	// ToItself packets have the same address as source and destination.
	ToItself Shape = "to its own sender"
	// HonestICMP packets are ICMP packets that are no errors, and errors that answer a packet of their receiver to their
	// sender: the addresses of the packet inside are those of the packet outside, the other way round. Redirects are not
	// among them, nor are fragments behind the first. The errors are those that connection tracking relates to
	// connections: of ICMP, types 3 (destination unreachable), 4 (source quench), 11 (time exceeded) and 12 (parameter
	// problem); of ICMPv6, all types below 128 (RFC 4443, section 2.1). Behind an IPv6 extension header the type is not
	// looked for, and the packet doesn't match.
	HonestICMP Shape = "no ICMP error, or one about a packet to its sender"
	// NoICMPError packets are ICMP packets that are no errors. What HonestICMP says of fragments and extension headers
	// holds for them too.
	NoICMPError Shape = "no ICMP error"
	// Solicitation packets are how an IPv6 host asks for another on its link. A router that had passed one on would have
	// lowered its hop limit, and such a packet doesn't match (RFC 4861, section 7.1).
	Solicitation Shape = "neighbour solicitation"
	// Advertisement packets are the answers.
	Advertisement Shape = "neighbour advertisement"
)

// Action of a rule.
type Action string

// The actions.
const (
	Accept Action = "accept"
	Drop   Action = "drop"
	// Return ends the chain: the packet goes on behind the jump that led there, or behind the hook.
	Return Action = "return"
	// Jump has the packet go through the chain To, and come back if that returns.
	Jump Action = "jump"
	// GoTo has the packet go through the chain To, and not come back to this one.
	GoTo Action = "goto"
	// Log tells of the packet, which goes on with the next rule.
	Log Action = "log"
	// Masquerade has the connection leave the node under the node's address.
	Masquerade Action = "masquerade"
)

// Protocol above IP, by its lower-case name; empty for any.
type Protocol string

// The protocols a NetworkPolicyPort can name.
const (
	TCP  Protocol = "tcp"
	UDP  Protocol = "udp"
	SCTP Protocol = "sctp"
)

// The protocols of errors, and of IPv6's neighbour discovery.
const (
	ICMP   Protocol = "icmp"
	ICMPv6 Protocol = "ipv6-icmp"
)

// PortRange is first to last, both included.
type PortRange struct{ First, Last uint16 }

// String writes the range as "80" or "80-90".
func (p PortRange) String() string {
	if p.First == p.Last {
		return strconv.Itoa(int(p.First))
	}
	return fmt.Sprintf("%d-%d", p.First, p.Last)
}

// Equal reports whether the rules are the same, of the same policy too.
func (r Rule) Equal(o Rule) bool {
	return r.Comment == o.Comment && r.Policy == o.Policy && r.SameAs(o)
}

// SameAs reports whether the rules match and do the same, whatever their comments and policies.
func (r Rule) SameAs(o Rule) bool {
	return r.Src == o.Src && r.Dst == o.Dst && r.In == o.In && r.Out == o.Out && r.Proto == o.Proto &&
		r.InPort == o.InPort && slices.Equal(r.Sets, o.Sets) && slices.Equal(r.Ports, o.Ports) && r.Track == o.Track &&
		r.Shape == o.Shape && r.Action == o.Action && r.To == o.To
}

// Key returns a text that is equal for rules that are the SameAs each other, and different for all others.
func (r Rule) Key() string {
	var b strings.Builder
	r.encode(&b)
	return b.String()
}

// encode writes what the rule matches and does. Each value stands behind its length, so none runs into the next.
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
}

// Identity returns a name for these rules, a hash of their fields and comments: 16 letters and digits (80 bits).
// context tells apart chains with equal rules that are to be different chains.
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

// Hash shortens a text to 16 letters and digits (80 bits), as the names of sets and chains have room for.
func Hash(text string) string {
	sum := sha256.Sum256([]byte(text))
	return base32.StdEncoding.WithPadding(base32.NoPadding).EncodeToString(sum[:10])
}
