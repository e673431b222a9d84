package policy

import (
	"net/netip"

	"go4.org/netipx"
)

// Packet is the first packet of a connection as the FORWARD hook sees it: after the destination was translated, before
// the source is.
type Packet struct {
	In, Out  string // interfaces; Out is empty for a packet to the node itself
	Src, Dst netip.Addr
	Proto    Protocol
	Port     uint16 // of the destination; 0 for protocols without ports
}

// Judge says what a Ruleset does with packets. It walks the rules as the kernel does, so it can tell which of the
// connections that are open would not be let through if they were opened now.
type Judge struct {
	chains map[string][]Rule
	sets   map[string]*netipx.IPSet
}

// NewJudge prepares the ruleset for many packets.
func NewJudge(r Ruleset) (*Judge, error) {
	j := &Judge{chains: map[string][]Rule{}, sets: map[string]*netipx.IPSet{}}
	for _, c := range r.Chains {
		if c.Table == "mangle" {
			j.chains[c.Name] = c.Rules
		}
	}
	for _, s := range r.Sets {
		var b netipx.IPSetBuilder
		for _, e := range s.Entries {
			b.AddPrefix(e.Prefix)
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
	for _, r := range j.chains[chain] {
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
	if (r.In != "" && r.In != p.In) || (r.Out != "" && r.Out != p.Out) || (r.Self && p.Src != p.Dst) {
		return false
	}
	if r.Proto != "" && r.Proto != p.Proto {
		return false
	}
	for _, s := range r.Sets {
		addr := p.Src
		if s.Dir == "dst" {
			addr = p.Dst
		}
		set := j.sets[s.Name]
		if (set != nil && set.Contains(addr)) == s.Not {
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
