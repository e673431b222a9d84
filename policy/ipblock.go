package policy

import (
	"fmt"
	"net/netip"
	"strings"

	"go4.org/netipx"
	networkingv1 "k8s.io/api/networking/v1"
)

// parseIPBlock returns the prefixes that are in cidr and in none of the excepts, as few as possible. ipset's hash:net
// has no /0, so that one comes in two halves. No IPv4 address in it: no prefixes, and no error.
func parseIPBlock(block networkingv1.IPBlock) (prefixes []netip.Prefix, field string, err error) {
	cidr, err := netip.ParsePrefix(block.CIDR)
	if err != nil {
		return nil, "ipBlock.cidr", fmt.Errorf("%q is no CIDR", block.CIDR)
	}
	var b netipx.IPSetBuilder
	b.AddPrefix(cidr.Masked())
	for i, s := range block.Except {
		field := fmt.Sprintf("ipBlock.except[%d]", i)
		except, err := netip.ParsePrefix(s)
		if err != nil {
			return nil, field, fmt.Errorf("%q is no CIDR", s)
		}
		if except.Addr().BitLen() != cidr.Addr().BitLen() || !cidr.Masked().Contains(except.Addr()) || except.Bits() < cidr.Bits() {
			return nil, field, fmt.Errorf("%s is not within %s", s, block.CIDR)
		}
		b.RemovePrefix(except.Masked())
	}
	set, err := b.IPSet()
	if err != nil {
		return nil, "ipBlock", err
	}
	for _, p := range set.Prefixes() {
		if !p.Addr().Is4() {
			continue
		}
		if p.Bits() == 0 {
			half := netip.PrefixFrom(p.Addr(), 1)
			prefixes = append(prefixes, half, netip.PrefixFrom(netipx.PrefixLastIP(half).Next(), 1))
			continue
		}
		prefixes = append(prefixes, p)
	}
	return prefixes, "", nil
}

func describeIPBlock(block networkingv1.IPBlock) string {
	if len(block.Except) == 0 {
		return block.CIDR
	}
	return block.CIDR + " except " + strings.Join(block.Except, ", ")
}
