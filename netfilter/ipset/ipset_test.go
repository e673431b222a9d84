package ipset

import (
	"errors"
	"net/netip"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"

	"github.com/weir-net/weir/conf"
	"github.com/weir-net/weir/test/nodetest"
)

// open returns a handle, and the function must. If must gets an error, it ends the test.
func open(t *testing.T) (h *Handle, must func(error)) {
	t.Helper()
	must = func(err error) {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
	}
	h, err := New()
	must(err)
	t.Cleanup(h.Close)
	return h, must
}

func TestSets(t *testing.T) {
	if !nodetest.Isolated(t) {
		return
	}
	h, must := open(t)
	pod, net := netip.MustParsePrefix("10.88.0.2/32"), netip.MustParsePrefix("10.88.0.0/24")
	for range 2 { // twice, because each operation can be repeated
		must(h.Create(Header{"weir-pods", HashIP, conf.IPv4, false}))
		must(h.Create(Header{"weir-networks", HashNet, conf.IPv4, false}))
		must(Apply(Change{Set: "weir-pods", Entry: Entry{Prefix: pod, Comment: "ns-1/a"}}))
		must(Apply(Change{Set: "weir-networks", Entry: Entry{Prefix: net, Comment: "pods of this node"}}))
		must(Apply(Change{Set: "weir-networks", Entry: Entry{Prefix: pod, Comment: "one address"}}))
	}
	port := func(proto string, number uint16) Entry {
		return Entry{Prefix: pod, Proto: proto, Port: number, Comment: "port of a"}
	}
	other := Entry{Prefix: netip.MustParsePrefix("10.88.0.3/32"), Proto: "tcp", Port: 80, Comment: "port of b"}
	for range 2 {
		must(h.Create(Header{"weir-port-x", HashIPPort, conf.IPv4, false}))
		for _, e := range []Entry{port("tcp", 80), port("udp", 80), port("sctp", 443), port("tcp", 81), other} {
			must(Apply(Change{Set: "weir-port-x", Entry: e}))
		}
		must(Apply(Change{Set: "weir-port-x", Entry: port("tcp", 81), Delete: true}))
	}
	for range 2 {
		must(h.Create(Header{"weir-numbers-x", BitmapPort, conf.IPv4, false}))
		for _, n := range []uint16{1, 80, 65535, 81} {
			must(Apply(Change{Set: "weir-numbers-x", Entry: Entry{Port: n}}))
		}
		must(Apply(Change{Set: "weir-numbers-x", Entry: Entry{Port: 81}, Delete: true}))
	}
	nodetest.Run(t, "ipset", "create", "somebody-elses", "hash:ip")
	nodetest.Run(t, "ipset", "add", "somebody-elses", "10.88.0.2")

	headers, err := h.Headers()
	must(err)
	byName := cmpopts.SortSlices(func(a, b Header) bool { return a.Name < b.Name })
	if diff := cmp.Diff([]Header{
		{"weir-networks", HashNet, 0, false},
		{"weir-numbers-x", BitmapPort, 0, false},
		{"weir-pods", HashIP, 0, false},
		{"weir-port-x", HashIPPort, 0, false},
	}, headers, byName); diff != "" {
		t.Errorf("headers: %s", diff)
	}
	prefixes := cmp.Comparer(func(a, b netip.Prefix) bool { return a == b })
	got, err := h.List("weir-networks")
	must(err)
	want := Set{
		Header: Header{"weir-networks", HashNet, conf.IPv4, false}, Comments: true,
		Entries: []Entry{{Prefix: net, Comment: "pods of this node"}, {Prefix: pod, Comment: "one address"}},
	}
	hash := cmpopts.IgnoreFields(Set{}, "Print")
	if diff := cmp.Diff(want, got, prefixes, hash,
		cmpopts.SortSlices(func(a, b Entry) bool { return a.Comment > b.Comment })); diff != "" {
		t.Errorf("weir-networks: %s", diff)
	}
	got, err = h.List("weir-port-x")
	must(err)
	byText := cmpopts.SortSlices(func(a, b Entry) bool { return a.String() < b.String() })
	want = Set{
		Header: Header{"weir-port-x", HashIPPort, conf.IPv4, false}, Comments: true,
		Entries: []Entry{port("sctp", 443), port("tcp", 80), port("udp", 80), other},
	}
	if diff := cmp.Diff(want, got, prefixes, hash, byText); diff != "" {
		t.Errorf("weir-port-x: %s", diff)
	}
	got, err = h.List("weir-numbers-x")
	must(err)
	numbers := Header{"weir-numbers-x", BitmapPort, conf.IPv4, false}
	want = Set{Header: numbers, Entries: []Entry{{Port: 1}, {Port: 65535}, {Port: 80}}}
	if diff := cmp.Diff(want, got, prefixes, hash, byText); diff != "" {
		t.Errorf("weir-numbers-x: %s", diff)
	}
	if in, err := Has("weir-pods", pod.Addr()); !in || err != nil {
		t.Errorf("10.88.0.2 in weir-pods: %v, %v", in, err)
	}
	shown := nodetest.Run(t, "ipset", "list")
	for _, words := range []string{
		`comment "ns-1/a"`, `comment "pods of this node"`,
		`10.88.0.2,sctp:443 comment "port of a"`,
	} {
		if !strings.Contains(shown, words) {
			t.Errorf("a person doesn't see %s in\n%s", words, shown)
		}
	}
	for range 2 {
		must(h.Purge(pod.Addr()))
	}
	if in, err := Has("weir-pods", pod.Addr()); in || err != nil {
		t.Errorf("10.88.0.2 in weir-pods after Purge: %v, %v", in, err)
	}
	if got, err := h.List("weir-networks"); err != nil || len(got.Entries) != 2 {
		t.Errorf("Purge touched a set of networks: %v, %v", got, err)
	}
	if got, err := h.List("weir-numbers-x"); err != nil || len(got.Entries) != 3 {
		t.Errorf("Purge touched a set of ports: %v, %v", got, err)
	}
	if got, err := h.List("weir-port-x"); err != nil || len(got.Entries) != 1 || got.Entries[0] != other {
		t.Errorf("after Purge of 10.88.0.2: %v, %v; want the other pod's port only", got.Entries, err)
	}
	nodetest.Run(t, "ipset", "test", "somebody-elses", "10.88.0.2")

	if err := h.Create(Header{"weir-pods", HashNet, conf.IPv4, false}); err == nil {
		t.Error("a set was taken for one of another type")
	}
	if err := Apply(Change{Set: "weir-none", Entry: Entry{Prefix: pod}}); !errors.Is(err, ErrNotExist) {
		t.Errorf("add to a set that isn't there: %v", err)
	}
	for range 2 {
		must(h.Destroy("weir-networks"))
	}
}

// FuzzParseHeader: whatever the kernel answers, parseHeader accepts only names of weir's sets.
func FuzzParseHeader(f *testing.F) {
	f.Add([]byte("\x02\x00\x00\x00\x05\x00\x01\x00\x06\x00\x00\x00\x0e\x00\x02\x00weir-pods\x00\x00\x00"))
	f.Add([]byte("\x02\x00\x00\x00\x04\x00\x02\x00"))
	f.Add([]byte{2})
	f.Fuzz(func(t *testing.T, msg []byte) {
		if s, ok := parseHeader(msg); ok && !conf.OwnSet(s.Name) {
			t.Errorf("%+v is taken for weir's", s)
		}
	})
}

// TestBothFamilies: a set refuses addresses of the other family. Purge looks for an address only in sets of the
// address's family.
func TestBothFamilies(t *testing.T) {
	if !nodetest.Isolated(t) {
		return
	}
	h, must := open(t)
	one := map[conf.Family]netip.Prefix{
		conf.IPv4: netip.MustParsePrefix("10.88.0.2/32"),
		conf.IPv6: netip.MustParsePrefix("fd00:10:88::2/128"),
	}
	other := map[conf.Family]netip.Prefix{
		conf.IPv4: netip.MustParsePrefix("10.88.0.3/32"),
		conf.IPv6: netip.MustParsePrefix("fd00:10:88::3/128"),
	}
	kinds := []Header{
		{Name: "weir-pods", Type: HashIP},
		{Name: "weir-networks", Type: HashNet},
		{Name: "weir-port-x", Type: HashIPPort},
	}
	for _, s := range kinds {
		for _, f := range conf.Families {
			set := Header{f.Set(s.Name), s.Type, f, false}
			for range 2 {
				must(h.Create(set))
				for _, p := range []netip.Prefix{one[f], other[f]} {
					e := Entry{Prefix: p, Comment: "a"}
					if s.Type == HashIPPort {
						e.Proto, e.Port = "udp", 53
					}
					must(Apply(Change{Set: set.Name, Entry: e}))
				}
			}
			got, err := h.List(set.Name)
			must(err)
			if got.Header != set || len(got.Entries) != 2 || !got.Comments {
				t.Errorf("%+v, want two entries in %+v", got, set)
			}
		}
	}
	must(Apply(Change{
		Set:   "weir-networks6",
		Entry: Entry{Prefix: netip.MustParsePrefix("8000::/1"), Comment: "half of all"},
	}))
	if err := Apply(Change{Set: "weir-pods", Entry: Entry{Prefix: one[conf.IPv6]}}); err == nil {
		t.Error("a set took an address of the other family")
	}
	must(h.Purge(one[conf.IPv4].Addr(), one[conf.IPv6].Addr()))
	for _, s := range kinds {
		for _, f := range conf.Families {
			got, err := h.List(f.Set(s.Name))
			must(err)
			purged := !slices.ContainsFunc(got.Entries, func(e Entry) bool { return e.Prefix == one[f] })
			stays := slices.ContainsFunc(got.Entries, func(e Entry) bool { return e.Prefix == other[f] })
			if pods := s.Name == "weir-pods" || s.Name == "weir-port-x"; purged != pods || !stays {
				t.Errorf("%s after Purge: %v", f.Set(s.Name), got.Entries)
			}
		}
	}
	if in, err := Has("weir-pods6", other[conf.IPv6].Addr()); !in || err != nil {
		t.Errorf("fd00:10:88::3 in weir-pods6: %v, %v", in, err)
	}
}
