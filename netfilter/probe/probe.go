// Package probe finds out whether the kernel does what weir's rules need. A backend writes the rules of a Trial, and
// the Trial sends packets through them over the loopback link. So the Trial also notices rules that the kernel accepts,
// but that have no effect.
//
// Invariants:
//   - Other programs' rules never make a Need count as wrong: if packets are missing even without the trial's rules,
//     Wrong returns an error.
//   - A Trial changes nothing on the node. It only opens sockets, which Close closes.
//   - The rules of a Trial drop and translate only packets between the Trial's own sockets.
//   - Apart needs no special right: without the right to make a network namespace, it uses the node's own.
package probe

import (
	"errors"
	"net"
	"net/netip"
	"slices"
	"strings"

	"github.com/weir-net/weir/conf"
	"github.com/weir-net/weir/policy/ruleset"
)

// Trial is a chain of rules for one family, at the hook of packets to the node. For each Need, a rule accepts the
// Need's packet, or drops it if Need.drops is true. Rules at the end drop the packets of all Needs, so a packet that a
// rule accepts arrives only if that rule has an effect.
type Trial struct {
	Family conf.Family
	Sets   []ruleset.Set
	// Chains has the chains to which rules of Needs lead.
	Chains []ruleset.Chain
	Needs  []Need
	// Unused has rules that no packet meets. The kernel must accept them.
	Unused []Need

	sender    *net.UDPConn
	receivers []*net.UDPConn
	silent    error // why packets can't be sent, or nil
}

// Need is a feature that weir needs of the kernel, with a rule that tests the feature.
type Need struct {
	Name string
	Rule ruleset.Rule // matches the Need's packet
	// If answer is true, the Need's packet is the answer to another packet. If drops is true, the packet must not
	// arrive. If masquerades is true, the packet must arrive from another source, and Rule is at the hook of packets
	// that leave the node.
	answer, drops, masquerades bool
}

// These conditions are only for trials. They match packets that other programs' rules disturb. Untracked matches
// packets that have met a rule NOTRACK. Unestablished matches an answer that doesn't count as part of its connection:
// with zones of connection tracking, it counts as a new connection.
const (
	Untracked     ruleset.Track = "untracked"
	Unestablished ruleset.Track = "unestablished"
)

// EgressChain looks up the class of a packet's source. IngressChain looks up the class of a packet's destination.
// ClassChain is the chain of the trial's only class.
const (
	EgressChain  = conf.TrialChain + "-EG"
	IngressChain = conf.TrialChain + "-IN"
	ClassChain   = conf.TrialChain + "-CLASS"
)

var loopback = [len(conf.Families)]netip.Addr{
	conf.IPv4: netip.MustParseAddr("127.0.0.1"), conf.IPv6: netip.IPv6Loopback(),
}

// New returns a Trial for the network namespace of the present thread. If it can't open sockets there, the Trial sends
// no packets. The caller must close it.
func New(f conf.Family) *Trial {
	t := &Trial{Family: f}
	t.sender, t.silent = listen(f)
	addr := loopback[f]
	host := ruleset.Element{Prefix: netip.PrefixFrom(addr, addr.BitLen())}
	linked := host
	linked.Link = "lo"
	addresses, noAddresses := t.set("a", ruleset.Addresses, host), t.set("e", ruleset.Addresses)
	networks := t.set("n", ruleset.Networks, ruleset.Element{Prefix: netip.PrefixFrom(addr, 8).Masked()})
	noNetworks := t.set("o", ruleset.Networks)
	links, noLinks := t.set("l", ruleset.AddressLinks, linked), t.set("m", ruleset.AddressLinks)
	fromPod, elsewhere := in(addresses, ruleset.Source), outside(noNetworks, ruleset.Destination)

	own := ruleset.Rule{Src: host.Prefix, Dst: host.Prefix}
	t.add(Need{Name: "rules that drop packets", Rule: own, drops: true})
	t.add(Need{Name: "rules with ports"})
	t.add(Need{Name: "rules with links", Rule: ruleset.Rule{In: "lo"}})
	t.add(Need{Name: "rules with addresses", Rule: own})
	t.add(Need{Name: "rules with comments", Rule: ruleset.Rule{Comment: "weir: a trial"}})
	t.add(Need{Name: "rules that go to other chains", Rule: ruleset.Rule{Action: ruleset.GoTo, To: ClassChain}})
	t.add(Need{Name: "sets of addresses", Rule: fromPod})
	t.add(Need{Name: "rules that ask for addresses outside of a set", Rule: outside(noAddresses, ruleset.Source)})
	t.add(Need{Name: "sets of networks", Rule: in(networks, ruleset.Destination)})
	t.add(Need{Name: "rules that ask for addresses outside of networks", Rule: elsewhere})
	t.add(Need{Name: "sets of addresses with links", Rule: in(links, ruleset.SourceLink)})
	t.add(Need{Name: "rules that ask for links outside of a set", Rule: outside(noLinks, ruleset.SourceLink)})
	t.add(Need{Name: "rules that compare two addresses", Rule: ruleset.Rule{Shape: ruleset.ToItself}})
	t.add(Need{Name: "the address translation of connections", Rule: ruleset.Rule{Track: ruleset.Untranslated}})
	t.add(Need{Name: "connection tracking with labels", Rule: ruleset.Rule{Track: ruleset.Established}, answer: true})
	t.add(t.classes("classes of senders", EgressChain, ruleset.Source, host))
	t.add(t.classes("classes of receivers", IngressChain, ruleset.Destination, host))
	t.add(Need{Name: "rules that masquerade", masquerades: true, Rule: ruleset.Rule{
		Out: "lo", Src: own.Src, Dst: own.Dst, Sets: slices.Concat(fromPod.Sets, elsewhere.Sets),
		Action: ruleset.Masquerade,
	}})
	t.listen()
	// The next rules and sets contain ports to which packets are sent, so these ports must be known.
	i := t.add(Need{Name: "lists of ports"})
	j := t.add(Need{Name: "sets of ports"})
	k := t.add(Need{Name: "sets of addresses with ports"})
	t.listen()
	t.Needs[i].Rule.Ports = append(t.Needs[i].Rule.Ports, ruleset.PortRange{First: 1, Last: 2}, ruleset.PortRange{
		First: 7, Last: 7,
	})
	t.Needs[j].Rule.Sets = in(t.set("p", ruleset.Ports, ruleset.Element{Port: t.port(j)}), ruleset.DestinationPort).Sets
	pair := host
	pair.Proto, pair.Port = ruleset.UDP, t.port(k)
	t.Needs[k].Rule.Sets = in(t.set("b", ruleset.AddressPorts, pair), ruleset.DestinationPair).Sets
	t.unused()
	slices.SortFunc(t.Sets, func(a, b ruleset.Set) int { return strings.Compare(a.Name, b.Name) })
	return t
}

// set adds a set with the elements to the trial, and returns its name.
func (t *Trial) set(suffix string, kind ruleset.SetKind, elements ...ruleset.Element) string {
	s := ruleset.Set{
		Name: t.Family.Set(conf.TrialSet + "-" + suffix), Kind: kind, Family: t.Family, Role: ruleset.Checked,
	}
	if kind == ruleset.Ports {
		s.Family = conf.IPv4
	}
	var entries []ruleset.Entry
	for _, e := range elements {
		entries = append(entries, ruleset.Entry{Element: e, Comment: "weir: a trial"})
	}
	s.Entries = ruleset.EntriesOf(entries...)
	t.Sets = append(t.Sets, s)
	return s.Name
}

func in(name string, by ruleset.Part) ruleset.Rule {
	return ruleset.Rule{Sets: []ruleset.SetMatch{{Name: name, By: by}}}
}

func outside(name string, by ruleset.Part) ruleset.Rule {
	r := in(name, by)
	r.Sets[0].Not = true
	return r
}

var suffixes = map[string]string{EgressChain: "eg", IngressChain: "in"}

// classes returns a Need for the look-up of an address's class. Its rule leads to a chain with this look-up. The chain
// of the class accepts the packet.
func (t *Trial) classes(name, chain string, by ruleset.Part, pod ruleset.Element) Need {
	toClass := in(t.set(suffixes[chain], ruleset.Addresses, pod), by)
	toClass.Action, toClass.To = ruleset.GoTo, ClassChain
	s := &t.Sets[len(t.Sets)-1]
	s.Role, s.Dispatch = ruleset.Members, chain
	t.Chains = append(t.Chains, ruleset.Chain{
		Family: t.Family, Name: chain, Rules: []ruleset.Rule{toClass, {Action: ruleset.Drop}},
	})
	if len(t.Chains) == 1 {
		t.Chains = append(t.Chains, ruleset.Chain{
			Family: t.Family, Name: ClassChain, Rules: []ruleset.Rule{{Action: ruleset.Accept}},
		})
	}
	own := pod.Prefix
	return Need{Name: name, Rule: ruleset.Rule{Src: own, Dst: own, Action: ruleset.Jump, To: chain}}
}

// unused adds rules that no packet of the trial can test.
func (t *Trial) unused() {
	for _, track := range []ruleset.Track{ruleset.Related, ruleset.Cut, ruleset.First} {
		t.Unused = append(t.Unused, Need{
			Name: "rules with the state " + string(track) + " of connections",
			Rule: ruleset.Rule{Track: track},
		})
	}
	t.Unused = append(t.Unused, Need{
		Name: "rules with TCP's flags",
		Rule: ruleset.Rule{Proto: ruleset.TCP, Track: ruleset.Midstream},
	}, Need{
		Name: "rules with TCP's ports",
		Rule: ruleset.Rule{Proto: ruleset.TCP, Ports: []ruleset.PortRange{{First: 1, Last: 2}}},
	})
}

func (t *Trial) add(n Need) int {
	t.Needs = append(t.Needs, n)
	return len(t.Needs) - 1
}

// listen opens a socket for each Need that has none yet, and puts the socket's port into the Need's rule.
func (t *Trial) listen() {
	for i := len(t.receivers); i < len(t.Needs); i++ {
		var r *net.UDPConn
		if t.silent == nil {
			r, t.silent = listen(t.Family)
		}
		t.receivers = append(t.receivers, r)
		n := &t.Needs[i]
		n.Rule.Proto = ruleset.UDP
		switch {
		case n.drops:
			n.Rule.Action = ruleset.Drop
		case n.Rule.Action == "":
			n.Rule.Action = ruleset.Return
		}
		port := t.port(i)
		if n.answer {
			port = t.senderPort()
		}
		n.Rule.Ports = []ruleset.PortRange{{First: port, Last: port}}
		switch {
		case t.silent == nil:
		case n.masquerades:
			n.Rule.Out = NoLink
		default:
			n.Rule.In = NoLink
		}
	}
}

// NoLink is the name of a link that doesn't exist, so no packet matches a rule with NoLink. If the trial has no
// sockets, its rules have NoLink, because another program may use the rules' ports.
const NoLink = "weir-none"

func (t *Trial) senderPort() uint16 {
	if t.silent != nil {
		return 1
	}
	return portOf(t.sender)
}

func (t *Trial) port(need int) uint16 {
	if t.silent != nil {
		return uint16(2 + need)
	}
	return portOf(t.receivers[need])
}

func (t *Trial) Close() error {
	var errs []error
	for _, c := range append(t.receivers, t.sender) {
		if c != nil {
			errs = append(errs, c.Close())
		}
	}
	return errors.Join(errs...)
}

// Rules returns the rules of the trial's chain: the rules of the Needs, rules that accept packets that other programs
// have disturbed, and rules that drop the packets of all Needs. Each rule that can drop a packet has the loopback
// address as its source and destination, because another program may use one of the ports under another address.
func (t *Trial) Rules() (all []ruleset.Rule) {
	all = t.Examples()
	own := netip.PrefixFrom(loopback[t.Family], loopback[t.Family].BitLen())
	for _, n := range t.Needs {
		r := ruleset.Rule{Proto: ruleset.UDP, Src: own, Dst: own, Ports: n.Rule.Ports[:1], Action: ruleset.Drop}
		if t.silent != nil {
			r.In = NoLink
		}
		if n.answer {
			pass := r
			pass.Track, pass.Action = Unestablished, ruleset.Return
			all = append(all, pass)
		}
		if n.masquerades { // untracked packets are dropped, because the kernel can't masquerade them
			r.Track = Untracked
		}
		all = append(all, r)
	}
	return all
}

// Masquerades returns the rules at the hook of packets that leave the node.
func (t *Trial) Masquerades() (all []ruleset.Rule) {
	for _, n := range t.Needs {
		if n.masquerades {
			all = append(all, n.Rule)
		}
	}
	return all
}

// Examples returns the rules of Needs and of Unused, except those that masquerade. Rules of Unused get the name of a
// link that doesn't exist, so that no packet matches them.
func (t *Trial) Examples() (all []ruleset.Rule) {
	for _, n := range t.Needs {
		if !n.masquerades {
			all = append(all, n.Rule)
		}
	}
	never := ruleset.Rule{Proto: ruleset.UDP, Src: netip.PrefixFrom(loopback[t.Family], loopback[t.Family].BitLen())}
	for _, n := range t.Unused {
		r := n.Rule
		r.Src, r.In = never.Src, NoLink
		if r.Action == "" {
			r.Action = ruleset.Return
		}
		all = append(all, r)
	}
	return all
}
