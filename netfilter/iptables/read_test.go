package iptables

import (
	"errors"
	"fmt"
	"net/netip"
	"runtime"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/weir-net/weir/conf"
	"github.com/weir-net/weir/netfilter/ipset"
	"github.com/weir-net/weir/policy/ruleset"
	"github.com/weir-net/weir/test/nodetest"
)

// TestReadSet: if the kernel's set hasn't changed, readSet returns the known entries themselves, not a copy. Otherwise
// it returns the kernel's entries.
func TestReadSet(t *testing.T) {
	if !nodetest.Isolated(t) {
		return
	}
	d := driver(t, NFT)
	const name = "weir-x"
	entry := func(addr, comment string) ruleset.Entry {
		return ruleset.Entry{Element: ruleset.Element{Prefix: netip.MustParsePrefix(addr + "/32")}, Comment: comment}
	}
	var all []ruleset.Entry
	for i := range 500 { // too many for one message of the kernel
		all = append(all, entry(netip.AddrFrom4([4]byte{10, 0, byte(i >> 8), byte(i)}).String(), "default/pod"))
	}
	want := ruleset.EntriesOf(all...)
	for _, change := range [][]string{
		nil,
		{"add", name, "10.1.0.1"},
		{"del", name, "10.0.0.7"},
		{"add", name, "10.0.0.7", "comment", "default/other", "-exist"},
		{"add", name, "10.0.0.7", "-exist"}, // removes the comment
		{"swap", name, "weir-y"},            // swaps the set with one of the same size, in which one address differs
		{"rename", "weir-z", name},          // replaces the set by a set of another type
	} {
		for _, before := range []string{"written", "read"} {
			for set, entries := range map[string]ruleset.Entries{
				name: want, "weir-y": want.Without(all[0].Element).With(entry("10.1.0.1", "default/pod")), "weir-z": {},
			} {
				h := ipset.Header{Name: set, Type: ipset.HashIP, Family: conf.IPv4}
				if set == "weir-z" {
					h.Type = ipset.HashNet
				}
				if err := d.sets.Create(h); err != nil {
					t.Fatal(err)
				}
				for e := range entries.All() {
					c := ipset.Change{Set: set, Entry: ipset.Entry{Prefix: e.Prefix, Comment: e.Comment}}
					if err := ipset.Apply(c); err != nil {
						t.Fatal(err)
					}
				}
			}
			known := set{kind: ruleset.Addresses, family: conf.IPv4, entries: want}
			if before == "read" {
				var err error
				if known, err = d.readSet(name, known); err != nil || known.reading == nil {
					t.Fatalf("the set's list isn't remembered: %v", err)
				}
			}
			if len(change) > 0 {
				if change[0] == "rename" {
					nodetest.Run(t, "ipset", "destroy", name)
				}
				nodetest.Run(t, "ipset", change...)
			}
			if _, err := d.readSet("weir-none", known); !errors.Is(err, ipset.ErrNotExist) {
				t.Fatalf("a set that doesn't exist: %v", err)
			}
			now, err := d.readSet(name, known)
			if err != nil {
				t.Fatal(err)
			}
			same := now.kind == known.kind && now.entries.Same(want)
			if same != (change == nil) {
				t.Errorf("after ipset %q the %s set counts as unchanged: %v", change, before, same)
			}
			if known.reading != nil && (now.reading == known.reading) != (change == nil) {
				t.Errorf("after ipset %q the kernel's list has the same hash: %v", change, change != nil)
			}
			for _, was := range []set{{}, now} {
				again, err := d.readSet(name, was)
				if err != nil || again.kind != now.kind || !again.entries.Equal(now.entries) {
					t.Errorf("after ipset %q of the %s set another reading differs: %v", change, before, err)
				}
				if was.reading != nil && again.reading != was.reading {
					t.Errorf("after ipset %q the entries of the %s set are compared twice", change, before)
				}
			}
			for _, set := range []string{name, "weir-y", "weir-z"} {
				if err := d.sets.Destroy(set); err != nil {
					t.Fatal(err)
				}
			}
		}
	}
}

// TestRereadReadsLittle: Reread reads the set of all pods and the sets that have the address, but no other sets. So an
// ADD takes no longer on a node with thousands of sets.
func TestRereadReadsLittle(t *testing.T) {
	if !nodetest.Isolated(t) {
		return
	}
	d := driver(t, NFT)
	pods := conf.IPv4.Set(conf.PodsSet)
	if err := d.sets.Create(ipset.Header{Name: pods, Type: ipset.HashIP, Family: conf.IPv4}); err != nil {
		t.Fatal(err)
	}
	own, other := netip.MustParseAddr("10.0.0.1"), netip.MustParseAddr("10.0.0.2")
	for _, kind := range []ruleset.SetKind{ruleset.Addresses, ruleset.AddressPorts, ruleset.AddressLinks, numberedPods} {
		for _, tc := range []struct {
			has   netip.Addr
			reads bool
		}{{own, true}, {other, false}} {
			e := ruleset.Element{Prefix: netip.PrefixFrom(tc.has, 32)}
			if kind == ruleset.AddressPorts {
				e.Proto, e.Port = ruleset.TCP, 80
			}
			d.have = &state{sets: map[string]set{
				pods:         {kind: ruleset.Addresses, family: conf.IPv4},
				"weir-isn't": {kind: kind, family: conf.IPv4, entries: ruleset.EntriesOf(ruleset.Entry{Element: e})},
			}}
			changed := d.Reread(own)
			if reads := d.have == nil; reads != tc.reads || changed != reads { // the kernel lacks the set, so reading fails
				t.Errorf("a set of %s with %s is read for %s: %v", kind, tc.has, own, reads)
			}
		}
	}
	d.have = &state{sets: map[string]set{pods: {kind: ruleset.Addresses, family: conf.IPv4}}}
	if err := (ipset.PodSets{}).Deny("default/pod", own); err != nil {
		t.Fatal(err)
	}
	if !d.Reread(own) || d.have == nil {
		t.Error("Reread doesn't see that the plugin has added the address to the set of all pods")
	}
}

// BenchmarkReadSet measures the time to read an unchanged set of 10,000 pods' addresses, as a resync does. One part
// compares all entries, as a resync does after the driver's own changes. The other part compares only the hash of the
// kernel's list.
func BenchmarkReadSet(b *testing.B) {
	runtime.LockOSThread() // never unlocked, so that the thread and its network namespace end with the benchmark
	if err := unix.Unshare(unix.CLONE_NEWNET); err != nil {
		b.Fatal(err)
	}
	d, err := New(b.Context())
	if err != nil {
		b.Fatal(err)
	}
	defer d.Close()
	const name = "weir-x"
	if err := d.sets.Create(ipset.Header{Name: name, Type: ipset.HashIP, Family: conf.IPv4}); err != nil {
		b.Fatal(err)
	}
	var all []ipset.Change
	for i := range 10_000 {
		addr := netip.AddrFrom4([4]byte{10, 0, byte(i >> 8), byte(i)})
		all = append(all, ipset.Change{Set: name, Entry: ipset.Entry{
			Prefix: netip.PrefixFrom(addr, 32), Comment: fmt.Sprintf("tenant-%d/app-%d-5d8c7f9b4", i/100, i),
		}})
	}
	if err := ipset.Apply(all...); err != nil {
		b.Fatal(err)
	}
	known, err := d.readSet(name, set{})
	if err != nil {
		b.Fatal(err)
	}
	unread := known
	unread.reading = nil
	for how, was := range map[string]set{"compared": unread, "by hash": known} {
		b.Run(how, func(b *testing.B) {
			b.ReportAllocs()
			began := used(b)
			for b.Loop() {
				if now, err := d.readSet(name, was); err != nil || !now.entries.Same(known.entries) {
					b.Fatalf("the set counts as changed: %v", err)
				}
			}
			b.ReportMetric(float64((used(b)-began).Microseconds())/1000/float64(b.N), "ms-CPU/op")
		})
	}
}
