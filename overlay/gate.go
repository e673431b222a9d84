package overlay

import (
	"fmt"
	"net/netip"
	"slices"
	"strings"

	"github.com/google/nftables"
	"go4.org/netipx"

	"github.com/weir-net/weir/conf"
	"github.com/weir-net/weir/internal/nft"
)

// Gate is the nftables table "inet weir-tunnel". It checks tunnel packets, and packets from addresses of pods. The
// rules for policies trust the source address of a packet. Without the gate, a host that sends from a pod's address
// would have the rights of that pod.
//
// A tunnel packet is a UDP packet to the tunnels' port and to a node's InternalIP. With the gate:
//
//   - It isn't tracked. So its destination is never translated, and no ICMP error is RELATED to it.
//   - It is never forwarded, and pods can't send it.
//   - If it has weir's VNI, it must come by the underlay, untranslated. The sender of the packet inside must be in a
//     network of the node that sent the tunnel packet. Other programs may use the port with other VNIs.
//
// A packet from an address of a pod must come by the link or tunnel by which this node reaches that address:
//
//   - A packet from a network whose packets travel in tunnels must come out of the tunnel. No other packets may come
//     out of the tunnel.
//   - A packet from a network of this node's pods must come by weir0, or by the link to which the route to its source
//     leads.
type Gate struct {
	sets   []gateSet
	chains []gateChain
}

type gateSet struct {
	name, comment string
	keyType       nftables.SetDatatype
	// An interval set has ranges. If the set is concatenated, an element has both ends of its range. Otherwise the end
	// of a range is an element of its own.
	interval, concatenated bool
	elements               []nftables.SetElement
	words                  []string // the elements, as nft writes them
}

// NewGate returns the gate for the plan. links are the links that other plugins made for pods.
func NewGate(p Plan, links []string) Gate {
	g := Gate{sets: []gateSet{linksSet(links)}, chains: gateChains(p)}
	for _, f := range conf.Families {
		g.sets = append(g.sets, nodesSet(f, p.Nodes),
			networkSet(f, "networks", "weir: networks of all pods", p.Networks),
			networkSet(f, "tunnelled", "weir: networks of pods whose packets come out of tunnels only", p.Tunnelled),
			networkSet(f, "own", "weir: networks of this node's pods", p.Own))
	}
	if p.NodeAddress.IsValid() {
		for _, f := range conf.Families {
			g.sets = append(g.sets, sendersSet(conf.FamilyOf(p.NodeAddress), f, p.Remotes))
		}
	}
	return g
}

func setName(f conf.Family, name string) string {
	if f == conf.IPv6 {
		return name + "6"
	}
	return name + "4"
}

func addressType(f conf.Family) nftables.SetDatatype {
	if f == conf.IPv6 {
		return nftables.TypeIP6Addr
	}
	return nftables.TypeIPAddr
}

func (s *gateSet) add(words string, elements ...nftables.SetElement) {
	s.words = append(s.words, words)
	s.elements = append(s.elements, elements...)
}

func linksSet(links []string) gateSet {
	s := gateSet{name: "links", comment: "weir: links that no tunnel packet comes by", keyType: nftables.TypeIFName}
	names := append([]string{conf.Bridge, conf.Tunnel}, links...)
	slices.Sort(names)
	for _, l := range slices.Compact(names) {
		s.add(fmt.Sprintf("%q", l), nftables.SetElement{Key: nft.LinkName(l)})
	}
	return s
}

func nodesSet(f conf.Family, nodes []netip.Addr) gateSet {
	s := gateSet{name: setName(f, "nodes"), comment: "weir: InternalIPs of nodes", keyType: addressType(f)}
	addrs := slices.DeleteFunc(slices.Clone(nodes), func(a netip.Addr) bool { return conf.FamilyOf(a) != f })
	slices.SortFunc(addrs, netip.Addr.Compare)
	for _, a := range slices.Compact(addrs) {
		s.add(a.String(), nftables.SetElement{Key: a.AsSlice()})
	}
	return s
}

// networkSet joins adjacent networks, because some kernels don't accept adjacent ranges.
func networkSet(f conf.Family, name, comment string, networks []netip.Prefix) gateSet {
	s := gateSet{name: setName(f, name), comment: comment, keyType: addressType(f), interval: true}
	var b netipx.IPSetBuilder
	for _, n := range networks {
		if conf.FamilyOf(n.Addr()) == f {
			b.AddPrefix(n)
		}
	}
	all, err := b.IPSet()
	if err != nil { // impossible, because IPSet fails only for an invalid prefix
		return s
	}
	for _, r := range all.Ranges() {
		// nf_tables stores a range as its first address and the address after its last one. A pod network never
		// ends with the last of all addresses.
		end := nftables.SetElement{Key: r.To().Next().AsSlice(), IntervalEnd: true}
		s.add(r.String(), nftables.SetElement{Key: r.From().AsSlice()}, end)
	}
	return s
}

// sendersSet returns a set of pairs: the address of a tunnel's other end, and a network of pods behind that end. The
// address has the family outer, and the network has the family inner.
func sendersSet(outer, inner conf.Family, remotes []Remote) gateSet {
	s := gateSet{
		name: setName(inner, "senders"), comment: "weir: tunnels' ends and the networks behind each",
		keyType:  nftables.MustConcatSetType(addressType(outer), addressType(inner)),
		interval: true, concatenated: true,
	}
	tunnelled := slices.DeleteFunc(slices.Clone(remotes), func(r Remote) bool {
		return r.Direct || conf.FamilyOf(r.Network.Addr()) != inner
	})
	slices.SortFunc(tunnelled, func(a, b Remote) int { return a.Network.Addr().Compare(b.Network.Addr()) })
	for _, remote := range tunnelled {
		r := netipx.RangeOfPrefix(remote.Network)
		end := remote.Address.AsSlice()
		s.add(fmt.Sprintf("%s . %s", remote.Address, remote.Network), nftables.SetElement{
			Key: slices.Concat(end, r.From().AsSlice()), KeyEnd: slices.Concat(end, r.To().AsSlice()),
		})
	}
	return s
}

// String returns the sets and chains for a golden file. nft can't read this text.
func (g Gate) String() string {
	var b strings.Builder
	for _, s := range g.sets {
		fmt.Fprintf(&b, "set %s { %s } # %s\n", s.name, strings.Join(s.words, ", "), s.comment)
	}
	for _, c := range g.chains {
		fmt.Fprintf(&b, "chain %s", c.name)
		if c.hook != nil {
			fmt.Fprintf(&b, " hook %d priority %d", *c.hook, c.priority)
		}
		b.WriteByte('\n')
		for _, r := range c.rules {
			fmt.Fprintf(&b, "  %s # %s\n", r.words, r.Comment)
		}
	}
	return b.String()
}
