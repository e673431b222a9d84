package nftnl

import (
	"errors"
	"net/netip"
	"slices"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/weir-net/weir/conf"
	"github.com/weir-net/weir/test/nodetest"
)

// TestPodSets: without weir's tables, the sets of all pods count as empty, and Remove and Purge return no error. With
// an agent's sets and maps, Purge deletes only the given addresses, and only from sets and maps that contain pods.
func TestPodSets(t *testing.T) {
	if !nodetest.Isolated(t) {
		return
	}
	var p PodSets
	four, six, other := netip.MustParseAddr("10.88.0.2"), netip.MustParseAddr("fd00::2"), netip.MustParseAddr("10.88.0.3")
	no := func(what string, err error) {
		t.Helper()
		if err != nil {
			t.Errorf("%s: %v", what, err)
		}
	}
	has := func(a netip.Addr, want bool) {
		t.Helper()
		if got, err := p.Contains(a); got != want || err != nil {
			t.Errorf("has %s: %v, want %v; %v", a, got, want, err)
		}
	}
	has(four, false)
	no("remove from no set", p.Remove(four, six))
	no("purge no set", p.Purge(four, six))
	if used, err := p.InUse(four); used || err != nil {
		t.Errorf("in use: %v, %v", used, err)
	}
	if all, err := p.Addresses(); len(all) > 0 || err != nil {
		t.Errorf("addresses: %v, %v", all, err)
	}
	for range 2 { // twice, because each call can be repeated
		no("deny", p.Deny("x/y", four, six))
		has(four, true)
		has(six, true)
		has(other, false)
	}
	if used, err := p.InUse(four); used || err != nil {
		t.Errorf("in use without a rule: %v, %v", used, err)
	}
	if err := p.Check(four); err == nil || !strings.Contains(err.Error(), "no class (map weir-in") {
		t.Errorf("check a denied pod: %v", err)
	}
	nodetest.Run(t, "nft", `table ip weir {
		map weir-in { type ipv4_addr : verdict; elements = { 10.88.0.2 : return, 10.88.0.3 : goto X } }
		map weir-eg { type ipv4_addr : verdict; elements = { 10.88.0.2 : goto X } }
		set weir-self { type ipv4_addr . ipv4_addr; elements = { 10.88.0.2 . 10.88.0.2, 10.88.0.3 . 10.88.0.3 } }
		set weir-port-x { type ipv4_addr . inet_proto . inet_service; elements = {
			10.88.0.2 . tcp . 80, 10.88.0.2 . udp . 53, 10.88.0.3 . tcp . 80 } }
		set weir-senders { type ipv4_addr . ifname; elements = { 10.88.0.2 . "veth1" } }
		set weir-sel-x { type ipv4_addr; elements = { 10.88.0.2, 10.88.0.3 } }
		set weir-networks { type ipv4_addr; flags interval; elements = { 10.88.0.0/24 } }
		set weir-net-x { type ipv4_addr; flags interval; elements = { 10.88.0.2 } }
		set weir-numbers-x { type inet_service; elements = { 80 } }
		set weir-odd { type mark; elements = { 1 } }
		chain X { ip saddr @weir-pods drop; }
	}`)
	no("check", p.Check(four))
	if used, err := p.InUse(four); !used || err != nil {
		t.Errorf("in use: %v, %v", used, err)
	}
	all, err := p.Addresses()
	slices.SortFunc(all, netip.Addr.Compare)
	if !slices.Equal(slices.Compact(all), []netip.Addr{four, other, six}) || err != nil {
		t.Errorf("addresses: %v, %v", all, err)
	}
	before := nodetest.Run(t, "nft", "list", "table", "ip", "weir")
	for range 2 {
		no("purge", p.Purge(four, six))
	}
	got := nodetest.Run(t, "nft", "list", "table", "ip", "weir")
	for _, gone := range []string{
		`10.88.0.2 comment "x/y"`, "10.88.0.2 : return, ", "10.88.0.2 : goto X", "10.88.0.2 . 10.88.0.2",
		"10.88.0.2 . tcp . 80", "10.88.0.2 . udp . 53", `10.88.0.2 . "veth1"`,
	} {
		if strings.Contains(got, gone) {
			t.Errorf("after Purge, %q is left in\n%s", gone, got)
		}
	}
	if c := strings.Count(got, "10.88.0.3"); c != strings.Count(before, "10.88.0.3") {
		t.Errorf("Purge took other addresses:\n%s", got)
	}
	if strings.Count(got, "10.88.0.2") != 1 { // only the address in weir-net-x is left
		t.Errorf("Purge left or took an address:\n%s", got)
	}
	no("deny", p.Deny("x/y", four, other))
	no("remove", p.Remove(four))
	has(four, false)
	has(other, true)
}

// TestBatchIsAllOrNothing: if the kernel refuses one request of a batch, it carries out none. The error of Commit names
// the refused requests.
func TestBatchIsAllOrNothing(t *testing.T) {
	if !nodetest.Isolated(t) {
		return
	}
	table := Table{unix.NFPROTO_IPV4, "some"}
	var b Batch
	b.AddTable(table, "")
	b.AddSet(table, Set{Name: "s", Layout: Address}, "the set")
	s := Set{Name: "s", Layout: Address}
	b.AddElements(table, s, []Element{element(netip.MustParseAddr("10.0.0.1"))}, "good", false)
	b.AddElements(table, s, []Element{
		element(netip.MustParseAddr("10.0.0.2")), element(netip.MustParseAddr("fd00::1")),
	}, "bad", true)
	b.AddRule(table, "missing", Rule{Expressions: Expressions{}.Verdict(Verdict{})}, "a rule")
	err := b.Commit()
	var refused *RefusedError
	if !errors.As(err, &refused) || len(refused.Refusals) != 2 || !errors.Is(err, unix.ENOENT) {
		t.Fatalf("%v", err)
	}
	if of, ok := refused.Refusals[0].About.(ElementOf); !ok || of.About != "bad" || of.Element.Prefix.Addr().Is4() {
		t.Errorf("refused: %v", refused.Refusals[0])
	}
	if refused.Refusals[1].About != "a rule" {
		t.Errorf("refused: %v", refused.Refusals[1])
	}
	if tables := nodetest.Run(t, "nft", "list", "tables"); tables != "" {
		t.Errorf("the kernel has %s", tables)
	}
	if err := (&Batch{}).Commit(); err != nil {
		t.Error(err)
	}
}

// TestLargeSets: a set with too many elements for one message can be written and read back.
func TestLargeSets(t *testing.T) {
	if !nodetest.Isolated(t) {
		return
	}
	for _, f := range conf.Families {
		table, first := WeirTable(f), netip.MustParseAddr("10.0.0.0")
		if f == conf.IPv6 {
			first = netip.MustParseAddr("fd00::")
		}
		var b Batch
		b.AddTable(table, "")
		sets := []Set{{Name: "a", Layout: Address}, {Name: "n", Layout: Network}, {Name: "p", Layout: AddressPort}}
		var want []Element
		for a := range 20_000 {
			want = append(want, Element{
				Prefix: netip.PrefixFrom(first, first.BitLen()), Proto: 6, Port: uint16(a), Comment: strings.Repeat("x", a%128),
			})
			first = first.Next()
		}
		for _, s := range sets {
			b.AddSet(table, s, nil)
			b.AddElements(table, s, want, nil, false)
		}
		if err := b.Commit(); err != nil {
			t.Fatal(err)
		}
		r := NewReader()
		for _, s := range sets {
			got := map[netip.Prefix]Element{}
			odd, err := r.Each(table, s, func() { clear(got) }, func(e Element) bool { got[e.Prefix] = e; return true })
			if err != nil || odd || len(got) != len(want) {
				t.Fatalf("%s %s: %d elements, odd: %v, %v", f, s.Name, len(got), odd, err)
			}
			for _, w := range want {
				if s.Layout != AddressPort {
					w.Proto, w.Port = 0, 0
				}
				if got[w.Prefix] != w {
					t.Fatalf("%s %s: got %+v, want %+v", f, s.Name, got[w.Prefix], w)
				}
			}
		}
		r.Close()
	}
}

// TestUnknownAnswers: if the kernel answers with an element that doesn't fit the set's layout, the method answer
// returns an error. It doesn't say that the set lacks the element.
func TestUnknownAnswers(t *testing.T) {
	addr := netip.MustParseAddr("10.88.0.2")
	q := Question{WeirTable(conf.IPv4), podsSet(conf.IPv4), element(addr)}
	reply := func(key []byte) []byte {
		one := attrs{}.put(unix.NFTA_SET_ELEM_KEY, value(key))
		list := attrs{}.put(unix.NFTA_SET_ELEM_LIST_ELEMENTS, attrs{}.put(unix.NFTA_LIST_ELEM, one))
		return append(make([]byte, sizeofGenmsg), list...)
	}
	if e, err := q.answer(reply(addr.AsSlice())); err != nil || e == nil || e.Prefix.Addr() != addr {
		t.Errorf("%v, %v", e, err)
	}
	for name, answer := range map[string][]byte{
		"empty": nil, "no element": make([]byte, sizeofGenmsg), "a key that is too long": reply(make([]byte, 16)),
	} {
		if e, err := q.answer(answer); err == nil {
			t.Errorf("%s: %v, and no error", name, e)
		}
	}
}

// TestFindNetworks: for an address in a network of the set, Find returns this network. For other addresses, Find
// returns nil and no error.
func TestFindNetworks(t *testing.T) {
	if !nodetest.Isolated(t) {
		return
	}
	nodetest.Run(t, "nft", `table ip weir {
		set weir-net-x { type ipv4_addr; flags interval; elements = { 10.1.0.0/24, 10.1.2.0/24, 255.255.255.0/24 } }
	}`)
	s := Set{Name: "weir-net-x", Layout: Network}
	for addr, want := range map[string]string{
		"0.0.0.0": "", "10.0.255.255": "", "10.1.0.0": "10.1.0.0", "10.1.0.255": "10.1.0.0", "10.1.1.0": "", "10.1.1.255": "",
		"10.1.2.7": "10.1.2.0", "10.1.3.0": "", "255.255.254.255": "", "255.255.255.255": "255.255.255.0",
	} {
		found, err := Find([]Question{{WeirTable(conf.IPv4), s, element(netip.MustParseAddr(addr))}})
		got := ""
		if err == nil && found[0] != nil {
			got = found[0].Prefix.Addr().String()
		}
		if got != want || err != nil {
			t.Errorf("%s: in network %q, want %q; %v", addr, got, want, err)
		}
	}
}
