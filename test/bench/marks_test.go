//go:build bench

package bench_test

import (
	"fmt"
	"maps"
	"net/netip"
	"slices"
	"strings"
	"testing"

	"github.com/weir-net/weir/netfilter/iptables"
)

// This file writes a prototype of a layout in which a first packet takes the same look-ups whatever the number of
// classes and of policies (docs/architecture.md, decision 11). A set has the number of each pod's class; the target SET
// writes the number into the packet's mark; a tree of chains on the bits of the mark leads to the class's chain. In
// that chain, one set has all peers with the same ports. If a class has many groups of ports, one set has the pairs of
// peer and port.

const (
	markShift = 16
	markBits  = 0x1fff  // of the mark, after the shift: the class and the direction
	toPod     = 1 << 12 // in the numbers of ingress classes, so that a source's number is told from a destination's
	openClass = 1
	treeBits  = 4 // each chain of the tree distinguishes so many bits
	maxGroups = 3 // of ports in a class, before pairs of peer and port take their place
)

// mark returns the value under the mask as iptables and ipset write them.
func mark(value, mask int) string { return fmt.Sprintf("0x%x/0x%x", value<<markShift, mask<<markShift) }

// marks are the lines of a packet filter of this layout.
type marks struct{ sets, chains, rules []string }

func (m *marks) set(format string, args ...any) {
	m.sets = append(m.sets, fmt.Sprintf(format, args...))
}

func (m *marks) rule(format string, args ...any) {
	m.rules = append(m.rules, fmt.Sprintf(format, args...))
}

func (m *marks) chain(name string) {
	m.chains = append(m.chains, ":"+name+" - [0:0]")
}

// byMarks returns the prototype's filter of the workload.
func byMarks(name string, guard bool, w *workload) filter {
	name = "marks, " + name
	if !guard {
		name += ", without guard"
	}
	return filter{name, guard, func(t *testing.T, n *packetNode, flavour iptables.Flavour) {
		t.Helper()
		n.write(t, flavour, w.marks())
	}}
}

func (w *workload) marks() text {
	var m marks
	m.set("create pods hash:ip")
	for i := range w.local {
		m.set("add pods %s", localPod(i))
	}
	for _, chain := range []string{"W-FORWARD", "W-MIDSTREAM", "W-EG", "W-IN", "W-EG-REST", "W-IN-REST"} {
		m.chain(chain)
	}
	none := mark(0, markBits)
	for _, r := range []string{
		"FORWARD -j W-FORWARD",
		"W-FORWARD -m conntrack --ctstate ESTABLISHED -m connlabel ! --label 127 -j RETURN",
		"W-FORWARD -m connlabel --label 127 -j DROP",
		"W-FORWARD -p icmp -m set --match-set pods src -j DROP",
		"W-FORWARD -p icmp -m conntrack --ctstate RELATED -j RETURN",
		"W-FORWARD -p tcp -m tcp ! --tcp-flags FIN,SYN,RST,ACK SYN -m conntrack ! --ctstate UNTRACKED -j W-MIDSTREAM",
		"W-MIDSTREAM -m set --match-set pods src -j DROP",
		"W-MIDSTREAM -m set --match-set pods dst -j DROP",
		"W-FORWARD -m mark ! --mark " + none + " -j MARK --set-xmark " + none, // what others have left there
	} {
		m.rule("-A %s", r)
	}
	for _, egress := range []bool{true, false} {
		w.dispatch(&m, egress)
	}
	m.rule("-A W-FORWARD -j MARK --set-xmark %s", none)
	return text{
		sets: strings.Join(m.sets, "\n") + "\n",
		rules: "*mangle\n" + strings.Join(append(m.chains, m.rules...), "\n") + "\nCOMMIT\n" +
			"*filter\n-A FORWARD -i weir0 -j ACCEPT\n-A FORWARD -o weir0 -j ACCEPT\nCOMMIT\n",
	}
}

// dispatch writes the rules from the look-up of a pod to the chain of its class, and the chains of the classes.
func (w *workload) dispatch(m *marks, egress bool) {
	chain, set, own, link, direction := "W-IN", "in", "dst", "-o", toPod
	if egress {
		chain, set, own, link, direction = "W-EG", "eg", "src", "-i", 0
	}
	m.set("create %s hash:ip skbinfo", set)
	m.rule("-A W-FORWARD -j SET --map-set %s %s --map-mark", set, own)
	m.rule("-A W-FORWARD -j %s", chain)
	m.rule("-A %s -m mark --mark %s -j RETURN", chain, mark(direction|openClass, markBits))
	unknown := mark(0, markBits) // what a look-up that finds nothing leaves
	if !egress {
		unknown = mark(0, toPod)
	}
	m.rule("-A %[1]s -m mark --mark %[2]s -g %[1]s-REST", chain, unknown)
	m.rule("-A %s-REST -m set --match-set pods %s -j DROP", chain, own)
	m.rule("-A %s-REST %s weir0 -j DROP", chain, link)
	classes := w.byPolicies(egress)
	for number, c := range classes {
		for _, a := range c.pods {
			m.set("add %s %s skbmark %s", set, a, mark(direction|number, markBits))
		}
		if number > openClass {
			w.class(m, fmt.Sprintf("%s-%d", chain, number), egress, c.allows)
		}
	}
	levels := 1
	for 1<<(levels*treeBits) < len(classes) {
		levels++
	}
	m.tree(chain, chain, 0, levels, len(classes))
	m.rule("-A %s -j DROP", chain)
}

// tree writes the rules by which the node of the tree leads to the classes from first on.
func (m *marks) tree(chain, node string, first, levels, classes int) {
	shift := (levels - 1) * treeBits
	for i := range 1 << treeBits {
		low := first + i<<shift
		if low >= classes || low == 0 && levels == 1 {
			continue
		}
		to := fmt.Sprintf("%s-%d", chain, low)
		if levels > 1 {
			to = fmt.Sprintf("%s-T%d-%d", chain, levels, low)
			m.chain(to)
			m.tree(chain, to, low, levels-1, classes)
		} else if low == openClass {
			continue
		}
		m.rule("-A %s -m mark --mark %s -g %s", node, mark(i<<shift, (1<<treeBits-1)<<shift), to)
	}
}

// policed is the pods under the same policies.
type policed struct {
	pods   []netip.Addr
	allows []allow
}

// byPolicies returns the classes by number: 0 is none, openClass the pods under no policy.
func (w *workload) byPolicies(egress bool) []*policed {
	classes, byKey := []*policed{{}, {}}, map[string]*policed{}
	for i := range w.local {
		var c policed
		var key []string
		for k, a := range w.allows {
			if a.egress == egress && slices.Contains(w.groups[a.pods], localPod(i)) {
				key, c.allows = append(key, fmt.Sprint(k)), append(c.allows, a)
			}
		}
		k := strings.Join(key, " ")
		switch {
		case k == "":
			byKey[k] = classes[openClass]
		case byKey[k] == nil:
			byKey[k] = &c
			classes = append(classes, &c)
		}
		byKey[k].pods = append(byKey[k].pods, localPod(i))
	}
	return classes
}

// class writes the chain of a class.
func (w *workload) class(m *marks, chain string, egress bool, allows []allow) {
	m.chain(chain)
	peer, pair := "src", "src,dst"
	if egress {
		peer, pair = "dst", "dst,dst"
	}
	type group struct {
		ports       []portRange
		addrs, nets map[string]bool
	}
	groups := map[string]*group{}
	at := func(ports []portRange) *group {
		if groups[list(ports)] == nil {
			groups[list(ports)] = &group{ports, map[string]bool{}, map[string]bool{}}
		}
		return groups[list(ports)]
	}
	for _, a := range allows {
		for _, addr := range w.groups[a.peers] {
			at(a.ports).addrs[addr.String()] = true
		}
		for _, b := range a.blocks {
			at(a.blockPorts).nets[b] = true
		}
	}
	if len(groups) > maxGroups {
		m.set("create %s-pairs hash:ip,port", chain)
		for _, g := range groups {
			for addr := range g.addrs {
				for _, r := range g.ports {
					m.set("add %[1]s-pairs %[2]s,tcp:%[3]d-%[4]d\nadd %[1]s-pairs %[2]s,udp:%[3]d-%[4]d", chain, addr, r.first, r.last)
				}
			}
		}
		m.rule("-A %[1]s -m set --match-set %[1]s-pairs %[2]s -j RETURN", chain, pair)
		groups = nil
	}
	for i, ports := range slices.Sorted(maps.Keys(groups)) {
		for kind, members := range map[string]map[string]bool{"ip": groups[ports].addrs, "net": groups[ports].nets} {
			if len(members) == 0 {
				continue
			}
			set := fmt.Sprintf("%s-%s%d", chain, kind, i)
			m.set("create %s hash:%s", set, kind)
			for member := range members {
				m.set("add %s %s", set, member)
			}
			for _, proto := range []string{"tcp", "udp"} {
				m.rule("-A %s -p %s -m multiport --dports %s -m set --match-set %s %s -j RETURN", chain, proto, ports, set, peer)
			}
		}
	}
	m.rule("-A %s -j DROP", chain)
}
