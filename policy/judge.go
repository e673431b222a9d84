package policy

import (
	"net/netip"

	"go4.org/netipx"

	"github.com/weir-net/weir/conf"
)

// Packet is the first packet of a connection as the FORWARD hook sees it: after the destination was translated, before
// the source is.
type Packet struct {
	In, Out  string // interfaces; Out is empty for a packet to the node itself
	Src, Dst netip.Addr
	Proto    Protocol
	Port     uint16 // of the destination; 0 for protocols without ports
}

// Judge says what a Ruleset does with packets; one of a family that it has nothing for passes. It walks the rules as the kernel does, so it can tell which of the
// connections that are open would not be let through if they were opened now.
type Judge struct {
	chains map[conf.Family]map[string][]Rule
	sets   map[string]*netipx.IPSet
	ports  map[Element]map[string]bool // the sets with ports that hold it
}

// NewJudge prepares the ruleset for many packets.
func NewJudge(r Ruleset) (*Judge, error) {
	j := &Judge{chains: map[conf.Family]map[string][]Rule{conf.IPv4: {}, conf.IPv6: {}}, sets: map[string]*netipx.IPSet{}, ports: map[Element]map[string]bool{}}
	for _, c := range r.Chains {
		if c.Table == "mangle" {
			j.chains[c.Family][c.Name] = c.Rules
		}
	}
	for _, s := range r.Sets {
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
		if s.Type == BitmapPort {
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
func (j *Judge) Allows(p Packet) bool {
	start := forwardChain
	if p.Out == "" {
		start = inputChain
	}
	return j.walk(start, p) != Drop
}

// walk returns Drop, or Return where the chain lets the packet go on.
func (j *Judge) walk(chain string, p Packet) Target {
	for _, r := range j.chains[conf.FamilyOf(p.Dst)][chain] {
		if !j.matches(r, p) {
			continue
		}
		switch r.Target {
		case Drop, Return:
			return r.Target
		case GoTo:
			return j.walk(r.To, p)
		case JumpTo:
			if j.walk(r.To, p) == Drop {
				return Drop
			}
		}
	}
	return Return
}

func (j *Judge) matches(r Rule, p Packet) bool {
	// A first packet belongs to no connection yet.
	if r.Track != "" {
		return false
	}
	if (r.In != "" && r.In != p.In) || (r.Out != "" && r.Out != p.Out) || (r.Self != "" && p.Src != p.Dst) {
		return false
	}
	if r.Proto != "" && r.Proto != p.Proto {
		return false
	}
	for _, s := range r.Sets {
		if j.contains(s, p) == s.Not {
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

func (j *Judge) contains(s SetMatch, p Packet) bool {
	addr := p.Src
	switch s.Dir {
	case "dst,dst":
		return j.ports[Element{hostPrefix(p.Dst), p.Proto, p.Port}][s.Name]
	case "dst":
		addr = p.Dst
	}
	if set := j.sets[s.Name]; set != nil {
		return set.Contains(addr)
	}
	return j.ports[Element{Port: p.Port}][s.Name] // it holds ports alone
}
