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

	"github.com/weir-net/weir/internal/attrs"
	"github.com/weir-net/weir/netfilter/batch"
)

// Change adds an entry to a set, or deletes the entry if Delete is true. If an added entry already exists, the entry's
// comment and mark are replaced.
type Change struct {
	Set    string
	Entry  Entry
	Delete bool
}

// Apply makes the changes in order, with few system calls. It is no error if an added entry already exists, or if a
// deleted entry doesn't exist. If a change fails, Apply still makes the other changes, and returns the error.
//
// Equivalent to: ipset add -exist SET ENTRY comment "COMMENT"; ipset del -exist SET ENTRY
func Apply(changes ...Change) error { return apply(changes, mapError) }

// batchSize limits the requests that are sent at once. More may not fit into a socket's send buffer of the usual size
// (net.core.wmem_default).
const batchSize = 256

// Refused is a change that the kernel has refused, with the reason. If a set is missing, a change of this set doesn't
// count as refused (see ApplyEach).
type Refused struct {
	Change
	Err error
}

// ApplyEach makes the changes like Apply, and returns the changes that the kernel has refused. err has all other
// failures, such as ErrNotExist for a missing set.
func ApplyEach(changes ...Change) (refused []Refused, err error) {
	var errs []error
	// The kernel sends one answer for each failed change. A socket's receive buffer of the usual size
	// (net.core.rmem_default) has room for about 200 answers.
	const answered = 64
	for some := range slices.Chunk(changes, answered) {
		var b batch.Batch
		for i := range some {
			c := &some[i]
			b.Add(c.request(), "%s", c).MapError = func(err error) error {
				if err = mapError(err); errors.Is(err, ErrNotExist) {
					return err
				}
				refused = append(refused, Refused{*c, err})
				return nil
			}
		}
		_, err := b.Do(unix.NETLINK_NETFILTER, netns.None())
		errs = append(errs, err)
	}
	return refused, errors.Join(errs...)
}

func (c *Change) request() *nl.NetlinkRequest {
	if c.Delete {
		return request(nl.IPSET_CMD_DEL, c.Set, c.Entry)
	}
	return request(nl.IPSET_CMD_ADD, c.Set, c.Entry)
}

func (c *Change) String() string {
	if c.Delete {
		return fmt.Sprintf("delete %s from ipset %s", c.Entry, c.Set)
	}
	return fmt.Sprintf("add %s to ipset %s", c.Entry, c.Set)
}

func apply(changes []Change, means func(error) error) error {
	var errs []error
	for some := range slices.Chunk(changes, batchSize) {
		var b batch.Batch
		for i := range some {
			b.Add(some[i].request(), "%s", &some[i]).MapError = means
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
				// As the answer to a test, IPSET_ERR_EXIST means that the address isn't in the set.
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

// request returns the netlink request for a command on one entry. It doesn't use the requests of the netlink library,
// for two reasons. The library's requests contain a protocol, which bitmap:port sets refuse since Linux 5.2. And the
// library's requests take many times the memory, because each attribute is an object.
func request(command int, name string, e Entry) *nl.NetlinkRequest {
	body := make([]byte, 0, 128)
	body = append(body, unix.AF_UNSPEC, nl.NFNETLINK_V0, 0, 0)
	body = attrs.Append(body, nl.IPSET_ATTR_PROTOCOL, nl.IPSET_PROTOCOL)
	body = attrs.AppendText(body, nl.IPSET_ATTR_SETNAME, name)
	body = attrs.Nest(body, nl.IPSET_ATTR_DATA, func(body []byte) []byte { return e.append(body, command) })
	r := nl.NewNetlinkRequest(command|unix.NFNL_SUBSYS_IPSET<<8, 0)
	r.RawData = body
	return r
}

func (e *Entry) append(to []byte, command int) []byte {
	const inOrder = unix.NLA_F_NET_BYTEORDER
	if !e.Prefix.IsValid() {
		return attrs.Append(to, nl.IPSET_ATTR_PORT|inOrder, byte(e.Port>>8), byte(e.Port))
	}
	to = attrs.Nest(to, nl.IPSET_ATTR_IP, func(to []byte) []byte {
		if a := e.Prefix.Addr(); a.Is4() {
			four := a.As4()
			return attrs.Append(to, nl.IPSET_ATTR_IPADDR_IPV4|inOrder, four[:]...)
		}
		six := e.Prefix.Addr().As16()
		return attrs.Append(to, nl.IPSET_ATTR_IPADDR_IPV6|inOrder, six[:]...)
	})
	if !e.Prefix.IsSingleIP() {
		to = attrs.Append(to, nl.IPSET_ATTR_CIDR, uint8(e.Prefix.Bits()))
	}
	if e.Link != "" {
		to = attrs.AppendText(to, nl.IPSET_ATTR_IFACE, e.Link)
	}
	if e.Port != 0 {
		to = attrs.Append(to, nl.IPSET_ATTR_PROTO, protocols[e.Proto])
		to = attrs.Append(to, nl.IPSET_ATTR_PORT|inOrder, byte(e.Port>>8), byte(e.Port))
	}
	if e.Comment != "" && command == nl.IPSET_CMD_ADD {
		to = attrs.AppendText(to, nl.IPSET_ATTR_COMMENT, e.Comment)
	}
	if e.Mark.Mask != 0 && command == nl.IPSET_CMD_ADD {
		to = attrs.Append(to, nl.IPSET_ATTR_SKBMARK|inOrder, e.Mark.encode()...)
	}
	return to
}

func (m Mark) encode() []byte {
	return binary.BigEndian.AppendUint32(binary.BigEndian.AppendUint32(nil, m.Value), m.Mask)
}
