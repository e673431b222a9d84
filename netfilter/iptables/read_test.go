package iptables

import (
	"errors"
	"net/netip"
	"testing"

	"github.com/weir-net/weir/conf"
	"github.com/weir-net/weir/netfilter/ipset"
	"github.com/weir-net/weir/policy/ruleset"
	"github.com/weir-net/weir/test/nodetest"
)

// TestReadSet: if the kernel's set hasn't changed, readSet returns the known entries and no copy of them. Otherwise it
// returns the kernel's entries.
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
	for i := range 500 { // more than one answer of the kernel has room for
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
		{"rename", "weir-z", name},          // replaces the set by one of another type
	} {
		known := set{ruleset.Addresses, conf.IPv4, want}
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
			t.Errorf("after ipset %q the set counts as unchanged: %v", change, same)
		}
		if again, err := d.readSet(name, set{}); err != nil || !again.entries.Equal(now.entries) {
			t.Errorf("after ipset %q a driver that knew nothing reads something else: %v", change, err)
		}
		for _, set := range []string{name, "weir-y", "weir-z"} {
			if err := d.sets.Destroy(set); err != nil {
				t.Fatal(err)
			}
		}
	}
}

// TestRereadReadsLittle: of sets that don't have the address, Reread reads only the set of all pods. So an ADD costs
// the same on a node with thousands of sets.
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
				pods:         {ruleset.Addresses, conf.IPv4, ruleset.Entries{}},
				"weir-isn't": {kind, conf.IPv4, ruleset.EntriesOf(ruleset.Entry{Element: e})},
			}}
			changed := d.Reread(own)
			if reads := d.have == nil; reads != tc.reads || changed != reads { // the kernel doesn't have the set
				t.Errorf("a set of %s with %s is read for %s: %v", kind, tc.has, own, reads)
			}
		}
	}
	d.have = &state{sets: map[string]set{pods: {ruleset.Addresses, conf.IPv4, ruleset.Entries{}}}}
	if err := (ipset.PodSets{}).Deny("default/pod", own); err != nil {
		t.Fatal(err)
	}
	if !d.Reread(own) || d.have == nil {
		t.Error("Reread doesn't see that the plugin has added the address to the set of all pods")
	}
}
