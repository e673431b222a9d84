package ruleset

import (
	"net/netip"
	"slices"

	"go4.org/netipx"

	"github.com/weir-net/weir/conf"
)

// Packet is the first packet of a connection as the FORWARD hook sees it: after the destination was translated, before
// the source is.
type Packet struct {
	In, Out  string // interfaces; Out is empty for a packet to the node itself
	InPort   string // if In is a bridge of another plugin's, the port of it
	Src, Dst netip.Addr
	Proto    Protocol
	Port     uint16 // of the destination; 0 for protocols without ports
	// Translated says that Dst isn't where the sender sent the packet to.
	Translated bool
}

// Simulator says what a Ruleset does with packets; one of a family that it has nothing for passes. It walks the rules as the kernel does, so it can tell which of the
// connections that are open would not be let through if they were opened now.
type Simulator struct {
	chains map[conf.Family]map[string][]Rule
	sets   map[string]*netipx.IPSet
	ports  map[Element]map[string]bool // the sets with ports that hold it
	links  map[string][]Element        // of the sets with links
}

// NewSimulator prepares the ruleset for many packets.
func NewSimulator(r Ruleset) (*Simulator, error) {
	j := &Simulator{
		chains: map[conf.Family]map[string][]Rule{conf.IPv4: {}, conf.IPv6: {}}, sets: map[string]*netipx.IPSet{},
		ports: map[Element]map[string]bool{}, links: map[string][]Element{},
	}
	for _, c := range r.Chains {
		if c.Table == "mangle" {
			j.chains[c.Family][c.Name] = c.Rules
		}
	}
	for _, s := range r.Sets {
		if s.Kind == AddressLinks {
			for _, e := range s.Entries {
				j.links[s.Name] = append(j.links[s.Name], e.Element)
			}
			continue
		}
		var b netipx.IPSetBuilder
		for _, e := range s.Entries {
			if e.Port != 0 {
				if j.ports[e.Element] == nil {
					j.ports[e.Element] = map[string]bool{}
				}
				j.ports[e.Element][s.Name] = true
				continue
			}
			b.AddPrefix(e.Prefix)
		}
		if s.Kind == Ports {
			continue
		}
		set, err := b.IPSet()
		if err != nil {
			return nil, err
		}
		j.sets[s.Name] = set
	}
	return j, nil
}

// Allows says whether the packet passes.
func (s *Simulator) Allows(p Packet) bool {
	start := conf.ForwardChain
	if p.Out == "" {
		start = conf.InputChain
	}
	return s.walk(start, p) != Drop
}

// walk returns Drop, or Return where the chain lets the packet go on.
func (s *Simulator) walk(chain string, p Packet) Action {
	for _, r := range s.chains[conf.FamilyOf(p.Dst)][chain] {
		if !s.matches(r, p) {
			continue
		}
		switch r.Action {
		case Drop, Return:
			return r.Action
		case GoTo:
			return s.walk(r.To, p)
		case JumpTo:
			if s.walk(r.To, p) == Drop {
				return Drop
			}
		}
	}
	return Return
}

func (s *Simulator) matches(r Rule, p Packet) bool {
	// A first packet belongs to no connection yet.
	if r.Track != "" && (r.Track != Untranslated || p.Translated) {
		return false
	}
	if (r.In != "" && r.In != p.In) || (r.Out != "" && r.Out != p.Out) || (r.InPort != "" && r.InPort != p.InPort) {
		return false
	}
	if (r.Src.IsValid() && !r.Src.Contains(p.Src)) || (r.Dst.IsValid() && !r.Dst.Contains(p.Dst)) || !r.Program.matches(p) {
		return false
	}
	if r.Proto != "" && r.Proto != byName(p.Proto) {
		return false
	}
	for _, set := range r.Sets {
		if s.contains(set, p) == set.Not {
			return false
		}
	}
	if len(r.Ports) == 0 {
		return true
	}
	for _, ports := range r.Ports {
		if ports.First <= p.Port && p.Port <= ports.Last {
			return true
		}
	}
	return false
}

// byName is the protocol by its name, where a rule may speak of it.
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
	addr := p.Src
	switch m.Dir {
	case "src,src":
		return slices.ContainsFunc(s.links[m.Name], func(e Element) bool { return e.Link == p.In && e.Prefix.Contains(p.Src) })
	case "dst,dst":
		return s.ports[Element{Prefix: netip.PrefixFrom(p.Dst, p.Dst.BitLen()), Proto: p.Proto, Port: p.Port}][m.Name]
	case "dst":
		addr = p.Dst
	}
	if set := s.sets[m.Name]; set != nil {
		return set.Contains(addr)
	}
	return s.ports[Element{Port: p.Port}][m.Name] // it holds ports alone
}

// Link is where the packets of an endpoint come in: by which link, and by which port of that link if it is a bridge of
// another plugin's.
type Link struct{ In, Port string }
