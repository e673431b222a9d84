package ipam

import (
	"errors"
	"fmt"
	"math/rand/v2"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"testing"
	"time"

	"github.com/weir-net/weir/conf"
	"github.com/weir-net/weir/endpoint"
	"github.com/weir-net/weir/test/nodetest"
)

func wide() conf.Range {
	return conf.Range{
		Subnet: netip.MustParsePrefix("10.88.0.0/16"), Gateway: netip.MustParseAddr("10.88.0.1"),
		RangeStart: netip.MustParseAddr("10.88.0.1"), RangeEnd: netip.MustParseAddr("10.88.255.254"),
	}
}

// assignAll makes the addresses' links and then the bitmaps, because calls of Assign would take longer.
func assignAll(t testing.TB, addrs []netip.Addr) {
	t.Helper()
	if err := errors.Join(os.MkdirAll(addressesDir, 0o700), os.MkdirAll(lastDir, 0o700)); err != nil {
		t.Fatal(err)
	}
	for i, a := range addrs {
		if err := os.Symlink(fmt.Sprintf("c%d:eth0", i), linkPath(a)); err != nil {
			t.Fatal(err)
		}
	}
	if err := (hint{}).rebuild(); err != nil {
		t.Fatal(err)
	}
}

func row(ranges ...conf.Range) (all []netip.Addr) {
	for _, r := range runs(ranges) {
		for a := r.From(); !r.To().Less(a); a = a.Next() {
			all = append(all, a)
		}
	}
	return all
}

// TestCostDoesNotGrow: with 60,000 or more assigned addresses, Assign and Release take at most three times as long as
// with 10 assigned addresses, plus 100 microseconds.
func TestCostDoesNotGrow(t *testing.T) {
	if !nodetest.Isolated(t) {
		return
	}
	all := row(wide())
	scattered := slices.Clone(all)
	rand.New(rand.NewPCG(1, 2)).Shuffle(len(scattered),
		func(i, j int) { scattered[i], scattered[j] = scattered[j], scattered[i] })
	var few time.Duration
	for _, tc := range []struct {
		name string
		used []netip.Addr
		last netip.Addr
	}{
		{"10 in use", all[:10], all[9]},
		{"60,000 in use, in a row before the free ones", all[:60000], netip.Addr{}},
		{"60,000 in use, scattered", scattered[:60000], all[100]},
		{"all but the last in use", all[:len(all)-1], netip.Addr{}},
		{"all but the one before the last in use", slices.Concat(all[:300], all[301:]), all[300]},
	} {
		if err := errors.Join(os.RemoveAll(endpoint.Dir), os.RemoveAll(lastDir)); err != nil {
			t.Fatal(err)
		}
		assignAll(t, tc.used)
		last := lastPath([]conf.Range{wide()})
		var took []time.Duration
		for range 501 {
			if err := os.Remove(last); err != nil && !os.IsNotExist(err) {
				t.Fatal(err)
			}
			if tc.last.IsValid() { // Assign begins with the address after the last assigned one
				if err := os.Symlink(tc.last.String(), last); err != nil {
					t.Fatal(err)
				}
			}
			began := time.Now()
			var got netip.Addr
			if err := Assign("new:eth0", Request{Ranges: []conf.Range{wide()}},
				func(a []endpoint.Address) error { got = a[0].Addr; return nil }); err != nil {
				t.Fatal(err)
			}
			if err := Release("new:eth0", got); err != nil {
				t.Fatal(err)
			}
			if took = append(took, time.Since(began)); took[len(took)-1] > time.Second {
				t.Fatalf("%s: it took %s", tc.name, took[len(took)-1])
			}
		}
		slices.Sort(took)
		median := took[len(took)/2] // not the mean, because other work on the machine makes some calls slower
		began := time.Now()
		if exhausted([]conf.Range{wide()}) {
			t.Errorf("%s: the range is full", tc.name)
		}
		t.Logf("%s: assign and release %s (median), full %s", tc.name, median, time.Since(began))
		if few == 0 {
			few = median
		}
		if median > 3*few+100*time.Microsecond { // reading 60,000 links takes 60 ms
			t.Errorf("%s: %s, but %s with 10 in use", tc.name, median, few)
		}
	}
}

func TestFirstClear(t *testing.T) {
	rnd := rand.New(rand.NewPCG(3, 4))
	for range 300 {
		data := make([]byte, blockBytes)
		density := rnd.IntN(256)
		for i := range data {
			if data[i] = 0xff; rnd.IntN(256) > density {
				data[i] = byte(rnd.IntN(256))
			}
		}
		from := rnd.IntN(blockSize + 1)
		want := from
		for want < blockSize && data[want/8]&(1<<(want%8)) != 0 {
			want++
		}
		if got := firstClear(data, from); got != want {
			t.Fatalf("from %d: got %d, want %d", from, got, want)
		}
	}
	p := block(netip.MustParseAddr("fd00::1:8005"))
	if a := at(p, index(netip.MustParseAddr("fd00::1:8005"))); a.String() != "fd00::1:8005" ||
		p.String() != "fd00::1:8000/113" {
		t.Errorf("%s in %s", a, p)
	}
}

// TestTheBitmapsAreOnlyAHint: if the bitmaps are lost or wrong, no address is assigned twice, and every free address
// can be assigned.
func TestTheBitmapsAreOnlyAHint(t *testing.T) {
	if !nodetest.Isolated(t) {
		return
	}
	ranges := []conf.Range{newRange(1, 9)} // the range has eight addresses
	path := blockPath(block(ranges[0].RangeStart))
	for name, harm := range map[string]func() error{
		"none":              func() error { return nil },
		"lost":              func() error { return os.RemoveAll(mapsDir) },
		"one lost":          func() error { return os.Remove(path) },
		"cut off":           func() error { return os.Truncate(path, 0) },
		"all look assigned": func() error { return os.WriteFile(path, slices.Repeat([]byte{0xff}, blockBytes), 0o600) },
		"too long":          func() error { return os.WriteFile(path, slices.Repeat([]byte{0xff}, 3*blockBytes), 0o600) },
		"a directory":       func() error { return errors.Join(os.Remove(path), os.MkdirAll(path+"/x", 0o700)) },
		"no directory":      func() error { return errors.Join(os.RemoveAll(mapsDir), os.WriteFile(mapsDir, nil, 0o600)) },
		"half made":         func() error { return errors.Join(os.RemoveAll(mapsDir), os.MkdirAll(mapsDir+".tmp/x", 0o700)) },
		"a link was lost":   func() error { return os.Remove(linkPath(netip.MustParseAddr("10.88.0.3"))) },
	} {
		if err := errors.Join(os.RemoveAll(endpoint.Dir), os.RemoveAll(lastDir)); err != nil {
			t.Fatal(err)
		}
		assigned := map[string]bool{}
		for i := range 4 {
			assigned[assignOne(t, fmt.Sprint("before", i), ranges...)] = true
		}
		if err := harm(); err != nil {
			t.Fatal(err)
		}
		want := 8
		if name == "a link was lost" {
			delete(assigned, "10.88.0.3")
		}
		release(t, "before0", "10.88.0.2")
		delete(assigned, "10.88.0.2")
		for i := 0; len(assigned) < want; i++ {
			a := assignOne(t, fmt.Sprint("after", i), ranges...)
			if assigned[a] {
				t.Fatalf("%s: %s is given out twice", name, a)
			}
			assigned[a] = true
		}
		for range 2 {
			err := Assign("late", Request{Ranges: ranges}, func([]endpoint.Address) error { return nil })
			if exhausted := (*ExhaustedError)(nil); !errors.As(err, &exhausted) {
				t.Errorf("%s: all are assigned, but %v", name, err)
			}
			if shortage, err := Shortage(); err != nil || shortage == nil {
				t.Errorf("%s: all are assigned, but the shortage is: %v, %v", name, shortage, err)
			}
		}
	}
}

// TestKilledAnywhere: if the process is killed after it has changed only the link or only the bit of an address, the
// address counts as assigned. After Release, the address can be assigned again.
func TestKilledAnywhere(t *testing.T) {
	if !nodetest.Isolated(t) {
		return
	}
	a := netip.MustParseAddr("10.88.0.2")
	ranges := []conf.Range{newRange(1, 3)} // the address a, and one other address
	for name, killed := range map[string]func(){
		"Reserve, before the bit": func() { _ = os.Symlink("killed", linkPath(a)) },
		"Release, before the link": func() {
			assignOne(t, "killed", ranges...)
			if err := (hint{}).unmark(a); err != nil {
				t.Fatal(err)
			}
		},
	} {
		if err := errors.Join(os.RemoveAll(endpoint.Dir), os.RemoveAll(lastDir)); err != nil {
			t.Fatal(err)
		}
		release(t, "x", assignOne(t, "x", newRange(9, 9))) // so that all directories are there
		killed()
		if got := assignOne(t, "next", ranges...); got != "10.88.0.3" {
			t.Errorf("%s: got %s, which is assigned", name, got)
		}
		release(t, "killed", a.String())
		if got := assignOne(t, "last", ranges...); got != a.String() {
			t.Errorf("%s: got %s, want %s, which was freed", name, got, a)
		}
	}
}

// TestTheBitmapsFollow: assigned addresses have a set bit, and released addresses have a clear bit.
func TestTheBitmapsFollow(t *testing.T) {
	if !nodetest.Isolated(t) {
		return
	}
	r := newRange(1, 4)
	free := func() (all []string) {
		for a := range (hint{}).free(runs([]conf.Range{r})[0].IPRange) {
			all = append(all, a.String())
		}
		return all
	}
	a, b := assignOne(t, "a", r), assignOne(t, "b", r)
	if got := free(); !slices.Equal(got, []string{"10.88.0.4"}) {
		t.Errorf("with %s and %s assigned: %v look free", a, b, got)
	}
	release(t, "a", a)
	if got := free(); !slices.Equal(got, []string{a, "10.88.0.4"}) {
		t.Errorf("after %s was freed: %v look free", a, got)
	}
}

func TestAskedFor(t *testing.T) {
	if !nodetest.Isolated(t) {
		return
	}
	want := func(id string, requested ...string) ([]string, error) {
		r := Request{Ranges: dual()}
		for _, s := range requested {
			r.Addresses = append(r.Addresses, netip.MustParseAddr(s))
		}
		var got []string
		err := Assign(id, r, func(addrs []endpoint.Address) error {
			for _, a := range addrs {
				got = append(got, a.Addr.String())
			}
			return nil
		})
		return got, err
	}
	for _, tc := range []struct {
		asked, got []string
	}{
		{[]string{"10.88.0.3", "fd00:10:88::99"}, []string{"fd00:10:88::99", "10.88.0.3"}},
		{nil, []string{"fd00:10:88::2", "10.88.0.2"}}, // a requested address doesn't change which address comes next
	} {
		got, err := want("a", tc.asked...)
		if err != nil || !slices.Equal(got, tc.got) {
			t.Errorf("asked for %v: got %v, %v; want %v", tc.asked, got, err, tc.got)
		}
	}
	got, err := want("b", "10.88.0.3")
	var assigned *AssignedError
	if !errors.As(err, &assigned) || assigned.Owner != "a" || len(got) > 0 {
		t.Errorf("asked for one that a holds: %v, %v", got, err)
	}
}

func TestTake(t *testing.T) {
	if !nodetest.Isolated(t) {
		return
	}
	own, other := netip.MustParseAddr(assignOne(t, "c1:eth0", newRange(1, 9))), netip.MustParseAddr("10.1.0.2")
	for _, e := range []endpoint.Endpoint{
		{ContainerID: "c1", IfName: "eth0", MAC: "0a:58:0a:58:00:02"},
		{ContainerID: "c2", IfName: "eth0", Chained: true},
	} {
		if err := e.Save(); err != nil {
			t.Fatal(err)
		}
	}
	if err := AssignExternal("c2:eth0", own); err == nil {
		t.Error("it took an address that one of weir's own pods has")
	}
	for range 2 {
		for _, id := range []string{"c2:eth0", "c3:eth0"} {
			if err := AssignExternal(id, other); err != nil {
				t.Fatal(err)
			}
			wantHolders(t, map[string]string{own.String(): "c1:eth0", other.String(): id})
		}
	}
	release(t, "c2:eth0", other.String())
	release(t, "c3:eth0", other.String())
	wantHolders(t, map[string]string{own.String(): "c1:eth0"})
	if _, err := os.Stat(filepath.Join(mapsDir, "10.1.0.0")); err != nil {
		t.Error(err)
	}
}
