package ipam

import (
	"errors"
	"fmt"
	"math/rand/v2"
	"net/netip"
	"os"
	"slices"
	"strings"
	"sync"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"

	"github.com/weir-net/weir/conf"
	"github.com/weir-net/weir/endpoint"
	"github.com/weir-net/weir/test/nodetest"
)

var byValue = cmpopts.EquateComparable(netip.Addr{}, netip.Prefix{})

func newRange(start, end byte) conf.Range {
	return conf.Range{
		Subnet: netip.MustParsePrefix("10.88.0.0/24"), Gateway: netip.MustParseAddr("10.88.0.1"),
		RangeStart: netip.AddrFrom4([4]byte{10, 88, 0, start}), RangeEnd: netip.AddrFrom4([4]byte{10, 88, 0, end}),
	}
}

func assignOne(t *testing.T, id string, ranges ...conf.Range) string {
	t.Helper()
	var got endpoint.Address
	if err := Assign(id, Request{Ranges: ranges},
		func(a []endpoint.Address) error { got = a[0]; return nil }); err != nil {
		t.Fatalf("assign to %s: %v", id, err)
	}
	return got.Addr.String()
}

func release(t *testing.T, id, addr string) {
	t.Helper()
	if err := Release(id, netip.MustParseAddr(addr)); err != nil {
		t.Fatalf("release %s by %s: %v", addr, id, err)
	}
}

func wantHolders(t *testing.T, want map[string]string) {
	t.Helper()
	assigned, err := Assignments()
	if err != nil {
		t.Fatal(err)
	}
	got := map[string]string{}
	for a, id := range assigned {
		got[a.String()] = id
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("holders: %s", diff)
	}
}

func TestAFreedAddressRests(t *testing.T) {
	if !nodetest.Isolated(t) {
		return
	}
	r := newRange(1, 5)
	var got []string
	got = append(got, assignOne(t, "a", r), assignOne(t, "b", r))
	release(t, "a", got[0])
	got = append(got, assignOne(t, "c", r), assignOne(t, "d", r))
	release(t, "d", got[3]) // d's address was released last, so it is assigned last
	got = append(got, assignOne(t, "e", r), assignOne(t, "f", r))
	want := []string{"10.88.0.2", "10.88.0.3", "10.88.0.4", "10.88.0.5", "10.88.0.2", "10.88.0.5"}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Error(diff)
	}
	wantHolders(t, map[string]string{"10.88.0.2": "e", "10.88.0.3": "b", "10.88.0.4": "c", "10.88.0.5": "f"})
}

// TestAReboot: after a reboot all addresses are free. The first address to be assigned is the address after the last
// assigned address.
func TestAReboot(t *testing.T) {
	if !nodetest.Isolated(t) {
		return
	}
	r := newRange(1, 6)
	assignOne(t, "a", r)
	assignOne(t, "b", r)
	if err := os.RemoveAll(endpoint.Dir); err != nil {
		t.Fatal(err)
	}
	wantHolders(t, map[string]string{})
	var got []string
	for _, id := range []string{"c", "d", "e", "f"} {
		got = append(got, assignOne(t, id, r))
	}
	if diff := cmp.Diff([]string{"10.88.0.4", "10.88.0.5", "10.88.0.6", "10.88.0.2"}, got); diff != "" {
		t.Error(diff)
	}
}

func TestSeveralRangesAndExhaustion(t *testing.T) {
	if !nodetest.Isolated(t) {
		return
	}
	other := conf.Range{
		Subnet: netip.MustParsePrefix("10.99.0.0/30"), Gateway: netip.MustParseAddr("10.99.0.2"),
		RangeStart: netip.MustParseAddr("10.99.0.1"), RangeEnd: netip.MustParseAddr("10.99.0.2"),
	}
	ranges := []conf.Range{newRange(1, 3), other, newRange(9, 9)}
	var got []endpoint.Address
	for i := range 4 {
		if err := Assign(fmt.Sprint("c", i), Request{Ranges: ranges},
			func(a []endpoint.Address) error { got = append(got, a...); return nil }); err != nil {
			t.Fatal(err)
		}
	}
	address := func(a string, r conf.Range) endpoint.Address {
		return endpoint.Address{Addr: netip.MustParseAddr(a), Subnet: r.Subnet, Gateway: r.Gateway}
	}
	want := []endpoint.Address{
		address("10.88.0.2", ranges[0]), address("10.88.0.3", ranges[0]), address("10.99.0.1", other),
		address("10.88.0.9", ranges[2]),
	}
	if diff := cmp.Diff(want, got, byValue); diff != "" {
		t.Error(diff)
	}
	for range 2 {
		err := Assign("late", Request{Ranges: ranges},
			func(a []endpoint.Address) error { t.Errorf("%v was recorded", a); return nil })
		var exhausted *ExhaustedError
		if !errors.As(err, &exhausted) {
			t.Fatalf("%v, want an ExhaustedError", err)
		}
		if diff := cmp.Diff(&ExhaustedError{Ranges: ranges}, exhausted, byValue); diff != "" {
			t.Error(diff)
		}
		for _, words := range []string{
			"10.88.0.0/24 (10.88.0.1 to 10.88.0.3)", "10.99.0.0/30 (10.99.0.1 to 10.99.0.2)",
			"all 4 addresses are assigned",
		} {
			if !strings.Contains(err.Error(), words) {
				t.Errorf("%v: doesn't say %q", err, words)
			}
		}
	}
	shortage := func() *ExhaustedError {
		t.Helper()
		s, err := Shortage()
		if err != nil {
			t.Fatal(err)
		}
		return s
	}
	if diff := cmp.Diff(&ExhaustedError{Ranges: ranges}, shortage(), byValue); diff != "" {
		t.Errorf("the shortage: %s", diff)
	}
	release(t, "c2", "10.99.0.1")
	if s := shortage(); s != nil {
		t.Errorf("10.99.0.1 is free, and the shortage goes on: %v", s)
	}
	if a := assignOne(t, "late", ranges...); a != "10.99.0.1" {
		t.Errorf("got %s, only 10.99.0.1 is free", a)
	}
}

func dual() []conf.Range {
	return []conf.Range{{
		Subnet: netip.MustParsePrefix("fd00:10:88::/64"), Gateway: netip.MustParseAddr("fd00:10:88::1"),
		RangeStart: netip.MustParseAddr("fd00:10:88::1"), RangeEnd: netip.MustParseAddr("fd00:10:88:0:ffff:ffff:ffff:ffff"),
	}, newRange(1, 3)}
}

// TestBothFamilies: a pod gets one address of each family, or no address if a family has no free address.
func TestBothFamilies(t *testing.T) {
	if !nodetest.Isolated(t) {
		return
	}
	var got []string
	for i := range 3 {
		id := fmt.Sprint("c", i)
		err := Assign(id, Request{Ranges: dual()}, func(addrs []endpoint.Address) error {
			for _, a := range addrs {
				got = append(got, fmt.Sprintf("%s %s %s", a.Addr, a.Subnet, a.Gateway))
			}
			return nil
		})
		var exhausted *ExhaustedError
		if i == 2 {
			if !errors.As(err, &exhausted) || strings.Contains(err.Error(), "fd00") {
				t.Errorf("%v, want one that says that IPv4 is exhausted", err)
			}
		} else if err != nil {
			t.Fatal(err)
		}
	}
	want := []string{
		"fd00:10:88::2 fd00:10:88::/64 fd00:10:88::1", "10.88.0.2 10.88.0.0/24 10.88.0.1",
		"fd00:10:88::3 fd00:10:88::/64 fd00:10:88::1", "10.88.0.3 10.88.0.0/24 10.88.0.1",
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Error(diff)
	}
	wantHolders(t, map[string]string{"fd00:10:88::2": "c0", "10.88.0.2": "c0", "fd00:10:88::3": "c1", "10.88.0.3": "c1"})
	release(t, "c0", "10.88.0.2")
	if got := assignOne(t, "c2", dual()...); got != "fd00:10:88::4" {
		t.Errorf("got %s, want fd00:10:88::4: what is exhausted holds up no other family's round", got)
	}
	if err := errors.Join(os.Remove(lastPath(dual()[:1])),
		os.Symlink("fd00:10:88::9%eth0", lastPath(dual()[:1]))); err != nil {
		t.Fatal(err)
	}
	release(t, "c1", "10.88.0.3")
	if got := assignOne(t, "c3", dual()...); got != "fd00:10:88::a" {
		t.Errorf("after one with a zone: got %s, want fd00:10:88::a", got)
	}
}

// TestAllAddressesOrNone: if one address of a request can't be assigned, the request's other address is released.
func TestAllAddressesOrNone(t *testing.T) {
	if !nodetest.Isolated(t) {
		return
	}
	for family, last := range map[string]string{"IPv4": lastPath(dual()[1:]), "IPv6": lastPath(dual()[:1])} {
		if err := os.MkdirAll(last+".tmp/in the way", 0o700); err != nil {
			t.Fatal(err)
		}
		recorded := false
		err := Assign("a", Request{Ranges: dual()}, func([]endpoint.Address) error { recorded = true; return nil })
		if err == nil || !recorded {
			t.Errorf("%s can't be assigned: %v, and it was recorded: %v", family, err, recorded)
		}
		wantHolders(t, map[string]string{})
		if err := os.RemoveAll(last + ".tmp"); err != nil {
			t.Fatal(err)
		}
	}
}

func TestOnlyTheHolderReleases(t *testing.T) {
	if !nodetest.Isolated(t) {
		return
	}
	release(t, "a", "10.88.0.2") // no error, although the directory of addresses is missing
	wantHolders(t, map[string]string{})
	a := assignOne(t, "a", newRange(1, 9))
	release(t, "b", a)
	release(t, "", a)
	wantHolders(t, map[string]string{a: "a"})
	for range 2 {
		release(t, "a", a)
	}
	wantHolders(t, map[string]string{})
}

// TestHoldersLeavesStrangersOut: other programs' files in the directory of addresses don't count as assigned.
func TestHoldersLeavesStrangersOut(t *testing.T) {
	if !nodetest.Isolated(t) {
		return
	}
	a := assignOne(t, "a", newRange(1, 9))
	for name, make := range map[string]func(string) error{
		"notes":     func(p string) error { return os.Symlink("x", p) },
		"10.88.0.7": func(p string) error { return os.WriteFile(p, nil, 0o600) },
	} {
		if err := make(addressesDir + "/" + name); err != nil {
			t.Fatal(err)
		}
	}
	wantHolders(t, map[string]string{a: "a"})
}

func TestAFailedRecordLeavesNothing(t *testing.T) {
	if !nodetest.Isolated(t) {
		return
	}
	full := errors.New("no space left on device")
	var recorded []netip.Addr
	for range 2 {
		err := Assign("a", Request{Ranges: []conf.Range{newRange(1, 9)}}, func(a []endpoint.Address) error {
			recorded = append(recorded, a[0].Addr)
			return full
		})
		if !errors.Is(err, full) {
			t.Fatalf("%v, want %v", err, full)
		}
	}
	wantHolders(t, map[string]string{})
	if got := assignOne(t, "b", newRange(1, 9)); got != "10.88.0.2" || recorded[0] != recorded[1] ||
		recorded[0].String() != got {
		t.Errorf("recorded %v, then got %s; want 10.88.0.2 each time", recorded, got)
	}
}

// TestACrashAfterTheRecord: after a crash in the function record, the address is free. If another attachment then gets
// the address, Release with the crashed attachment's ID does nothing.
func TestACrashAfterTheRecord(t *testing.T) {
	if !nodetest.Isolated(t) {
		return
	}
	ranges := []conf.Range{newRange(1, 9)}
	var recorded netip.Addr
	func() {
		defer func() { _ = recover() }()
		_ = Assign("crashed", Request{Ranges: ranges}, func(a []endpoint.Address) error {
			recorded = a[0].Addr
			panic("the process ends here")
		})
	}()
	wantHolders(t, map[string]string{})
	release(t, "crashed", recorded.String())
	if got := assignOne(t, "next", ranges...); got != recorded.String() {
		t.Errorf("got %s, want %s, which is free", got, recorded)
	}
	release(t, "crashed", recorded.String())
	wantHolders(t, map[string]string{recorded.String(): "next"})
}

func TestTheLastFileIsOnlyAHint(t *testing.T) {
	if !nodetest.Isolated(t) {
		return
	}
	ranges := []conf.Range{newRange(1, 6)}
	assigned := map[string]string{}
	for _, id := range []string{"a", "b"} {
		assigned[assignOne(t, id, ranges...)] = id
	}
	if err := os.Remove(lastPath(ranges)); err != nil {
		t.Fatal(err)
	}
	a := assignOne(t, "lost", ranges...)
	if a != "10.88.0.4" {
		t.Errorf("without the file: got %s, want 10.88.0.4, the first that is free", a)
	}
	release(t, "lost", a)
	for _, s := range []string{
		"/", "10.88.0", "10.88.0.4\n", "10.88.0.1", "10.88.0.3", "10.88.0.6", "10.88.0.200",
		"10.77.0.1", "255.255.255.255", "::ffff:10.88.0.4", "fe80::1%eth0",
	} {
		if err := errors.Join(os.Remove(lastPath(ranges)), os.Symlink(s, lastPath(ranges))); err != nil {
			t.Fatal(err)
		}
		a := assignOne(t, "c", ranges...)
		if assigned[a] != "" || a == "10.88.0.1" || !ranges[0].Subnet.Contains(netip.MustParseAddr(a)) {
			t.Errorf("after %q: got %s", s, a)
		}
		release(t, "c", a)
	}
	wantHolders(t, assigned)
	for range 2 { // files of other programs are in the way, at lastPath and at lastPath + ".tmp"
		for _, path := range []string{lastPath(ranges), lastPath(ranges) + ".tmp"} {
			if err := os.WriteFile(path+".new", []byte("10.88.0.5"), 0o600); err != nil {
				t.Fatal(err)
			}
			if err := os.Rename(path+".new", path); err != nil {
				t.Fatal(err)
			}
		}
		release(t, "c", assignOne(t, "c", ranges...))
	}
	if err := os.RemoveAll(lastDir); err != nil {
		t.Fatal(err)
	}
	assignOne(t, "d", ranges...)
}

func TestParallel(t *testing.T) {
	if !nodetest.Isolated(t) {
		return
	}
	const pods = 50
	ranges := []conf.Range{newRange(1, 30), newRange(40, 65)} // the ranges have 55 addresses
	locked := func(f func() error) {
		unlock, err := endpoint.Lock()
		if err != nil {
			t.Error(err)
			return
		}
		defer unlock()
		if err := f(); err != nil {
			t.Error(err)
		}
	}
	var owners sync.Map
	var wg sync.WaitGroup
	for i := range pods {
		wg.Go(func() {
			id := fmt.Sprintf("c%d:eth0", i)
			for range 10 {
				var got netip.Addr
				locked(func() error {
					return Assign(id, Request{Ranges: ranges}, func(a []endpoint.Address) error { got = a[0].Addr; return nil })
				})
				if other, loaded := owners.LoadOrStore(got, id); loaded {
					t.Errorf("%s is %s's and %s's", got, other, id)
				}
				owners.Delete(got)
				locked(func() error { return Release(id, got) })
			}
		})
	}
	wg.Wait()
	wantHolders(t, map[string]string{})
}

// TestRotate: rotate returns the same addresses in the same order as a simple version that rotates a list of addresses.
func TestRotate(t *testing.T) {
	rnd := rand.New(rand.NewPCG(1, 2))
	for range 5000 {
		ranges := randomRanges(rnd)
		var row []endpoint.Address
		for _, r := range ranges {
			for a := r.RangeStart; !r.RangeEnd.Less(a); a = a.Next() {
				if a != r.Gateway && !slices.ContainsFunc(r.Exclude, func(p netip.Prefix) bool { return p.Contains(a) }) {
					row = append(row, endpoint.Address{Addr: a, Subnet: r.Subnet, Gateway: r.Gateway})
				}
			}
		}
		last := netip.Addr{}
		switch rnd.IntN(4) {
		case 0: // no address was assigned yet
		case 1: // an address outside of the ranges, or in one of them by chance
			last = netip.AddrFrom4([4]byte{10, byte(rnd.IntN(5)), 0, byte(rnd.IntN(256))})
		default:
			if len(row) > 0 {
				last = row[rnd.IntN(len(row))].Addr
			}
		}
		next := slices.IndexFunc(row, func(a endpoint.Address) bool { return a.Addr == last }) + 1
		want := slices.Concat(row[next:], row[:next])
		var got []endpoint.Address
		for _, r := range rotate(runs(ranges), last) {
			for a := r.From(); a.IsValid() && !r.To().Less(a); a = a.Next() {
				got = append(got, endpoint.Address{Addr: a, Subnet: r.subnet, Gateway: r.gateway})
			}
		}
		if !slices.Equal(want, got) {
			t.Fatalf("ranges %+v, last %s: %s", ranges, last, cmp.Diff(want, got, byValue))
		}
	}
}

func randomRanges(rnd *rand.Rand) []conf.Range {
	gateways := map[netip.Prefix]netip.Addr{}
	ends := map[netip.Prefix]int{}
	var ranges []conf.Range
	for range 1 + rnd.IntN(4) {
		subnet := netip.PrefixFrom(netip.AddrFrom4([4]byte{10, byte(rnd.IntN(3)), 0, 240}), 28)
		host := func(n int) netip.Addr {
			return netip.AddrFrom4([4]byte{10, subnet.Addr().As4()[1], 0, byte(240 + n)})
		}
		start := ends[subnet] + 1 + rnd.IntN(3)
		if start > 14 {
			continue
		}
		end := start + rnd.IntN(15-start)
		ends[subnet] = end
		if _, ok := gateways[subnet]; !ok {
			gateways[subnet] = host(1 + rnd.IntN(14))
		}
		r := conf.Range{Subnet: subnet, Gateway: gateways[subnet], RangeStart: host(start), RangeEnd: host(end)}
		for range rnd.IntN(3) {
			r.Exclude = append(r.Exclude, netip.PrefixFrom(host(1+rnd.IntN(14)), 30+rnd.IntN(3)).Masked())
		}
		ranges = append(ranges, r)
	}
	rnd.Shuffle(len(ranges), func(i, j int) { ranges[i], ranges[j] = ranges[j], ranges[i] })
	return ranges
}

// TestAssignExternalLeavesAddressesOfUnreadableRecords: if an attachment's record can't be read, its address
// stays assigned, because its pod may be running.
func TestAssignExternalLeavesAddressesOfUnreadableRecords(t *testing.T) {
	if !nodetest.Isolated(t) {
		return
	}
	assigned := netip.MustParseAddr(assignOne(t, "c1:eth0", newRange(1, 9)))
	if err := os.MkdirAll("/run/weir/endpoints", 0o700); err != nil {
		t.Fatal(err)
	}
	record := "/run/weir/endpoints/c1:eth0.json"
	if err := os.WriteFile(record, []byte("{"), 0o600); err != nil {
		t.Fatal(err)
	}
	var other *AssignedError
	if err := AssignExternal("c2:eth0", assigned); !errors.As(err, &other) {
		t.Errorf("%v, want a AssignedError", err)
	}
	if err := os.Remove(record); err != nil {
		t.Fatal(err)
	}
	if err := AssignExternal("c2:eth0", assigned); err != nil {
		t.Errorf("of a record that is gone: %v", err)
	}
}
