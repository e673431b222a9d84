package ruleset

import (
	"fmt"
	"math/rand/v2"
	"net/netip"
	"strings"
	"testing"

	"github.com/weir-net/weir/conf"
)

// TestIndex: on random rulesets, an Index gives the same verdicts as a Simulator.
func TestIndex(t *testing.T) {
	rulesets := 1_500
	if testing.Short() {
		rulesets = 150
	}
	verdicts := map[bool]int{}
	for seed := range rulesets {
		compare(t, uint64(seed), 200, verdicts)
		if t.Failed() {
			return
		}
	}
	if verdicts[true] < 20*rulesets || verdicts[false] < 20*rulesets {
		t.Errorf("the packets are one-sided: %v", verdicts)
	}
}

func FuzzIndex(f *testing.F) {
	f.Add(uint64(1))
	f.Fuzz(func(t *testing.T, seed uint64) { compare(t, seed, 50, map[bool]int{}) })
}

func compare(t *testing.T, seed uint64, packets int, verdicts map[bool]int) {
	t.Helper()
	r := &randomRules{rand.New(rand.NewPCG(seed, 0))}
	rules := r.ruleset()
	want, err := NewSimulator(rules)
	if err != nil {
		t.Fatal(err)
	}
	index := NewIndex(rules)
	last := r.packet()
	for i := range packets {
		p := r.packet()
		if i%3 == 0 { // so the index uses what it remembers of the last packet
			p.Src, p.Dst, p.In, p.Out, p.InPort = last.Src, last.Dst, last.In, last.Out, last.InPort
		}
		last = p
		allowed := want.Allows(p)
		verdicts[allowed]++
		if got := index.Allows(p); got != allowed {
			var b strings.Builder
			_ = rules.Write(&b)
			t.Fatalf("seed %d: %+v: allowed %v, want %v by\n%s", seed, p, got, allowed, b.String())
		}
	}
}

// randomRules makes random rulesets and packets. They have few addresses, links and ports, so that rules often match.
type randomRules struct{ *rand.Rand }

func one[T any](r *randomRules, list ...T) T { return list[r.IntN(len(list))] }

func (r *randomRules) address() netip.Addr {
	if r.IntN(3) == 0 {
		return netip.AddrFrom16([16]byte{0: 0xfd, 14: byte(r.IntN(2)), 15: byte(r.IntN(16))})
	}
	return netip.AddrFrom4([4]byte{10, 0, byte(r.IntN(2)), byte(r.IntN(16))})
}

func (r *randomRules) network() netip.Prefix {
	a := r.address()
	p, _ := a.Prefix(a.BitLen() - one(r, 0, 0, 1, 2, 3, 4, 8, 9, a.BitLen()))
	return p
}

func (r *randomRules) link() string { return one(r, "weir0", "veth1", "veth2", "eth0") }

func (r *randomRules) proto() Protocol { return one(r, TCP, TCP, UDP, SCTP) }

func (r *randomRules) port() uint16 {
	return one(r, uint16(r.IntN(40)), uint16(r.IntN(40)), uint16(r.IntN(5)), uint16(65_535-r.IntN(3)))
}

var setKinds = []SetKind{Addresses, Addresses, Networks, AddressPorts, Ports, AddressLinks}

func (r *randomRules) set(name string) Set {
	s := Set{Name: name, Kind: one(r, setKinds...), Family: conf.Family(r.IntN(4) / 3)}
	var entries []Entry
	for range r.IntN(one(r, 3, 10, 30)) {
		e := Element{Prefix: r.network()}
		if s.Kind != Ports && conf.FamilyOf(e.Prefix.Addr()) != s.Family {
			continue
		}
		switch s.Kind {
		case Addresses:
			e.Prefix = netip.PrefixFrom(e.Prefix.Addr(), e.Prefix.Addr().BitLen())
		case AddressPorts:
			e.Prefix = netip.PrefixFrom(e.Prefix.Addr(), e.Prefix.Addr().BitLen())
			e.Proto, e.Port = r.proto(), r.port()
		case Ports:
			e = Element{Port: r.port()}
		case AddressLinks:
			e.Link = r.link()
		}
		entries = append(entries, Entry{Element: e})
	}
	s.Entries = EntriesOf(entries...)
	return s
}

// ruleset returns a random ruleset. A chain leads only to later chains, so that no packet goes in a circle.
func (r *randomRules) ruleset() Ruleset {
	var all Ruleset
	for i := range 1 + r.IntN(one(r, 3, 30)) {
		all.Sets = append(all.Sets, r.set(fmt.Sprint("set", i)))
	}
	chains := 2 + r.IntN(5)
	size := one(r, 3, 10, 60, 300)
	for _, f := range conf.Families[:1+r.IntN(2)] {
		for i := range chains {
			c := Chain{Family: f, Name: fmt.Sprint("chain", i)}
			if i < 2 {
				c.Hook = [...]Hook{CheckForwarded, CheckToNode}[i]
			}
			for range 1 + r.IntN(size) {
				c.Rules = append(c.Rules, r.rule(all.Sets, i, chains))
			}
			if r.IntN(3) > 0 {
				c.Rules = append(c.Rules, Rule{Action: Drop})
			}
			all.Chains = append(all.Chains, c)
		}
	}
	return all
}

var parts = map[SetKind][]Part{
	Addresses: {Source, Destination}, Networks: {Source, Destination}, AddressPorts: {SourcePair, DestinationPair},
	Ports: {DestinationPort}, AddressLinks: {SourceLink},
}

func (r *randomRules) rule(sets []Set, chain, chains int) Rule {
	rule := Rule{Action: one(r, Drop, Drop, Return, Return, Jump, Jump, GoTo, Log, Accept)}
	if chain >= chains/2 { // a chain that leads to no other chain
		rule.Action = one(r, Drop, Return, Return, Log)
	}
	if rule.Action == Jump || rule.Action == GoTo {
		rule.To = fmt.Sprint("chain", chain+1+r.IntN(chains-chain)) // the last of these chains doesn't exist
	}
	seldom := func(n int) bool { return r.IntN(n) == 0 }
	if seldom(8) {
		rule.Src = r.network()
	}
	if seldom(8) {
		rule.Dst = r.network()
	}
	if seldom(15) {
		rule.In = r.link()
	}
	if seldom(15) {
		rule.Out = r.link()
	}
	if seldom(15) {
		rule.InPort = r.link()
	}
	if seldom(15) {
		rule.Track = one(r, Untranslated, Untranslated, Midstream)
	}
	if seldom(15) {
		rule.Shape = one(r, ToItself, HonestICMP, NoICMPError, Solicitation, Advertisement)
	}
	if !seldom(3) {
		rule.Proto = one(r, TCP, TCP, TCP, UDP, SCTP, ICMP, ICMPv6, "47")
	}
	for range one(r, 0, 0, 1, 1, 1, 1, 2, 3) {
		m := SetMatch{Name: fmt.Sprint("set", len(sets)), By: one(r, Source, DestinationPort), Not: seldom(6)}
		if !seldom(20) { // in one case of 20, the set doesn't exist
			s := sets[r.IntN(len(sets))]
			m.Name, m.By = s.Name, one(r, parts[s.Kind]...)
		}
		if seldom(20) {
			m.By = one(r, Source, Destination, DestinationPort, SourcePair, DestinationPair, SourceLink)
		}
		rule.Sets = append(rule.Sets, m)
	}
	for range one(r, 0, 0, 1, 1, 1, 2, 5) {
		p := PortRange{r.port(), r.port()}
		if p.First > p.Last {
			p.First, p.Last = p.Last, p.First
		}
		if !seldom(3) {
			p.Last = p.First
		}
		rule.Ports = append(rule.Ports, p)
	}
	return rule
}

func (r *randomRules) packet() Packet {
	p := Packet{
		In: r.link(), Out: one(r, r.link(), r.link(), "", "-"), Src: r.address(), Dst: r.address(),
		Proto: one(r, TCP, TCP, TCP, UDP, SCTP, "1", "58", "47", "50"), Port: r.port(), Translated: r.IntN(2) == 0,
	}
	for p.Src.BitLen() != p.Dst.BitLen() {
		p.Dst = r.address()
	}
	if r.IntN(10) == 0 {
		p.Dst = p.Src
	}
	p.InPort = one(r, "", r.link())
	return p
}

// TestIndexKeepsVerdicts: if an Index remembers the verdict on a packet, a packet with another address, port, protocol
// or link still gets its own verdict.
func TestIndexKeepsVerdicts(t *testing.T) {
	allowed := Set{Name: "allowed", Kind: Addresses, Entries: EntriesOf(
		Entry{Element: Element{Prefix: netip.MustParsePrefix("10.0.0.2/32")}},
	)}
	var rules []Rule
	for range 2 * many {
		rules = append(rules, Rule{In: "other", Action: Return})
	}
	rules = append(
		rules, Rule{Shape: ToItself, Action: Drop}, Rule{Src: netip.MustParsePrefix("10.0.0.8/31"), Action: Return},
		Rule{Sets: []SetMatch{{Name: "allowed", By: Destination}}, Action: Return},
		Rule{Proto: TCP, Ports: []PortRange{{80, 80}}, Action: Return},
		Rule{Dst: netip.MustParsePrefix("10.0.0.4/31"), Action: Return},
		Rule{Track: Untranslated, Dst: netip.MustParsePrefix("10.0.0.6/31"), Action: Return}, Rule{Action: Drop})
	index := NewIndex(Ruleset{
		Sets:   []Set{allowed},
		Chains: []Chain{{Name: "forward", Hook: CheckForwarded, Rules: rules}},
	})
	for range 2 {
		for text, want := range map[string]bool{
			"10.0.0.1 10.0.0.2 tcp 81": true, "10.0.0.1 10.0.0.3 tcp 81": false, "10.0.0.1 10.0.0.3 tcp 80": true,
			"10.0.0.1 10.0.0.3 udp 80": false, "10.0.0.1 10.0.0.5 udp 80": true, "10.0.0.5 10.0.0.5 udp 80": false,
			"10.0.0.9 10.0.0.3 udp 80": true, "10.0.0.4 10.0.0.5 udp 80": true,
			"10.0.0.1 10.0.0.6 udp 80": true, "10.0.0.1 10.0.0.7 udp 80": true,
		} {
			var p Packet
			var src, dst string
			if _, err := fmt.Sscan(text, &src, &dst, &p.Proto, &p.Port); err != nil {
				t.Fatal(err)
			}
			p.In, p.Out, p.Src, p.Dst = "eth0", "weir0", netip.MustParseAddr(src), netip.MustParseAddr(dst)
			if got := index.Allows(p); got != want {
				t.Errorf("%s: allowed %v, want %v", text, got, want)
			}
			p.In = "other"
			if !index.Allows(p) {
				t.Errorf("%s, by the other link: not allowed", text)
			}
			if p.In, p.Translated = "eth0", true; index.Allows(p) != (want && (p.Dst.As4()[3] < 6)) {
				t.Errorf("%s, translated: allowed %v", text, !want)
			}
		}
	}
}
