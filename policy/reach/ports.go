package reach

import (
	"encoding/binary"
	"fmt"
	"slices"
	"strings"

	networkingv1 "k8s.io/api/networking/v1"
	"k8s.io/apimachinery/pkg/util/intstr"

	"github.com/weir-net/weir/policy"
	"github.com/weir-net/weir/policy/ruleset"
)

// Ports is a set of destination ports.
type Ports struct {
	TCP  []ruleset.PortRange `json:"tcp,omitempty"`
	UDP  []ruleset.PortRange `json:"udp,omitempty"`
	SCTP []ruleset.PortRange `json:"sctp,omitempty"`
	// Other is true if all protocols without ports, such as ICMP, are in the set.
	Other bool `json:"other,omitempty"`
}

func (p Ports) of(proto ruleset.Protocol) []ruleset.PortRange {
	switch proto {
	case ruleset.TCP:
		return p.TCP
	case ruleset.UDP:
		return p.UDP
	case ruleset.SCTP:
		return p.SCTP
	}
	return nil
}

// Contains reports whether the set has the port. If the protocol has no ports, the port doesn't matter.
func (p Ports) Contains(proto ruleset.Protocol, port uint16) bool {
	if !slices.Contains(protocols, proto) {
		return p.Other
	}
	return slices.ContainsFunc(p.of(proto), func(r ruleset.PortRange) bool { return r.First <= port && port <= r.Last })
}

func (p Ports) Empty() bool { return len(p.TCP)+len(p.UDP)+len(p.SCTP) == 0 && !p.Other }

var protocols = []ruleset.Protocol{ruleset.TCP, ruleset.UDP, ruleset.SCTP}

// Every is the set of all ports of all protocols.
var Every = Ports{TCP: every, UDP: every, SCTP: every, Other: true}

var every = []ruleset.PortRange{{First: 1, Last: 65535}}

// String returns the set in words, such as "TCP 80, 8000-8080; UDP 53", "everything", "nothing" or "everything but TCP
// 25".
func (p Ports) String() string {
	if p.Empty() {
		return "nothing"
	}
	rest := p.complement()
	if rest.Empty() {
		return "everything"
	}
	if p.Other && rest.ranges() <= p.ranges() {
		return "everything but " + rest.words()
	}
	return p.words()
}

func (p Ports) ranges() int { return len(p.TCP) + len(p.UDP) + len(p.SCTP) }

const maxRanges = 16

func (p Ports) words() string {
	var parts []string
	for _, proto := range protocols {
		ranges := p.of(proto)
		if len(ranges) == 0 {
			continue
		}
		name := strings.ToUpper(string(proto))
		if slices.Equal(ranges, every) {
			parts = append(parts, "all "+name)
			continue
		}
		var words []string
		for _, r := range ranges[:min(len(ranges), maxRanges)] {
			words = append(words, r.String())
		}
		if more := len(ranges) - maxRanges; more > 0 {
			words = append(words, fmt.Sprintf("and %d more", more))
		}
		parts = append(parts, name+" "+strings.Join(words, ", "))
	}
	if p.Other {
		parts = append(parts, "other protocols")
	}
	return strings.Join(parts, "; ")
}

func (p Ports) complement() Ports {
	gaps := func(ranges []ruleset.PortRange) (all []ruleset.PortRange) {
		next := 1
		for _, r := range ranges {
			if int(r.First) > next {
				all = append(all, ruleset.PortRange{First: uint16(next), Last: r.First - 1})
			}
			next = int(r.Last) + 1
		}
		if next <= 65535 {
			all = append(all, ruleset.PortRange{First: uint16(next), Last: 65535})
		}
		return all
	}
	return Ports{TCP: gaps(p.TCP), UDP: gaps(p.UDP), SCTP: gaps(p.SCTP), Other: !p.Other}
}

type atom struct {
	proto ruleset.Protocol
	ruleset.PortRange
}

// noPorts stands for all protocols without ports, because a rule matches all of them or none. 1 is the number of ICMP.
const noPorts ruleset.Protocol = "1"

type space struct {
	atoms []atom
	sets  []bits
	by    map[string]int
}

func newSpace(states []policy.State) *space {
	starts := map[ruleset.Protocol]map[int]bool{}
	for _, proto := range protocols {
		starts[proto] = map[int]bool{1: true}
	}
	cut := func(proto ruleset.Protocol, first, last int) {
		if starts[proto] == nil || first > last {
			return
		}
		for _, n := range []int{first, last + 1} {
			if n >= 1 && n <= 65535 {
				starts[proto][n] = true
			}
		}
	}
	names := portNames(states)
	for _, s := range states {
		for _, np := range s.Policies {
			for _, p := range portsOf(np) {
				if p.Port == nil || p.Port.Type == intstr.String {
					continue
				}
				last := p.Port.IntVal
				if p.EndPort != nil {
					last = *p.EndPort
				}
				cut(protocolOf(p), int(p.Port.IntVal), int(last))
			}
		}
		for i := range s.Pods {
			for _, port := range s.Pods[i].Ports {
				if names[port.Name] {
					cut(port.Proto, int(port.Number), int(port.Number))
				}
			}
		}
		for i := range s.Workloads {
			for _, port := range s.Workloads[i].Pod.Ports {
				if names[port.Name] {
					cut(port.Proto, int(port.Number), int(port.Number))
				}
			}
		}
	}
	sp := &space{by: map[string]int{}}
	for _, proto := range protocols {
		var sorted []int
		for n := range starts[proto] {
			sorted = append(sorted, n)
		}
		slices.Sort(sorted)
		for i, first := range sorted {
			last := 65535
			if i+1 < len(sorted) {
				last = sorted[i+1] - 1
			}
			sp.atoms = append(sp.atoms, atom{proto, ruleset.PortRange{First: uint16(first), Last: uint16(last)}})
		}
	}
	sp.atoms = append(sp.atoms, atom{proto: noPorts})
	sp.number(sp.none())
	return sp
}

func portsOf(np *networkingv1.NetworkPolicy) (all []networkingv1.NetworkPolicyPort) {
	for _, r := range np.Spec.Ingress {
		all = append(all, r.Ports...)
	}
	for _, r := range np.Spec.Egress {
		all = append(all, r.Ports...)
	}
	return all
}

func protocolOf(p networkingv1.NetworkPolicyPort) ruleset.Protocol {
	if p.Protocol == nil {
		return ruleset.TCP
	}
	return ruleset.Protocol(strings.ToLower(string(*p.Protocol)))
}

func portNames(states []policy.State) map[string]bool {
	names := map[string]bool{}
	for _, s := range states {
		for _, np := range s.Policies {
			for _, p := range portsOf(np) {
				if p.Port != nil && p.Port.Type == intstr.String {
					names[p.Port.StrVal] = true
				}
			}
		}
	}
	return names
}

type bits []uint64

func newBits(n int) bits      { return make(bits, (n+63)/64) }
func (b bits) set(i int)      { b[i/64] |= 1 << (i % 64) }
func (b bits) has(i int) bool { return b[i/64]&(1<<(i%64)) != 0 }

func (b bits) or(o bits) {
	for i := range b {
		b[i] |= o[i]
	}
}

func (b bits) and(o bits) {
	for i := range b {
		b[i] &= o[i]
	}
}

func (b bits) minus(o bits) {
	for i := range b {
		b[i] &^= o[i]
	}
}

func (b bits) key() string {
	text := make([]byte, 0, 8*len(b))
	for _, w := range b {
		text = binary.LittleEndian.AppendUint64(text, w)
	}
	return string(text)
}

func (b bits) all() (list []int) {
	for i := range 64 * len(b) {
		if b.has(i) {
			list = append(list, i)
		}
	}
	return list
}

func (sp *space) none() bits { return newBits(len(sp.atoms)) }

func (sp *space) full() bits {
	b := sp.none()
	for i := range sp.atoms {
		b.set(i)
	}
	return b
}

func (sp *space) number(b bits) int {
	key := b.key()
	n, ok := sp.by[key]
	if !ok {
		n = len(sp.sets)
		sp.by[key] = n
		sp.sets = append(sp.sets, b)
	}
	return n
}

func (sp *space) ports(number int) Ports {
	var p Ports
	for i, a := range sp.atoms {
		if !sp.sets[number].has(i) {
			continue
		}
		switch a.proto {
		case ruleset.TCP:
			p.TCP = extend(p.TCP, a.PortRange)
		case ruleset.UDP:
			p.UDP = extend(p.UDP, a.PortRange)
		case ruleset.SCTP:
			p.SCTP = extend(p.SCTP, a.PortRange)
		default:
			p.Other = true
		}
	}
	return p
}

func extend(ranges []ruleset.PortRange, r ruleset.PortRange) []ruleset.PortRange {
	if n := len(ranges); n > 0 && ranges[n-1].Last+1 == r.First {
		ranges[n-1].Last = r.Last
		return ranges
	}
	return append(ranges, r)
}
