// Package ipset owns the way to the kernel's IP sets: weir's verbs on them, over netlink, each safe to repeat. The
// plugin uses it for the sets a pod is in, the driver for all of them. It knows nothing of policy.
package ipset

import (
	"bytes"
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"strconv"

	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netlink/nl"
	"golang.org/x/sys/unix"

	"github.com/weir-net/weir/conf"
)

// Types of sets (ipset(8)).
const (
	HashIP     = "hash:ip"
	HashNet    = "hash:net"
	HashIPPort = "hash:ip,port"
	BitmapPort = "bitmap:port"
	// HashNetIface sets hold addresses and networks, each with a link.
	HashNetIface = "hash:net,iface"
)

// revisions of the types: of the first kernel that has their comments and all else that weir needs (3.14). The ipset
// command goes by them; of a set of an older revision it wouldn't show the comments.
var revisions = map[string]uint8{HashIP: 3, HashNet: 5, HashIPPort: 4, BitmapPort: 2, HashNetIface: 4}

// ErrNotExist says that there is no such set.
var ErrNotExist = errors.New("no such ipset")

// Entry is an address or network in a set, with the words that "ipset list" shows beside it. In a hash:ip,port set it
// has a protocol (tcp, udp or sctp) and a port; in a hash:net,iface set it has a link; in a bitmap:port set it is a
// port and nothing else.
type Entry struct {
	Prefix  netip.Prefix
	Proto   string
	Port    uint16
	Link    string
	Comment string
}

func (e Entry) String() string {
	if !e.Prefix.IsValid() {
		return strconv.Itoa(int(e.Port))
	}
	if e.Link != "" {
		return e.Prefix.String() + "," + e.Link
	}
	if e.Port != 0 {
		return fmt.Sprintf("%s,%s:%d", e.Prefix.Addr(), e.Proto, e.Port)
	}
	return e.Prefix.String()
}

// Set is a set as the kernel has it.
type Set struct {
	Header
	Comments bool // it was made to hold comments
	Entries  []Entry
}

// Header of a set is what it was made as.
type Header struct {
	Name, Type string
	Family     conf.Family // of its entries; the kernel takes none of the other
}

// InUse says whether a rule goes by the set.
//
// Equivalent to: ipset list -terse NAME | grep References
func (h *Handle) InUse(name string) (bool, error) {
	s, err := h.h.IpsetList(name)
	if err != nil {
		return false, wrap(err, "look up ipset %s", name)
	}
	return s.References > 0, nil
}

// families by their numbers in the kernel.
var families = map[uint8]conf.Family{unix.AF_INET: conf.IPv4, unix.AF_INET6: conf.IPv6}

// Handle is a connection to the kernel, in the network namespace it was opened in.
type Handle struct{ h *netlink.Handle }

// Open connects.
func New() (*Handle, error) {
	h, err := netlink.NewHandle(unix.NETLINK_NETFILTER)
	if err != nil {
		return nil, fmt.Errorf("open netlink for ipsets: %w", err)
	}
	return &Handle{h}, nil
}

// Close disconnects.
func (h *Handle) Close() { h.h.Close() }

// Create makes the set if it isn't there. If there is one of another type, its error says so; one of the
// other family is found when an entry doesn't fit.
//
// Equivalent to: ipset create -exist NAME TYPE family inet comment maxelem 1048576 (inet6 for IPv6);
// ipset create -exist NAME bitmap:port range 0-65535
func (h *Handle) Create(s Header) error {
	options := netlink.IpsetCreateOptions{Replace: true, Revision: revisions[s.Type], Family: unix.AF_INET}
	if s.Family == conf.IPv6 {
		options.Family = unix.AF_INET6
	}
	if s.Type == BitmapPort { // of 8 KB; comments would make it 512. The kernel has it for both families
		options.PortTo = 65535
	} else {
		options.Comments, options.MaxElements = true, conf.MaxSetEntries
	}
	err := h.h.IpsetCreate(s.Name, s.Type, options)
	if errors.Is(err, unix.EEXIST) {
		return fmt.Errorf("create ipset %s: there is one of another type: ipset destroy %s", s.Name, s.Name)
	}
	return wrap(err, "create ipset %s (%s, %s)", s.Name, s.Type, s.Family)
}

// Has says whether the address is in the set.
//
// Equivalent to: ipset test NAME ADDR
func (h *Handle) Has(name string, a netip.Addr) (bool, error) {
	in, err := SetsContaining(a, []string{name})
	return in[name], err
}

// Destroy deletes the set; that it isn't there is no error. A set that a rule still uses stays, and that is one.
//
// Equivalent to: ipset destroy NAME
func (h *Handle) Destroy(name string) error {
	err := wrap(h.h.IpsetDestroy(name), "destroy ipset %s", name)
	if errors.Is(err, ErrNotExist) {
		return nil
	}
	return err
}

// List reads one set.
//
// Equivalent to: ipset list NAME
func (h *Handle) List(name string) (Set, error) {
	r, err := h.h.IpsetList(name)
	if err != nil {
		return Set{}, wrap(err, "list ipset %s", name)
	}
	s := Set{Header: Header{name, r.TypeName, families[r.Family]}, Comments: r.CadtFlags&nl.IPSET_FLAG_WITH_COMMENT != 0}
	for _, e := range r.Entries {
		if s.Type == BitmapPort && e.Port != nil {
			s.Entries = append(s.Entries, Entry{Port: *e.Port})
			continue
		}
		addr, ok := netip.AddrFromSlice(e.IP)
		if !ok {
			return Set{}, fmt.Errorf("list ipset %s: entry %v is no address", name, e.IP)
		}
		bits := addr.BitLen()
		// Of a whole network, /0, there is a size of 0; beside an address alone the kernel sends none.
		if e.CIDR != 0 || (s.Type == HashNetIface && addr.IsUnspecified()) {
			bits = int(e.CIDR)
		}
		listed := Entry{Prefix: netip.PrefixFrom(addr, bits), Link: e.IFace, Comment: e.Comment}
		if e.Port != nil && e.Protocol != nil {
			listed.Proto, listed.Port = protocolName(*e.Protocol), *e.Port
		}
		s.Entries = append(s.Entries, listed)
	}
	return s, nil
}

// Headers are those of weir's sets. They are read without the sets' entries.
//
// Equivalent to: ipset list -terse
func (h *Handle) Headers() ([]Header, error) {
	req := nl.NewNetlinkRequest(nl.IPSET_CMD_LIST|unix.NFNL_SUBSYS_IPSET<<8, nl.GetIpsetFlags(nl.IPSET_CMD_LIST))
	req.AddData(&nl.Nfgenmsg{NfgenFamily: uint8(unix.AF_NETLINK), Version: nl.NFNETLINK_V0})
	req.AddData(nl.NewRtAttr(nl.IPSET_ATTR_PROTOCOL, nl.Uint8Attr(nl.IPSET_PROTOCOL)))
	const listHeader = 1 << 2 // IPSET_FLAG_LIST_HEADER, include/uapi/linux/netfilter/ipset/ip_set.h
	req.AddData(&nl.Uint32Attribute{Type: nl.IPSET_ATTR_FLAGS | nl.NLA_F_NET_BYTEORDER, Value: listHeader})
	msgs, err := req.Execute(unix.NETLINK_NETFILTER, 0)
	if err != nil {
		return nil, fmt.Errorf("list the headers of ipsets: %w", err)
	}
	var all []Header
	for _, msg := range msgs {
		if s, ok := parseHeader(msg); ok {
			all = append(all, s)
		}
	}
	return all, nil
}

// parseHeader reads what a set of weir's is.
func parseHeader(msg []byte) (s Header, ok bool) {
	if len(msg) < nl.SizeofNfgenmsg {
		return Header{}, false
	}
	for attr := range nl.ParseAttributes(msg[nl.SizeofNfgenmsg:]) {
		text, _, _ := bytes.Cut(attr.Value, []byte{0})
		switch attr.Type {
		case nl.IPSET_ATTR_SETNAME:
			s.Name = string(text)
		case nl.IPSET_ATTR_TYPENAME:
			s.Type = string(text)
		case nl.IPSET_ATTR_FAMILY:
			if len(attr.Value) == 1 {
				s.Family = families[attr.Value[0]]
			}
		}
	}
	return s, conf.OwnSet(s.Name)
}

// Purge takes the addresses out of every weir set that holds pods; those of networks, nodes and ports are left alone.
func (h *Handle) Purge(addrs ...netip.Addr) error {
	sets, err := h.Headers()
	if err != nil {
		return err
	}
	var changes []Change
	var errs []error
	for _, s := range sets {
		if !conf.HoldsPods(s.Name) {
			continue
		}
		held, err := h.entriesOf(s, addrs)
		if !errors.Is(err, ErrNotExist) { // gone since it was listed
			errs = append(errs, err)
		}
		for _, e := range held {
			changes = append(changes, Change{Set: s.Name, Entry: e, Delete: true})
		}
	}
	errs = append(errs, apply(changes, func(err error) error {
		if err = means(err); errors.Is(err, ErrNotExist) {
			return nil
		}
		return err
	}))
	return errors.Join(errs...)
}

// entriesOf are what the set may hold of the addresses. A set with ports or links has to be read: an address has any
// number of entries there, and the kernel deletes by whole entries.
func (h *Handle) entriesOf(set Header, addrs []netip.Addr) ([]Entry, error) {
	if set.Type == HashIPPort || set.Type == HashNetIface {
		s, err := h.List(set.Name)
		return slices.DeleteFunc(s.Entries, func(e Entry) bool { return !slices.Contains(addrs, e.Prefix.Addr()) }), err
	}
	var entries []Entry
	for _, a := range addrs {
		if conf.FamilyOf(a) == set.Family {
			entries = append(entries, Entry{Prefix: netip.PrefixFrom(a, a.BitLen())})
		}
	}
	return entries, nil
}

var protocols = map[string]uint8{"tcp": unix.IPPROTO_TCP, "udp": unix.IPPROTO_UDP, "sctp": unix.IPPROTO_SCTP}

func protocolName(number uint8) string {
	for name, n := range protocols {
		if n == number {
			return name
		}
	}
	return strconv.Itoa(int(number))
}

func wrap(err error, format string, args ...any) error {
	if err == nil {
		return nil
	}
	if errors.Is(err, unix.ENOENT) {
		err = ErrNotExist
	}
	return fmt.Errorf(format+": %w", append(args, err)...)
}
