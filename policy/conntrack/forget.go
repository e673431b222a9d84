package conntrack

import (
	"errors"
	"fmt"
	"net/netip"

	"github.com/vishvananda/netlink/nl"
	"golang.org/x/sys/unix"
)

// Attributes and flags of a filter (Linux 5.8 and later): enum ctattr_filter of
// include/uapi/linux/netfilter/nfnetlink_conntrack.h, and CTA_FILTER_F_CTA_IP_SRC of net/netfilter/nf_internals.h.
const (
	ctaFilter           = 25
	ctaFilterOrigFlags  = 1
	ctaFilterReplyFlags = 2
	ctaFilterSrc        = 1 << 0
)

// Forget deletes the connections of addresses that are about to belong to another pod, so that none of the old one's is
// taken for one that was let through. The kernel looks for them, in a fraction of the time that sending all takes; but not
// for an IPv6 address, of which its filter lets through all others (ctnetlink_filter_match_tuple in
// net/netfilter/nf_conntrack_netlink.c takes the 0 of ipv6_addr_cmp for a difference; seen on 6.18).
//
// Equivalent to: conntrack -D -s ADDR; conntrack -D -r ADDR
func Forget(addrs ...netip.Addr) error {
	var errs []error
	for _, a := range addrs {
		if a.Is6() {
			errs = append(errs, forget(a, nil))
			continue
		}
		for _, side := range []struct{ tuple, flags int }{{nl.CTA_TUPLE_ORIG, ctaFilterOrigFlags}, {nl.CTA_TUPLE_REPLY, ctaFilterReplyFlags}} {
			errs = append(errs, forget(a, from(a, side.tuple, side.flags)))
		}
	}
	return errors.Join(errs...)
}

// forget deletes the connections of the address among those that the filter lets through: an older kernel doesn't know
// filters, and tells of all.
func forget(a netip.Addr, filter []*nl.RtAttr) error {
	var errs []error
	family := uint8(unix.AF_INET)
	if a.Is6() {
		family = unix.AF_INET6
	}
	for c, err := range dump(family, filter...) {
		if err == nil && (c.Src == a || c.Dst == a) {
			err = c.send(nl.IPCTNL_MSG_CT_DELETE)
		}
		if err != nil && !errors.Is(err, unix.ENOENT) {
			errs = append(errs, fmt.Errorf("delete the connections of %s: %w", a, err))
		}
	}
	return errors.Join(errs...)
}

// from is the filter of connections whose packets in one direction come from the IPv4 address.
func from(a netip.Addr, tuple, flags int) []*nl.RtAttr {
	t := nl.NewRtAttr(tuple|unix.NLA_F_NESTED, nil)
	t.AddRtAttr(nl.CTA_TUPLE_IP|unix.NLA_F_NESTED, nil).AddRtAttr(nl.CTA_IP_V4_SRC, a.AsSlice())
	f := nl.NewRtAttr(ctaFilter|unix.NLA_F_NESTED, nil)
	f.AddRtAttr(flags, nl.Uint32Attr(ctaFilterSrc))
	return []*nl.RtAttr{t, f}
}
