package conntrack

import (
	"errors"
	"fmt"
	"math"
	"net/netip"

	"github.com/vishvananda/netlink/nl"
	"github.com/vishvananda/netns"
	"golang.org/x/sys/unix"

	"github.com/weir-net/weir/netfilter/batch"
)

// With these attributes, the kernel selects connections by source address, since Linux 5.8. The first three are from
// include/uapi/linux/netfilter/nfnetlink_conntrack.h, and the last one is from net/netfilter/nf_internals.h.
const (
	ctaFilter           = 25     // CTA_FILTER
	ctaFilterOrigFlags  = 1      // CTA_FILTER_ORIG_FLAGS
	ctaFilterReplyFlags = 2      // CTA_FILTER_REPLY_FLAGS
	ctaFilterSrc        = 1 << 0 // CTA_FILTER_F_CTA_IP_SRC
)

// Delete deletes all connections of addresses that are about to be assigned to another pod. Otherwise packets of the
// previous pod's connections could reach the new pod. For IPv4, Delete uses the first method that is possible:
//
//   - several addresses and a small table: the kernel lists all connections once
//   - Linux 6.12 and later: the kernel finds and deletes an address's connections
//   - Linux 5.8 and later: the kernel lists an address's connections, and Delete deletes each
//   - older kernels: the kernel lists all connections
//
// For IPv6, the kernel always lists all connections. The kernel's filter for IPv6 addresses matches wrong addresses
// (ctnetlink_filter_match_tuple in net/netfilter/nf_conntrack_netlink.c; seen on 6.18).
//
// Equivalent to: conntrack -D -s ADDR; conntrack -D -r ADDR, for each address
func Delete(addrs ...netip.Addr) error {
	var four, six []netip.Addr
	for _, a := range addrs {
		if a.Is6() {
			six = append(six, a)
		} else {
			four = append(four, a)
		}
	}
	errs := []error{deleteByList(six, nil)}
	if len(four) > 1 && entries() <= len(four)*listedForAPass {
		return errors.Join(append(errs, deleteByList(four, nil))...)
	}
	err := deleteByFilter(four)
	if errors.Is(err, unix.EINVAL) {
		err = nil
		for _, a := range four {
			errs = append(errs, deleteByFilteredList(a))
		}
	}
	return errors.Join(append(errs, err)...)
}

// listedForAPass is how many connections the kernel can list in the time in which it finds and deletes the connections
// of one address. If the table has at most this many connections per address, one list of all connections is quicker.
const listedForAPass = 4000

// entries returns the number of entries of the connection table. If the number is unknown, it returns math.MaxInt.
//
// Equivalent to: sysctl net.netfilter.nf_conntrack_count
func entries() int {
	n, err := readNumber("/proc/sys/net/netfilter/nf_conntrack_count")
	if err != nil {
		return math.MaxInt
	}
	return n
}

func deleteByFilter(addrs []netip.Addr) error {
	var b batch.Batch
	for _, a := range addrs {
		for _, filter := range addressFilters(a) {
			b.Add(deletion(filter), "delete the connections of %s", a)
		}
	}
	_, err := b.Do(unix.NETLINK_NETFILTER, netns.None())
	return err
}

func deletion(filter []*nl.RtAttr) *nl.NetlinkRequest {
	req := nl.NewNetlinkRequest(unix.NFNL_SUBSYS_CTNETLINK<<8|nl.IPCTNL_MSG_CT_DELETE, 0)
	// Version 0 would make the kernel ignore the family.
	req.AddData(&nl.Nfgenmsg{NfgenFamily: unix.AF_INET, Version: 1})
	for _, attr := range filter {
		req.AddData(attr)
	}
	return req
}

func deleteByFilteredList(a netip.Addr) error {
	var errs []error
	for _, filter := range addressFilters(a) {
		errs = append(errs, deleteByList([]netip.Addr{a}, filter))
	}
	return errors.Join(errs...)
}

func addressFilters(a netip.Addr) [2][]*nl.RtAttr {
	return [2][]*nl.RtAttr{
		sourceFilter(a, nl.CTA_TUPLE_ORIG, ctaFilterOrigFlags), sourceFilter(a, nl.CTA_TUPLE_REPLY, ctaFilterReplyFlags),
	}
}

func deleteByList(addrs []netip.Addr, filter []*nl.RtAttr) error {
	if len(addrs) == 0 {
		return nil
	}
	var errs []error
	family := uint8(unix.AF_INET)
	if addrs[0].Is6() {
		family = unix.AF_INET6
	}
	wanted := map[netip.Addr]bool{}
	for _, a := range addrs {
		wanted[a] = true
	}
	for c, err := range dump(family, filter...) {
		if err == nil && (wanted[c.Src] || wanted[c.Dst]) {
			err = c.send(nl.IPCTNL_MSG_CT_DELETE)
		}
		if err != nil && !errors.Is(err, unix.ENOENT) {
			errs = append(errs, fmt.Errorf("delete the connections of %v: %w", addrs, err))
		}
	}
	return errors.Join(errs...)
}

func sourceFilter(a netip.Addr, tuple, flags int) []*nl.RtAttr {
	t := nl.NewRtAttr(tuple|unix.NLA_F_NESTED, nil)
	t.AddRtAttr(nl.CTA_TUPLE_IP|unix.NLA_F_NESTED, nil).AddRtAttr(nl.CTA_IP_V4_SRC, a.AsSlice())
	f := nl.NewRtAttr(ctaFilter|unix.NLA_F_NESTED, nil)
	f.AddRtAttr(flags, nl.Uint32Attr(ctaFilterSrc))
	return []*nl.RtAttr{t, f}
}
