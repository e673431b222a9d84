package ruleset

import (
	"net/netip"
	"slices"

	"go4.org/netipx"

	"github.com/weir-net/weir/conf"
)

// Packet is the first packet of a connection at the hooks that check packets. There, the packet already has the
// destination to which other programs' rules translate it (Translated), but still its own source.
type Packet struct {
	In, Out  string // names of links; Out is empty for a packet to the node itself
	InPort   string // if In is another plugin's bridge, the port of this bridge by which the packet came in
	Src, Dst netip.Addr
	Proto    Protocol // a name or a number
	Port     uint16   // of the destination; 0 for protocols without ports
	// Translated is true if a rule has translated the packet's destination.
	Translated bool
}

// Link is the link by which an endpoint's packets come in. If In is another plugin's bridge, Port is the port of this
// bridge.
type Link struct{ In, Port string }

// Simulator runs packets through a ruleset in memory, with the same results as the kernel. If there are no chains for
// the packet's family, the packet passes.
type Simulator struct {
	chains map[conf.Family]map[string]Chain
	hooks  map[conf.Family]map[Hook]Chain
	sets   map[string]*netipx.IPSet
	ports  map[Element]map[string]bool // names of the sets that contain each element with a port
	links  map[string][]Element        // elements of each set with links
}

// NewSimulator returns a Simulator for the ruleset. It returns an error if a set has an invalid entry.
func NewSimulator(r Ruleset) (*Simulator, error) {
	s := &Simulator{
		chains: map[conf.Family]map[string]Chain{conf.IPv4: {}, conf.IPv6: {}},
		hooks:  map[conf.Family]map[Hook]Chain{conf.IPv4: {}, conf.IPv6: {}},
		sets:   map[string]*netipx.IPSet{}, ports: map[Element]map[string]bool{}, links: map[string][]Element{},
	}
	for _, c := range r.Chains {
		s.chains[c.Family][c.Name] = c
		if c.Hook != "" {
			s.hooks[c.Family][c.Hook] = c
		}
	}
	for _, set := range r.Sets {
		if err := s.add(set); err != nil {
			return nil, err
		}
	}
	return s, nil
}

func (s *Simulator) add(set Set) error {
	var addresses netipx.IPSetBuilder
	for e := range set.Entries.All() {
		switch set.Kind {
		case AddressLinks:
			s.links[set.Name] = append(s.links[set.Name], e.Element)
		case AddressPorts, Ports:
			if s.ports[e.Element] == nil {
				s.ports[e.Element] = map[string]bool{}
			}
			s.ports[e.Element][set.Name] = true
		default:
			addresses.AddPrefix(e.Prefix)
		}
	}
	var err error
	s.sets[set.Name], err = addresses.IPSet()
	return err
}

// Allows reports whether the packet passes the hook CheckForwarded, or CheckToNode if the packet has no Out.
func (s *Simulator) Allows(p Packet) bool { return s.run(p, nil) }

// Audit reports whether the packet passes, and in which directions audited policies log it.
func (s *Simulator) Audit(p Packet) (passes bool, logged []Direction) {
	passes = s.run(p, func(_ Chain, r Rule) {
		if r.Audits != "" {
			logged = append(logged, r.Audits)
		}
	})
	return passes, logged
}

// Step is a rule that a packet has matched in a chain.
type Step struct {
	Chain string
	Rule  Rule
}

// Trace runs the packet through the ruleset like a Simulator. It returns whether the packet passes, and the matching
// rules in order.
func (r Ruleset) Trace(p Packet) (passes bool, steps []Step, err error) {
	s, err := NewSimulator(r)
	if err != nil {
		return false, nil, err
	}
	passes = s.run(p, func(c Chain, r Rule) { steps = append(steps, Step{c.Name, r}) })
	return passes, steps, nil
}

// run reports whether the packet passes its hook. If the parameter "matched" isn't nil, run calls it for each rule
// that matches the packet.
func (s *Simulator) run(p Packet, matched func(Chain, Rule)) bool {
	hook := CheckForwarded
	if p.Out == "" {
		hook = CheckToNode
	}
	return s.walk(s.hooks[conf.FamilyOf(p.Dst)][hook], p, matched) != Drop
}

func (s *Simulator) walk(c Chain, p Packet, matched func(Chain, Rule)) Action {
	chains := s.chains[conf.FamilyOf(p.Dst)]
	for _, r := range c.Rules {
		if !s.matches(r, p) {
			continue
		}
		if matched != nil {
			matched(c, r)
		}
		switch r.Action {
		case Drop, Return:
			return r.Action
		case GoTo:
			return s.walk(chains[r.To], p, matched)
		case Jump:
			if s.walk(chains[r.To], p, matched) == Drop {
				return Drop
			}
		}
	}
	return Return
}

func (s *Simulator) matches(r Rule, p Packet) bool {
	is := func(want, have string) bool { return want == "" || want == have }
	within := func(want netip.Prefix, have netip.Addr) bool { return !want.IsValid() || want.Contains(have) }
	switch {
	case !r.Track.matches(p):
		return false
	case !is(r.In, p.In), !is(r.Out, p.Out), !is(r.InPort, p.InPort), !is(string(r.Proto), string(byName(p.Proto))):
		return false
	case !within(r.Src, p.Src), !within(r.Dst, p.Dst), !r.Shape.matches(p):
		return false
	case slices.ContainsFunc(r.Sets, func(m SetMatch) bool { return s.contains(m, p) == m.Not }):
		return false
	}
	in := func(ports PortRange) bool { return ports.First <= p.Port && p.Port <= ports.Last }
	return len(r.Ports) == 0 || slices.ContainsFunc(r.Ports, in)
}

func (t Track) matches(p Packet) bool {
	return t == "" || t == First || t == Untranslated && !p.Translated
}

// matches reports whether the packet has the shape. A Packet is the first packet of a connection, so it is never an
// ICMP error or neighbour discovery.
func (s Shape) matches(p Packet) bool {
	switch s {
	case "", HonestICMP, NoICMPError:
		return true
	case ToItself:
		return p.Src == p.Dst
	}
	return false
}

func byName(p Protocol) Protocol {
	switch p {
	case "1":
		return ICMP
	case "58":
		return ICMPv6
	}
	return p
}

func (s *Simulator) contains(m SetMatch, p Packet) bool {
	switch m.By {
	case SourceLink:
		here := func(e Element) bool { return e.Link == p.In && e.Prefix.Contains(p.Src) }
		return slices.ContainsFunc(s.links[m.Name], here)
	case SourcePair:
		return s.ports[Element{Prefix: netip.PrefixFrom(p.Src, p.Src.BitLen()), Proto: p.Proto, Port: p.Port}][m.Name]
	case DestinationPair:
		return s.ports[Element{Prefix: netip.PrefixFrom(p.Dst, p.Dst.BitLen()), Proto: p.Proto, Port: p.Port}][m.Name]
	case DestinationPort:
		return s.ports[Element{Port: p.Port}][m.Name]
	}
	addr := p.Src
	if m.By == Destination {
		addr = p.Dst
	}
	set := s.sets[m.Name]
	return set != nil && set.Contains(addr)
}
