package reach

import (
	"cmp"
	"crypto/sha256"
	"encoding/binary"
	"fmt"
	"net/netip"
	"slices"
	"strings"

	"go4.org/netipx"
	networkingv1 "k8s.io/api/networking/v1"

	"github.com/weir-net/weir/conf"
	"github.com/weir-net/weir/policy"
	"github.com/weir-net/weir/policy/verdict"
)

type world struct {
	starts [len(conf.Families)][]netip.Addr // first address of each range, in order
	marks  [len(conf.Families)][]mark       // mark of each range; ranges that the same ipBlocks contain have the same mark
}

type mark [2]uint64

func (m mark) plus(o mark) mark { return mark{m[0] ^ o[0], m[1] ^ o[1]} }

func newWorld(states []policy.State) *world {
	type edge struct {
		at   netip.Addr
		mark mark
	}
	var edges [len(conf.Families)][]edge
	seen := map[mark]bool{}
	for _, s := range states {
		for _, np := range s.Policies {
			for _, peers := range peersOf(np) {
				ranges := blocksOf(peers)
				hash := hashOf(ranges)
				if len(ranges) == 0 || seen[hash] {
					continue
				}
				seen[hash] = true
				for _, r := range ranges {
					f := conf.FamilyOf(r.From())
					edges[f] = append(edges[f], edge{r.From(), hash})
					if next := r.To().Next(); next.IsValid() {
						edges[f] = append(edges[f], edge{next, hash})
					}
				}
			}
		}
	}
	w := &world{}
	for f, lowest := range []netip.Addr{conf.IPv4: netip.IPv4Unspecified(), conf.IPv6: netip.IPv6Unspecified()} {
		slices.SortFunc(edges[f], func(a, b edge) int { return a.at.Compare(b.at) })
		w.starts[f], w.marks[f] = []netip.Addr{lowest}, []mark{{}}
		for _, e := range edges[f] {
			last := len(w.starts[f]) - 1
			now := w.marks[f][last].plus(e.mark)
			if w.starts[f][last] == e.at {
				w.marks[f][last] = now
				continue
			}
			w.starts[f], w.marks[f] = append(w.starts[f], e.at), append(w.marks[f], now)
		}
	}
	return w
}

func (w *world) at(a netip.Addr) mark {
	f := conf.FamilyOf(a)
	i, found := slices.BinarySearchFunc(w.starts[f], a, netip.Addr.Compare)
	if !found {
		i--
	}
	return w.marks[f][i]
}

type region struct {
	all  *netipx.IPSet
	free *netipx.IPSet
}

func (w *world) regions(f conf.Family, taken *netipx.IPSet) (regions []region) {
	by := map[mark]*netipx.IPSetBuilder{}
	var order []mark
	for i, start := range w.starts[f] {
		m := w.marks[f][i]
		if by[m] == nil {
			by[m] = &netipx.IPSetBuilder{}
			order = append(order, m)
		}
		by[m].AddRange(netipx.IPRangeFrom(start, w.end(f, i)))
	}
	for _, m := range order {
		all, err := by[m].IPSet()
		by[m].RemoveSet(taken)
		free, err2 := by[m].IPSet()
		if err == nil && err2 == nil && len(free.Ranges()) > 0 {
			regions = append(regions, region{all, free})
		}
	}
	return regions
}

func (w *world) end(f conf.Family, i int) netip.Addr {
	if i+1 < len(w.starts[f]) {
		return w.starts[f][i+1].Prev()
	}
	return netipx.RangeOfPrefix(whole[f]).To()
}

var whole = [...]netip.Prefix{conf.IPv4: netip.MustParsePrefix("0.0.0.0/0"), conf.IPv6: netip.MustParsePrefix("::/0")}

func peersOf(np *networkingv1.NetworkPolicy) (all [][]networkingv1.NetworkPolicyPeer) {
	for _, r := range np.Spec.Ingress {
		all = append(all, r.From)
	}
	for _, r := range np.Spec.Egress {
		all = append(all, r.To)
	}
	return all
}

func blocksOf(peers []networkingv1.NetworkPolicyPeer) []netipx.IPRange {
	var all netipx.IPSetBuilder
	for _, p := range peers {
		if p.IPBlock == nil || p.PodSelector != nil || p.NamespaceSelector != nil {
			continue
		}
		if set, ok := blockOf(*p.IPBlock); ok {
			all.AddSet(set)
		}
	}
	set, err := all.IPSet()
	if err != nil {
		return nil // impossible: the set was made of valid sets
	}
	return set.Ranges()
}

func blockOf(b networkingv1.IPBlock) (*netipx.IPSet, bool) {
	cidr, err := netip.ParsePrefix(b.CIDR)
	if err != nil || cidr.Masked().Addr().Is4In6() {
		return nil, false
	}
	var set netipx.IPSetBuilder
	set.AddPrefix(cidr.Masked())
	for _, text := range b.Except {
		except, ok := verdict.ExceptOf(cidr, text)
		if !ok {
			return nil, false
		}
		set.RemovePrefix(except)
	}
	made, err := set.IPSet()
	return made, err == nil
}

func hashOf(ranges []netipx.IPRange) mark {
	var text []byte
	for _, r := range ranges {
		text = append(append(text, r.From().AsSlice()...), r.To().AsSlice()...)
	}
	sum := sha256.Sum256(text)
	return mark{binary.LittleEndian.Uint64(sum[:]), binary.LittleEndian.Uint64(sum[8:])}
}

// addRegions adds a party for each region of the world. Addresses of pods, and of the Nodes' podCIDRs, are in no
// region.
func (u *universe) addRegions() {
	var pods netipx.IPSetBuilder
	for i, s := range u.states {
		for _, a := range u.evaluators[i].Known() {
			pods.Add(a)
		}
		for _, n := range s.Nodes {
			for _, p := range n.PodCIDRs {
				pods.AddPrefix(p.Masked())
			}
		}
	}
	taken, err := pods.IPSet()
	if err != nil {
		return // impossible: addresses and prefixes are valid
	}
	for _, f := range u.families() {
		for _, r := range u.world.regions(f, taken) {
			var ends partyEnds
			for _, e := range u.evaluators {
				var at oneOfEach
				at[f] = endAt(e.At(r.free.Ranges()[0].From()))
				ends = append(ends, at)
			}
			u.parties = append(u.parties, Party{Kind: World, Networks: r.free.Prefixes(), Name: nameOf(r.all)})
			u.ends = append(u.ends, ends)
		}
	}
}

// families returns the families of the pods' addresses. A pod without addresses counts as IPv4, and also as IPv6 if an
// ipBlock divides the IPv6 addresses.
func (u *universe) families() (all []conf.Family) {
	var used [len(conf.Families)]bool
	for _, ends := range u.ends {
		for f := range conf.Families {
			used[f] = used[f] || ends[0][f].known && !ends[0][f].bare
			used[f] = used[f] || ends[0][f].bare && (conf.Family(f) == conf.IPv4 || len(u.world.starts[f]) > 1)
		}
	}
	for f, is := range used {
		if is {
			all = append(all, conf.Family(f))
		}
	}
	return all
}

const maxNetworks = 3

// maxNested is how many levels of exceptions a region's name may have.
const maxNested = 3

// nameOf returns the networks of the addresses, or one network with exceptions if that is shorter.
func nameOf(addresses *netipx.IPSet) string {
	text, _ := naming(addresses, maxNested)
	return text
}

// naming returns a name of the addresses, and how many networks are in the name. An exception may have exceptions of
// its own. For example, the addresses outside of an ipBlock 10.0.0.0/8 with the except 10.1.0.0/16 have a short name:
// "0.0.0.0/0 (except 10.0.0.0/8 (except 10.1.0.0/16))".
func naming(addresses *netipx.IPSet, nested int) (text string, networks int) {
	own, ranges := addresses.Prefixes(), addresses.Ranges()
	around := enclosing(ranges[0].From(), ranges[len(ranges)-1].To())
	var rest netipx.IPSetBuilder
	rest.AddPrefix(around)
	rest.RemoveSet(addresses)
	others, err := rest.IPSet()
	switch {
	case err != nil, nested == 0:
	case len(others.Prefixes()) == 0:
		return around.String(), 1
	default:
		if except, n := naming(others, nested-1); n < len(own) {
			return around.String() + " (except " + except + ")", n + 1
		}
	}
	return listed(own), len(own)
}

func enclosing(a, b netip.Addr) netip.Prefix {
	for bits := a.BitLen(); ; bits-- {
		if p := netip.PrefixFrom(a, bits).Masked(); bits == 0 || p.Contains(b) {
			return p
		}
	}
}

func listed(networks []netip.Prefix) string {
	networks = slices.Clone(networks)
	slices.SortStableFunc(networks, func(a, b netip.Prefix) int { return cmp.Compare(a.Bits(), b.Bits()) })
	words := make([]string, 0, maxNetworks)
	for _, p := range networks[:min(len(networks), maxNetworks)] {
		words = append(words, p.String())
	}
	text := strings.Join(words, ", ")
	if more := len(networks) - maxNetworks; more > 0 {
		text += fmt.Sprintf(" and %d more networks", more)
	}
	return text
}
