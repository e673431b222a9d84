package policy

import (
	"net"
	"net/netip"
	"slices"
	"strings"
	"testing"

	networkingv1 "k8s.io/api/networking/v1"
)

// TestIPBlock: an ipBlock has the networks of its CIDR without those of its excepts. In an IPv4 CIDR, API servers and
// weir accept an except that is an IPv4 network written as an IPv6 network. But weir refuses an except that is wider
// than the CIDR.
func TestIPBlock(t *testing.T) {
	for _, tc := range []struct {
		cidr, except string
		want         string // the networks, or the field with an error
	}{
		{"10.0.0.0/8", "", "10.0.0.0/8"},
		{"10.1.2.3/8", "10.128.7.7/9", "10.0.0.0/9"},
		{"10.0.0.0/8", "::ffff:10.128.0.0/105", "10.0.0.0/9"},
		{"10.0.0.0/8", "::ffff:10.0.0.0/104", ""},
		{"10.0.0.0/8", "::ffff:a80:0/105", "10.0.0.0/9"}, // 10.128.0.0/9, written as an IPv6 network
		{"10.0.0.0/8", "10.128.0.0/9 ::ffff:10.64.0.0/106", "10.0.0.0/10"},
		{"0.0.0.0/0", "::ffff:0:0/96", ""},
		{"10.0.0.0/8", "::ffff:11.0.0.0/112", "ipBlock.except[0]"},
		{"10.0.0.0/8", "::ffff:10.0.0.0/103", "ipBlock.except[0]"}, // wider than the CIDR; API servers accept it
		{"10.0.0.0/8", "::ffff:10.0.0.0/95", "ipBlock.except[0]"},
		{"10.0.0.0/8", "::ffff:10.0.0.0/8", "ipBlock.except[0]"},
		{"10.0.0.0/8", "fd00::/16", "ipBlock.except[0]"},
		{"fd00::/8", "10.0.0.0/8", "ipBlock.except[0]"},
		{"fd00::/8", "::ffff:10.0.0.0/104", "ipBlock.except[0]"},
		// The except has all IPv4-mapped addresses. No packet has such an address, so the except changes nothing.
		{"::ffff:0:0/95", "::ffff:0:0/96", "::fffe:0:0/96"},
		{"::ffff:10.0.0.0/104", "", "ipBlock.cidr"},
		{"::ffff:10.0.0.0/104", "::ffff:10.0.0.0/112", "ipBlock.cidr"},
	} {
		block := networkingv1.IPBlock{CIDR: tc.cidr, Except: strings.Fields(tc.except)}
		prefixes, field, err := parseIPBlock(block)
		got := make([]string, len(prefixes))
		for i, p := range prefixes {
			got[i] = p.String()
		}
		if all := strings.Join(got, " ") + field; all != tc.want || (err != nil) != (field != "") {
			t.Errorf("%s except %q: %q, %v; want %q", tc.cidr, tc.except, all, err, tc.want)
		}
		if _, cidr, _ := net.ParseCIDR(tc.cidr); cidr.IP.To4() != nil && field != "ipBlock.cidr" &&
			slices.ContainsFunc(block.Except, func(s string) bool { return accepts(cidr, s) }) && err != nil {
			t.Errorf("%s except %q: %v, and an API server accepts it", tc.cidr, tc.except, err)
		}
	}
}

// TestEqualNetworks: two ipBlocks with the same networks and different texts have different sets. Otherwise the
// comments of a shared set would depend on which policy came first.
func TestEqualNetworks(t *testing.T) {
	set := func(cidr string, except ...string) string {
		b := networkingv1.IPBlock{CIDR: cidr, Except: except}
		prefixes, _, err := parseIPBlock(b)
		if err != nil {
			t.Fatal(err)
		}
		p := parser{}
		return p.blockPeer("from[0]", []block{{words: describeIPBlock(b), prefixes: prefixes}}).set
	}
	if a, b := set("10.0.0.0/9"), set("10.0.0.0/8", "10.128.0.0/9"); a == b {
		t.Errorf("both have the set %s", a)
	}
	if a, b := set("10.0.0.0/9"), set("10.0.0.0/9"); a != b {
		t.Errorf("equal blocks have the sets %s and %s", a, b)
	}
}

// accepts returns true if an API server accepts the except and the except isn't wider than cidr. The server's checks
// are in ValidateIPBlock (k8s.io/kubernetes, package apis/networking/validation).
func accepts(cidr *net.IPNet, except string) bool {
	_, inner, err := net.ParseCIDR(except)
	if err != nil {
		return false
	}
	long, bits := inner.Mask.Size()
	short, _ := cidr.Mask.Size()
	// A mapped except can be wider than cidr. The server accepts it, because it compares the prefix lengths as they are
	// written (for example, 120 with 30).
	wider := bits == 128 && long-96 < short
	return cidr.Contains(inner.IP) && short < long && !wider
}

// TestUnmapped: unmapped turns a network of IPv4-mapped addresses into the IPv4 network. It returns other networks
// unchanged, also a network that has IPv4-mapped addresses and other addresses (::ffff:0:0/95).
func TestUnmapped(t *testing.T) {
	for in, want := range map[string]string{
		"::ffff:192.0.2.7/128": "192.0.2.7/32", "::ffff:0:0/96": "0.0.0.0/0", "::ffff:0:0/95": "::ffff:0.0.0.0/95",
		"192.0.2.0/24": "192.0.2.0/24", "2001:db8::/32": "2001:db8::/32",
	} {
		if got := unmapped(netip.MustParsePrefix(in)).String(); got != want {
			t.Errorf("%s: %s, want %s", in, got, want)
		}
	}
}
