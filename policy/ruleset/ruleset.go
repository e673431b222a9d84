package ruleset

import (
	"cmp"
	"fmt"
	"io"
	"net/netip"
	"slices"
	"strconv"
	"strings"

	"github.com/weir-net/weir/conf"
)

// Ruleset is what should be in the kernel: sets, weir's own chains, and the jumps to them from the built-in chains.
// Sets and chains are ordered by name, so equal states give equal rulesets.
type Ruleset struct {
	Sets     []Set
	Chains   []Chain
	Jumps    []Jump
	Classes  []Class
	Problems []Problem
}

// SetKind is the ipset type of a set.
type SetKind string

// The types that weir uses.
const (
	Addresses    SetKind = "hash:ip"
	Networks     SetKind = "hash:net"
	AddressPorts SetKind = "hash:ip,port"
	Ports        SetKind = "bitmap:port"
	// AddressLinks sets hold addresses and networks, each with the link that its packets come in by.
	AddressLinks SetKind = "hash:net,iface"
)

// SetRole says in which order a set and the rules that use it may change without opening anything on the way.
type SetRole int

const (
	// Peers are let through by some rule: what leaves is taken out before the rules change, what comes is put in
	// after.
	Peers SetRole = iota
	// Checked are subject to the rules at all: what comes is put in before the rules change, what leaves is taken out
	// after.
	Checked
	// Attached are judged, and the addresses of this node's attachments. One that comes has no connections, and those of
	// one that has left are forgotten before anybody else has the address (conntrack.Delete).
	Attached
	// Members are dispatched to a class by the first rule of Set.Dispatch that finds them in its set. Those that change
	// class do so in one step, or are in none in between.
	Members
)

// Set is an ipset.
type Set struct {
	Name   string
	Kind   SetKind
	Family conf.Family // of all its entries
	Role   SetRole
	// Dispatch is the chain that goes by the set, if its role is Members.
	Dispatch string
	// Opens says that the set, and each entry, is there to let something through: what it lacks is closed. So the rest
	// of the ruleset holds if the kernel refuses it.
	Opens   bool
	Entries []Entry // ordered
}

// Entry of a set, with the words that "ipset list" shows beside it.
type Entry struct {
	Element
	Comment string
}

// Element is what a set holds: an address or network; in a hash:ip,port set an address with a port; in a hash:net,iface
// set a network with a link; in a bitmap:port set a port alone.
type Element struct {
	Prefix netip.Prefix
	Proto  Protocol
	Port   uint16
	Link   string
}

// String is as ipset(8) writes it.
func (e Element) String() string {
	switch {
	case !e.Prefix.IsValid():
		return strconv.Itoa(int(e.Port))
	case e.Link != "":
		return fmt.Sprintf("%s,%s", Element{Prefix: e.Prefix}, e.Link)
	case e.Port != 0:
		return fmt.Sprintf("%s,%s:%d", e.Prefix.Addr(), e.Proto, e.Port)
	case e.Prefix.IsSingleIP():
		return e.Prefix.Addr().String()
	}
	return e.Prefix.String()
}

// Compare orders elements by address, size and port.
func (e Element) Compare(o Element) int {
	return cmp.Or(e.Prefix.Addr().Compare(o.Prefix.Addr()), cmp.Compare(e.Prefix.Bits(), o.Prefix.Bits()),
		cmp.Compare(e.Proto, o.Proto), cmp.Compare(e.Port, o.Port), cmp.Compare(e.Link, o.Link))
}

// Chain is one of weir's chains in a table. Each family has tables of its own.
type Chain struct {
	Family      conf.Family
	Table, Name string
	Rules       []Rule
}

// Jump is a rule in a built-in chain. First: nothing may come before it. Otherwise it stands last, or ahead of the rule
// at which the chain refuses all that has come so far.
type Jump struct {
	Family       conf.Family
	Table, Chain string
	First        bool
	Rule         Rule
}

// Rule is an iptables rule, as far as weir needs them. A packet matches if all that is given does.
type Rule struct {
	Src     netip.Prefix // -s
	Dst     netip.Prefix // -d
	In      string       // -i
	Out     string       // -o
	Proto   Protocol
	InPort  string // the port of a bridge that a packet came in by (physdev)
	Sets    []SetMatch
	Ports   []PortRange // of the destination
	Track   Track
	Program Program
	Comment string
	Action  Action
	// To is the chain that JUMP and GOTO go to; for NFLOG, the prefix of what is logged.
	To string
	// Policy is the namespace/name of the policy that lets through by the rule; empty if the rule is of none. Without
	// such a rule the rest of the ruleset holds, and what it would let through is closed.
	Policy string
}

// SetMatch asks whether the packet's source (src), destination (dst), destination with its port (dst,dst), or source
// with the link that the packet came in by (src,src) is in the set. Where the set holds ports alone, dst is the
// destination's port.
type SetMatch struct {
	Name string
	Dir  string
	Not  bool
}

// Track asks what connection tracking knows of the packet. The first packet of a connection, which is what Simulator knows,
// belongs to none.
type Track string

const (
	// Established packets belong to a connection that was let through, and was not cut since.
	Established Track = "established"
	// Cut packets belong to a connection that a policy has forbidden after it was opened.
	Cut Track = "cut"
	// Related packets are about a connection, or belong to one that another one has announced.
	Related Track = "related"
	// Untranslated packets go to the address that their sender sent them to: no rule has translated their destination.
	Untranslated Track = "untranslated"
	// Midstream packets are TCP's that don't begin a connection. Packets that are not tracked (NOTRACK) are not among
	// them: each of those is judged as if it were the first.
	Midstream Track = "midstream"
	// Solicitation packets are how an IPv6 host asks for another on its link. They belong to no connection, and a router
	// that had passed one on would have lowered its hop limit (RFC 4861, section 7.1).
	Solicitation Track = "solicitation"
	// Advertisement packets are the answers.
	Advertisement Track = "advertisement"
)

// LogGroup is the netlink log group (NFLOG) that dropped packets are copied to.
const LogGroup = 88

// Action of a rule.
type Action string

// The targets weir uses.
const (
	Accept     Action = "ACCEPT"
	Drop       Action = "DROP"
	Return     Action = "RETURN"
	JumpTo     Action = "JUMP"
	GoTo       Action = "GOTO"
	Log        Action = "NFLOG"
	Masquerade Action = "MASQUERADE"
)

// Protocol above IP, in the kernel's lower-case name; empty for any.
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

// String is as iptables writes it.
func (p PortRange) String() string {
	if p.First == p.Last {
		return strconv.Itoa(int(p.First))
	}
	return fmt.Sprintf("%d:%d", p.First, p.Last)
}

// String is the rule as iptables-save prints it, without "-A CHAIN": what is in the kernel can be compared as text. Each
// change of a pod has all rules printed, so it does without package fmt, which takes several times as long.
func (r Rule) String() string {
	var b strings.Builder
	b.Grow(128)
	add := func(words ...string) {
		if b.Len() > 0 {
			b.WriteByte(' ')
		}
		for _, w := range words {
			b.WriteString(w)
		}
	}
	if r.Src.IsValid() {
		add("-s ", r.Src.String())
	}
	if r.Dst.IsValid() {
		add("-d ", r.Dst.String())
	}
	if r.In != "" {
		add("-i ", r.In)
	}
	if r.Out != "" {
		add("-o ", r.Out)
	}
	if r.Proto != "" {
		add("-p ", string(r.Proto))
	}
	switch r.Track {
	case Established:
		add(`-m conntrack --ctstate ESTABLISHED -m connlabel ! --label "`, strconv.Itoa(conf.CutLabel), `"`)
	case Cut:
		add(`-m connlabel --label "`, strconv.Itoa(conf.CutLabel), `"`)
	case Related:
		add("-m conntrack --ctstate RELATED")
	case Untranslated:
		add("-m conntrack ! --ctstate DNAT")
	case Midstream:
		add("-m tcp ! --tcp-flags FIN,SYN,RST,ACK SYN -m conntrack ! --ctstate UNTRACKED")
	case Solicitation:
		add("-m icmp6 --icmpv6-type 135 -m hl --hl-eq 255")
	case Advertisement:
		add("-m icmp6 --icmpv6-type 136 -m hl --hl-eq 255")
	}
	if r.InPort != "" {
		add("-m physdev --physdev-in ", r.InPort)
	}
	if r.Program != "" {
		add(`-m bpf --bytecode "`, string(r.Program), `"`)
	}
	for _, s := range r.Sets {
		not := ""
		if s.Not {
			not = "! "
		}
		add("-m set ", not, "--match-set ", s.Name, " ", s.Dir)
	}
	switch len(r.Ports) {
	case 0:
	case 1:
		add("-m ", string(r.Proto), " --dport ", r.Ports[0].String())
	default:
		list := make([]string, len(r.Ports))
		for i, p := range r.Ports {
			list[i] = p.String()
		}
		add("-m multiport --dports ", strings.Join(list, ","))
	}
	if r.Comment != "" {
		add(`-m comment --comment "`, conf.Comment(r.Comment), `"`) // it holds a space, so iptables-save quotes it
	}
	switch r.Action {
	case JumpTo:
		add("-j ", r.To)
	case GoTo:
		add("-g ", r.To)
	case Log:
		add(`-j NFLOG --nflog-prefix "`, r.To, `" --nflog-group `, strconv.Itoa(LogGroup))
	case Masquerade:
		add("-j MASQUERADE --random-fully")
	default:
		add("-j ", string(r.Action))
	}
	return b.String()
}

// Equal says whether the rules are the same, of the same policy too.
func (r Rule) Equal(o Rule) bool {
	return r.Src == o.Src && r.Dst == o.Dst && r.In == o.In && r.Out == o.Out && r.Proto == o.Proto && r.InPort == o.InPort &&
		slices.Equal(r.Sets, o.Sets) && slices.Equal(r.Ports, o.Ports) && r.Track == o.Track && r.Program == o.Program &&
		r.Comment == o.Comment && r.Action == o.Action && r.To == o.To && r.Policy == o.Policy
}

// Write prints the ruleset as a person would list it: sets, then chains, IPv6's behind IPv4's. The golden files hold this
// text.
func (r Ruleset) Write(w io.Writer) error {
	var b strings.Builder
	six := func(f conf.Family, words string) string { return map[conf.Family]string{conf.IPv6: words}[f] }
	for _, s := range r.Sets {
		fmt.Fprintf(&b, "set %s %s%s\n", s.Name, s.Kind, six(s.Family, " family inet6"))
		for _, e := range s.Entries {
			fmt.Fprintf(&b, "  %s # %s\n", e.Element, e.Comment)
		}
	}
	for _, c := range r.Chains {
		fmt.Fprintf(&b, "%schain %s %s\n", six(c.Family, "IPv6 "), c.Table, c.Name)
		for _, rule := range c.Rules {
			fmt.Fprintf(&b, "  %s\n", rule)
		}
	}
	for _, j := range r.Jumps {
		where := map[bool]string{true: "first", false: "last"}[j.First]
		fmt.Fprintf(&b, "%s%s in %s %s\n  %s\n", six(j.Family, "IPv6 "), where, j.Table, j.Chain, j.Rule)
	}
	for _, p := range r.Problems {
		fmt.Fprintf(&b, "problem %s\n", p)
	}
	_, err := io.WriteString(w, b.String())
	return err
}

// Has says whether there is anything for the family's packets.
func (r Ruleset) Has(f conf.Family) bool {
	return slices.ContainsFunc(r.Chains, func(c Chain) bool { return c.Family == f })
}

// Chain returns the chain of that family, table and name.
func (r Ruleset) Chain(f conf.Family, table, name string) (Chain, bool) {
	i := slices.IndexFunc(r.Chains, func(c Chain) bool { return c.Family == f && c.Table == table && c.Name == name })
	if i < 0 {
		return Chain{}, false
	}
	return r.Chains[i], true
}

// Order puts the entries of a set into order. Of several with one element the first one stays, by the order of their words.
func Order(entries []Entry) []Entry {
	slices.SortFunc(entries, func(a, b Entry) int {
		return cmp.Or(a.Compare(b.Element), cmp.Compare(a.Comment, b.Comment))
	})
	return slices.CompactFunc(entries, func(a, b Entry) bool { return a.Element == b.Element })
}

// MatchesAs says whether both rules do the same, whatever their comments say.
func (r Rule) MatchesAs(o Rule) bool { return r.Matched() == o.Matched() }

// Direction of traffic, as seen from the pod that a policy selects.
type Direction string

// The directions of networking.k8s.io/v1 policyTypes.
const (
	Ingress Direction = "ingress"
	Egress  Direction = "egress"
)

// Problem is an object, or part of one, that can't be enforced as written. What it would have opened stays closed.
type Problem struct {
	Object  string `json:"object"` // kind namespace/name
	Field   string `json:"field"`
	Message string `json:"message"`
}

// String is one line for a log.
func (p Problem) String() string { return p.Object + ": " + p.Field + ": " + p.Message }

// Class is the pods of this node that the same policies isolate in one direction. There is one for each family that
// they have addresses of.
type Class struct {
	Direction Direction `json:"direction"`
	Policies  []string  `json:"policies"` // none: the open class
	Set       string    `json:"set"`
	Chain     string    `json:"chain,omitempty"`
	Pods      []string  `json:"pods"`
}
