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

// Change adds an entry to a set, or deletes the entry if Delete is true. If an added entry already exists, its comment
// and mark are replaced.
type Change struct {
	Set    string
	Entry  Entry
	Delete bool
}

// Apply makes the changes in order, with few system calls. It is no error if an added entry exists, or if a deleted
// entry doesn't. If a change fails, Apply still makes the other changes, and returns the error.
//
// Equivalent to: ipset add -exist SET ENTRY comment "COMMENT"; ipset del -exist SET ENTRY
func Apply(changes ...Change) error { return apply(changes, mapError) }

// batchSize is how many changes fit into a socket's buffer for sending (net.core.wmem_default).
const batchSize = 256

// Refused is a change that the kernel has refused, with the reason. A change of a missing set doesn't count as refused:
// see ApplyEach.
type Refused struct {
	Change
	Err error
}

// ApplyEach makes the changes like Apply, and returns the changes that the kernel has refused. err has all other
// failures, such as ErrNotExist for a missing set.
func ApplyEach(changes ...Change) (refused []Refused, err error) {
	var errs []error
	// The kernel sends an answer for each change that fails. A socket's buffer for receiving has room for about 200
	// answers (net.core.rmem_default).
	const answered = 64
	for some := range slices.Chunk(changes, answered) {
		var b batch.Batch
		for _, c := range some {
			r, doing := c.request()
			b.Add(r, "%s", doing).MapError = func(err error) error {
				if err = mapError(err); errors.Is(err, ErrNotExist) {
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

func (c Change) request() (r *nl.NetlinkRequest, doing string) {
	if c.Delete {
		return request(nl.IPSET_CMD_DEL, c.Set, c.Entry), fmt.Sprintf("delete %s from ipset %s", c.Entry, c.Set)
	}
	return request(nl.IPSET_CMD_ADD, c.Set, c.Entry), fmt.Sprintf("add %s to ipset %s", c.Entry, c.Set)
}

func apply(changes []Change, means func(error) error) error {
	var errs []error
	for some := range slices.Chunk(changes, batchSize) {
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

// SetsContaining returns which of the sets contain the address. Each set must have the address's family. If a set
// doesn't exist, the error is ErrNotExist.
//
// Equivalent to: for set in SETS; do ipset test $set ADDR; done
func SetsContaining(a netip.Addr, sets []string) (map[string]bool, error) {
	in := map[string]bool{}
	for some := range slices.Chunk(sets, batchSize) {
		var b batch.Batch
		for _, name := range some {
			in[name] = true
			e := Entry{Prefix: netip.PrefixFrom(a, a.BitLen())}
			test := b.Add(request(nl.IPSET_CMD_TEST, name, e), "test %s in ipset %s", a, name)
			test.MapError = func(err error) error {
				// Here this error means that the address isn't in the set.
				if err = mapError(err); errors.Is(err, nl.IPSetError(nl.IPSET_ERR_EXIST)) {
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

func mapError(err error) error {
	if errno := unix.Errno(0); errors.As(err, &errno) && errno >= nl.IPSET_ERR_PRIVATE {
		return nl.IPSetError(errno)
	}
	if errors.Is(err, unix.ENOENT) {
		return ErrNotExist
	}
	return err
}

// request returns the netlink request for a command on one entry. The netlink library's own requests can't be used for
// bitmap:port sets: they contain a protocol, which such sets refuse since Linux 5.2.
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
		if e.Mark.Mask != 0 && command == nl.IPSET_CMD_ADD {
			data.AddRtAttr(int(nl.IPSET_ATTR_SKBMARK|nl.NLA_F_NET_BYTEORDER), e.Mark.encode())
		}
	}
	r := nl.NewNetlinkRequest(command|unix.NFNL_SUBSYS_IPSET<<8, 0)
	r.AddData(&nl.Nfgenmsg{NfgenFamily: unix.AF_UNSPEC, Version: nl.NFNETLINK_V0})
	r.AddData(nl.NewRtAttr(nl.IPSET_ATTR_PROTOCOL, nl.Uint8Attr(nl.IPSET_PROTOCOL)))
	r.AddData(nl.NewRtAttr(nl.IPSET_ATTR_SETNAME, nl.ZeroTerminated(name)))
	r.AddData(data)
	return r
}

func (m Mark) encode() []byte {
	return binary.BigEndian.AppendUint32(binary.BigEndian.AppendUint32(nil, m.Value), m.Mask)
}
