package conntrack

import (
	"errors"
	"net/netip"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/vishvananda/netlink/nl"
	"golang.org/x/sys/unix"

	"github.com/weir-net/weir/test/nodetest"
)

// TestForget: each method of Delete deletes the connections of the given addresses, and no others.
func TestForget(t *testing.T) {
	if !nodetest.Isolated(t) {
		return
	}
	address, six := netip.MustParseAddr("10.88.0.2"), netip.MustParseAddr("fd00:10:88::2")
	for name, forget := range map[string]func() error{
		"as ever": func() error { return Delete(address, six) },
		"many":    func() error { return Delete(address, six, netip.MustParseAddr("10.88.0.99")) },
		// Only Linux 6.12 and later can delete connections by a filter.
		"at once": func() error {
			return errors.Join(deleteByFilter([]netip.Addr{address}), deleteByList([]netip.Addr{six}, nil))
		},
		"filtered": func() error { return errors.Join(deleteByFilteredList(address), deleteByList([]netip.Addr{six}, nil)) },
		"walked": func() error {
			return errors.Join(deleteByList([]netip.Addr{address}, nil), deleteByList([]netip.Addr{six}, nil))
		},
	} {
		nodetest.Run(t, "conntrack", "-F")
		keep := []string{
			"-p udp -s 10.88.0.4 -d 10.88.0.3 --sport 4000 --dport 53 -t 7000",
			"-p tcp -s 10.88.0.20 -d 10.88.0.3 --sport 4000 --dport 53 --state ESTABLISHED -t 7000",
			"-p udp -s fd00:10:88::20 -d fd00:10:88::3 --sport 4000 --dport 53 -t 7000",
		}
		for _, entry := range append([]string{
			"-p udp -s 10.88.0.2 -d 10.88.0.3 --sport 4000 --dport 53 -t 7000",
			"-p tcp -s 10.88.0.3 -d 10.88.0.2 --sport 4000 --dport 80 --state ESTABLISHED -t 7000",
			"-p tcp -s 192.0.2.1 -d 192.0.2.2 -r 10.88.0.2 -q 192.0.2.1 --sport 4001 --dport 80 --reply-port-src 8080 " +
				"--reply-port-dst 4001 --state ESTABLISHED -t 7000",
			"-p icmp -s 10.88.0.2 -d 192.0.2.1 --icmp-type 8 --icmp-code 0 --icmp-id 7 -t 7000",
			"-p udp -s fd00:10:88::2 -d fd00:10:88::3 --sport 4000 --dport 53 -t 7000",
			"-p tcp -s fd00:10:88::3 -d fd00:10:88::2 --sport 4000 --dport 80 --state ESTABLISHED -t 7000",
			"-p tcp -s 2001:db8::1 -d 2001:db8::2 -r fd00:10:88::2 -q 2001:db8::1 --sport 4001 --dport 80 " +
				"--reply-port-src 8080 --reply-port-dst 4001 --state ESTABLISHED -t 7000",
			"-p tcp -s fd00:10:88::2 -d fd00:99::1 -r fd00:10:88::2 -q fd00:10:88::1 --sport 4002 --dport 80 " +
				"--reply-port-src 80 --reply-port-dst 4002 --state TIME_WAIT -t 7000",
			"-p tcp -s 10.88.0.2 -d 10.99.0.1 -r 10.88.0.2 -q 10.88.0.1 --sport 4002 --dport 80 --reply-port-src 80 " +
				"--reply-port-dst 4002 --state TIME_WAIT -t 7000",
			"-p icmpv6 -s fd00:10:88::2 -d 2001:db8::1 --icmpv6-type 128 --icmpv6-code 0 --icmpv6-id 7 -t 7000",
			"-w 5 -p udp -s 10.88.0.2 -d 10.88.0.3 --sport 4000 --dport 53 -t 7000",
			"-w 5 -p udp -s fd00:10:88::2 -d fd00:10:88::3 --sport 4000 --dport 53 -t 7000",
		}, keep...) {
			nodetest.Run(t, "conntrack", append([]string{"-I"}, strings.Fields(entry)...)...)
		}
		if err := forget(); err != nil {
			t.Errorf("%s: %v", name, err)
		}
		var left []string
		for c, err := range All() {
			if err != nil {
				t.Fatal(err)
			}
			left = append(left, c.Src.String()+" "+c.Dst.String())
		}
		slices.Sort(left)
		if diff := cmp.Diff([]string{"10.88.0.20 10.88.0.3", "10.88.0.4 10.88.0.3", "fd00:10:88::20 fd00:10:88::3"},
			left); diff != "" {
			t.Errorf("%s: left: %s", name, diff)
		}
	}
	// This checks that the kernel filters its list: without a filter, the cases above would pass too.
	for c, err := range dump(unix.AF_INET,
		sourceFilter(netip.MustParseAddr("10.88.0.4"), nl.CTA_TUPLE_ORIG, ctaFilterOrigFlags)...) {
		if err != nil {
			t.Fatal(err)
		}
		if c.Src.String() != "10.88.0.4" {
			t.Errorf("the filter for what 10.88.0.4 opened lets through what %s did", c.Src)
		}
	}
}

func FuzzParse(f *testing.F) {
	f.Add([]byte{2, 0, 0, 0, 8, 0, 1, 0x80, 4, 0, 1, 0})
	f.Add([]byte{2, 0, 0, 0, 3, 0, 1, 0})
	f.Fuzz(func(_ *testing.T, msg []byte) { parse(msg) })
}
