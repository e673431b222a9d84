package policy

import (
	"fmt"
	"net/netip"
	"strings"

	"go4.org/netipx"
	networkingv1 "k8s.io/api/networking/v1"

	"github.com/weir-net/weir/conf"
	"github.com/weir-net/weir/policy/ruleset"
)

func parseIPBlock(block networkingv1.IPBlock) (prefixes []netip.Prefix, field string, err error) {
	cidr, err := netip.ParsePrefix(block.CIDR)
	if err != nil {
		return nil, "ipBlock.cidr", fmt.Errorf("%q is no CIDR", block.CIDR)
	}
	if err := notMapped(cidr); err != nil {
		return nil, "ipBlock.cidr", err
	}
	if len(block.Except) == 0 {
		return []netip.Prefix{cidr.Masked()}, "", nil
	}
	var b netipx.IPSetBuilder
	b.AddPrefix(cidr.Masked())
	for i, s := range block.Except {
		field := fmt.Sprintf("ipBlock.except[%d]", i)
		except, err := netip.ParsePrefix(s)
		if err != nil {
			return nil, field, fmt.Errorf("%q is no CIDR", s)
		}
		if cidr.Addr().Is4() {
			except = unmapped(except)
		}
		if except.Addr().BitLen() != cidr.Addr().BitLen() || !cidr.Masked().Contains(except.Addr()) ||
			except.Bits() < cidr.Bits() {
			return nil, field, fmt.Errorf("%s is not within %s", s, block.CIDR)
		}
		b.RemovePrefix(except.Masked())
	}
	set, err := b.IPSet()
	if err != nil {
		return nil, "ipBlock", err
	}
	for _, p := range set.Prefixes() {
		if p.Addr().Is4In6() {
			continue
		}
		prefixes = append(prefixes, p)
	}
	return prefixes, "", nil
}

// notMapped refuses an IPv4-mapped IPv6 network, because no packet has such an address. An API server accepts such
// networks unless its feature StrictIPCIDRValidation is on.
func notMapped(p netip.Prefix) error {
	if v4 := unmapped(p); v4 != p {
		return fmt.Errorf("%s is an IPv4 network written as an IPv6 network: write %s", p, v4)
	}
	return nil
}

// unmapped returns the IPv4 network of an IPv4-mapped IPv6 network, and other networks as they are. parseIPBlock needs
// it, because an API server accepts an IPv4-mapped except in an IPv4 CIDR.
func unmapped(p netip.Prefix) netip.Prefix {
	if a := p.Masked().Addr(); a.Is4In6() {
		return netip.PrefixFrom(a.Unmap(), p.Bits()-96)
	}
	return p
}

func describeIPBlock(block networkingv1.IPBlock) string {
	if len(block.Except) == 0 {
		return block.CIDR
	}
	return block.CIDR + " except " + few(block.Except)
}

type block struct {
	words    string
	prefixes []netip.Prefix
}

func (p *parser) blockPeer(field string, blocks []block) peer {
	words := make([]string, len(blocks))
	all := make([]ruleset.Entry, 0, len(blocks))
	for i, b := range blocks {
		words[i] = b.words
		for _, prefix := range b.prefixes {
			all = append(all, entry(prefix, b.words))
		}
	}
	result := peer{field: field, comment: p.comment(field, few(words))}
	if all = ruleset.Order(all); len(all) == 0 {
		return result
	}
	// The loop makes the same text as the function key, with less memory. Networks and descriptions need no escapes in
	// JSON.
	text, four := p.text[:0], 0
	text = append(text, '[')
	for _, e := range all {
		text = append(text, '"')
		start := len(text)
		text = e.Prefix.AppendTo(text)
		if e.Comment != string(text[start:]) { // so ipBlocks with different descriptions have different sets
			text = append(append(text, ' '), e.Comment...)
		}
		text = append(text, `",`...)
		if conf.FamilyOf(e.Prefix.Addr()) == conf.IPv4 { // the networks of IPv4 come first
			four++
		}
	}
	text[len(text)-1] = ']'
	result.set, p.text = conf.BlockSets+ruleset.Hash(text), text
	result.networks[conf.IPv4] = ruleset.EntriesOf(all[:four]...)
	result.networks[conf.IPv6] = ruleset.EntriesOf(all[four:]...)
	return result
}

func few(list []string) string {
	const named = 4
	if len(list) <= named {
		return strings.Join(list, ", ")
	}
	return fmt.Sprintf("%s and %d more", strings.Join(list[:named], ", "), len(list)-named)
}
