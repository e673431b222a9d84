package ipset

import (
	"encoding/binary"
	"errors"
	"fmt"
	"net/netip"
	"slices"

	"github.com/vishvananda/netlink/nl"
	"github.com/vishvananda/netns"
	"golang.org/x/sys/unix"

	"github.com/weir-net/weir/netfilter/batch"
)

// Change puts an entry into a set, or renews its comment there; or takes it out.
type Change struct {
	Set    string
	Entry  Entry
	Delete bool
}

// Apply makes the changes, in order, with few calls of the kernel. What is so already is no error. Where one fails, the
// others are made all the same, so one that opens something must not rest on one before it that closes.
//
// Equivalent to: ipset add -exist SET ENTRY comment "COMMENT"; ipset del -exist SET ENTRY
func Apply(changes ...Change) error { return apply(changes, means) }

// atOnce is how many changes are sent together: fewer bytes than a socket takes (net.core.wmem_default).
const atOnce = 256

// Refused is a change that the kernel doesn't make, and why.
type Refused struct {
	Change
	Err error
}

// ApplyEach is Apply that says of each change whether the kernel refuses it. The error is of all else, such as that a
// set isn't there.
func ApplyEach(changes ...Change) (refused []Refused, err error) {
	var errs []error
	// The kernel answers each change that fails, and a socket holds some 200 answers (net.core.rmem_default).
	const answered = 64
	for some := range slices.Chunk(changes, answered) {
		var b batch.Batch
		for _, c := range some {
			r, doing := c.request()
			b.Add(r, "%s", doing).MapError = func(err error) error {
				if err = means(err); errors.Is(err, ErrNotExist) {
					return err
				}
				refused = append(refused, Refused{c, err})
				return nil
			}
		}
		_, err := b.Do(unix.NETLINK_NETFILTER, netns.None())
		errs = append(errs, err)
	}
	return refused, errors.Join(errs...)
}

// request is how the change is asked for, and in words.
func (c Change) request() (r *nl.NetlinkRequest, doing string) {
	if c.Delete {
		return request(nl.IPSET_CMD_DEL, c.Set, c.Entry), fmt.Sprintf("delete %s from ipset %s", c.Entry, c.Set)
	}
	return request(nl.IPSET_CMD_ADD, c.Set, c.Entry), fmt.Sprintf("add %s to ipset %s", c.Entry, c.Set)
}

func apply(changes []Change, means func(error) error) error {
	var errs []error
	for some := range slices.Chunk(changes, atOnce) {
		var b batch.Batch
		for _, c := range some {
			r, doing := c.request()
			b.Add(r, "%s", doing).MapError = means
		}
		_, err := b.Do(unix.NETLINK_NETFILTER, netns.None())
		errs = append(errs, err)
	}
	return errors.Join(errs...)
}

// Holding are those of the sets that hold the address, asked with few calls of the kernel. All must be of its family.
//
// Equivalent to: for set in SETS; do ipset test $set ADDR; done
func SetsContaining(a netip.Addr, sets []string) (map[string]bool, error) {
	in := map[string]bool{}
	for some := range slices.Chunk(sets, atOnce) {
		var b batch.Batch
		for _, name := range some {
			in[name] = true
			e := Entry{Prefix: netip.PrefixFrom(a, a.BitLen())}
			b.Add(request(nl.IPSET_CMD_TEST, name, e), "test %s in ipset %s", a, name).MapError = func(err error) error {
				if err = means(err); errors.Is(err, nl.IPSetError(nl.IPSET_ERR_EXIST)) { // it isn't in
					delete(in, name)
					return nil
				}
				return err
			}
		}
		if _, err := b.Do(unix.NETLINK_NETFILTER, netns.None()); err != nil {
			return nil, err
		}
	}
	return in, nil
}

// means reads errors that are ipset's own (include/uapi/linux/netfilter/ipset/ip_set.h).
func means(err error) error {
	if errno := unix.Errno(0); errors.As(err, &errno) && errno >= nl.IPSET_ERR_PRIVATE {
		return nl.IPSetError(errno)
	}
	if errors.Is(err, unix.ENOENT) {
		return ErrNotExist
	}
	return err
}

// request concerns one entry. Beside a port of a bitmap:port set there is nothing: the library sends a protocol along, which
// sets of that type refuse since kernels read attributes strictly (5.2).
func request(command int, name string, e Entry) *nl.NetlinkRequest {
	data := nl.NewRtAttr(nl.IPSET_ATTR_DATA|int(nl.NLA_F_NESTED), nil)
	number := func() {
		data.AddRtAttr(int(nl.IPSET_ATTR_PORT|nl.NLA_F_NET_BYTEORDER), binary.BigEndian.AppendUint16(nil, e.Port))
	}
	if !e.Prefix.IsValid() {
		number()
	} else {
		kind := nl.IPSET_ATTR_IPADDR_IPV4
		if e.Prefix.Addr().Is6() {
			kind = nl.IPSET_ATTR_IPADDR_IPV6
		}
		ip := data.AddRtAttr(nl.IPSET_ATTR_IP|int(nl.NLA_F_NESTED), nil)
		ip.AddRtAttr(kind|int(nl.NLA_F_NET_BYTEORDER), e.Prefix.Addr().AsSlice())
		if !e.Prefix.IsSingleIP() {
			data.AddRtAttr(nl.IPSET_ATTR_CIDR, nl.Uint8Attr(uint8(e.Prefix.Bits())))
		}
		if e.Link != "" {
			data.AddRtAttr(nl.IPSET_ATTR_IFACE, nl.ZeroTerminated(e.Link))
		}
		if e.Port != 0 {
			data.AddRtAttr(nl.IPSET_ATTR_PROTO, nl.Uint8Attr(protocols[e.Proto]))
			number()
		}
		if e.Comment != "" && command == nl.IPSET_CMD_ADD {
			data.AddRtAttr(nl.IPSET_ATTR_COMMENT, nl.ZeroTerminated(e.Comment))
		}
	}
	r := nl.NewNetlinkRequest(command|unix.NFNL_SUBSYS_IPSET<<8, 0)
	r.AddData(&nl.Nfgenmsg{NfgenFamily: unix.AF_UNSPEC, Version: nl.NFNETLINK_V0})
	r.AddData(nl.NewRtAttr(nl.IPSET_ATTR_PROTOCOL, nl.Uint8Attr(nl.IPSET_PROTOCOL)))
	r.AddData(nl.NewRtAttr(nl.IPSET_ATTR_SETNAME, nl.ZeroTerminated(name)))
	r.AddData(data)
	return r
}
