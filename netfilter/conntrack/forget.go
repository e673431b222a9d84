package conntrack

import (
	"errors"
	"fmt"
	"net/netip"

	"github.com/vishvananda/netlink/nl"
	"github.com/vishvananda/netns"
	"golang.org/x/sys/unix"

	"github.com/weir-net/weir/netfilter/batch"
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
// taken for one that was let through. Linux 6.12 and later look for them and delete them in one pass; an older kernel, which
// refuses that, tells of them first, and those before 5.8 of all. Telling takes ten milliseconds even where there are none.
// It is all that is left for an IPv6 address, of which the kernel's filter lets through all others'
// (ctnetlink_filter_match_tuple in net/netfilter/nf_conntrack_netlink.c takes the 0 of ipv6_addr_cmp for a difference; seen
// on 6.18).
//
// Equivalent to: conntrack -D -s ADDR; conntrack -D -r ADDR
func Delete(addrs ...netip.Addr) error {
	var errs []error
	var four []netip.Addr
	for _, a := range addrs {
		if a.Is6() {
			errs = append(errs, forget(a, nil))
		} else {
			four = append(four, a)
		}
	}
	err := forgetAtOnce(four)
	if errors.Is(err, unix.EINVAL) {
		err = nil
		for _, a := range four {
			errs = append(errs, forgetTold(a))
		}
	}
	return errors.Join(append(errs, err)...)
}

// forgetAtOnce is for IPv4 addresses, and EINVAL on kernels that can't.
func forgetAtOnce(addrs []netip.Addr) error {
	var b batch.Batch
	for _, a := range addrs {
		for _, filter := range sides(a) {
			b.Add(deletion(filter), "delete the connections of %s", a)
		}
	}
	_, err := b.Do(unix.NETLINK_NETFILTER, netns.None())
	return err
}

// deletion of the entries that the filter lets through. A kernel that doesn't know such filters takes their address for
// the beginning of a tuple that lacks the rest, and deletes nothing.
func deletion(filter []*nl.RtAttr) *nl.NetlinkRequest {
	req := nl.NewNetlinkRequest(unix.NFNL_SUBSYS_CTNETLINK<<8|nl.IPCTNL_MSG_CT_DELETE, 0)
	req.AddData(&nl.Nfgenmsg{NfgenFamily: unix.AF_INET, Version: 1}) // from version 1 the family counts
	for _, attr := range filter {
		req.AddData(attr)
	}
	return req
}

// forgetTold is for an IPv4 address where the kernel can't delete by a filter.
func forgetTold(a netip.Addr) error {
	var errs []error
	for _, filter := range sides(a) {
		errs = append(errs, forget(a, filter))
	}
	return errors.Join(errs...)
}

// sides are the filters of connections that the IPv4 address opened, and of those that it answers.
func sides(a netip.Addr) [2][]*nl.RtAttr {
	return [2][]*nl.RtAttr{from(a, nl.CTA_TUPLE_ORIG, ctaFilterOrigFlags), from(a, nl.CTA_TUPLE_REPLY, ctaFilterReplyFlags)}
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
