// Package ipset creates, changes, lists and deletes weir's IP sets in the kernel, over netlink. The plugin uses it for
// the sets of all pods, and the backend iptables for all sets.
//
// Invariants:
//   - The package knows nothing of policies.
//   - Each call can be repeated: it is no error if an added entry already exists, or if a deleted entry doesn't exist.
//   - If a change fails, the other changes of the same call are still made.
//   - A missing set is reported as missing, and never counts as empty.
//   - Headers lists only weir's sets, so Purge changes no other sets.
package ipset

import (
	"errors"
	"fmt"
	"hash/maphash"
	"net/netip"
	"slices"
	"strconv"

	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netlink/nl"
	"golang.org/x/sys/unix"

	"github.com/weir-net/weir/conf"
	"github.com/weir-net/weir/internal/attrs"
	"github.com/weir-net/weir/netfilter/batch"
)

// The types of sets that weir uses (ipset(8)).
const (
	HashIP     = "hash:ip"
	HashNet    = "hash:net"
	HashIPPort = "hash:ip,port"
	BitmapPort = "bitmap:port"
	// HashNetIface sets contain addresses and networks, each with a link.
	HashNetIface = "hash:net,iface"
)

// revisions has the revision of each type of set. The revisions are those of Linux 3.14, the first kernel with
// everything that weir needs. For sets of older revisions, the ipset command prints no comments.
var revisions = map[string]uint8{HashIP: 3, HashNet: 5, HashIPPort: 4, BitmapPort: 2, HashNetIface: 4}

// markRevision is the first revision of hash:ip in which entries can have marks (Linux 3.19).
const markRevision = 4

var ErrNotExist = errors.New("no such ipset")

// Entry is an entry of a set. The set's type decides which fields are used:
//
//   - hash:ip and hash:net: Prefix
//   - hash:ip,port: Prefix, Proto (tcp, udp or sctp) and Port
//   - hash:net,iface: Prefix and Link
//   - bitmap:port: Port
//   - any type except bitmap:port: also Comment
//   - a set with marks: also Mark
type Entry struct {
	Prefix  netip.Prefix
	Proto   string
	Port    uint16
	Link    string
	Mark    Mark
	Comment string
}

// Mark is the mark of an entry. A rule with the target SET looks an entry up, and writes Value into the bits Mask of
// the packet's mark.
type Mark struct{ Value, Mask uint32 }

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

type Set struct {
	Header
	Comments bool // true if the set has room for comments
	// Print is a hash of the kernel's list of the set. Only hashes of the same Handle can be compared: if they are
	// equal, so are the lists.
	Print   uint64
	Entries []Entry
}

// Header has the properties with which a set was created, but not its entries.
type Header struct {
	Name, Type string
	Family     conf.Family
	// Marks is true if entries can have marks (skbinfo). Headers doesn't set this field.
	Marks bool
}

// InUse reports whether a rule uses the set. If there is no such set, the error is ErrNotExist.
//
// Equivalent to: ipset list -terse NAME | grep References
func (h *Handle) InUse(name string) (bool, error) {
	s, err := h.h.IpsetList(name)
	if err != nil {
		return false, wrap(err, "look up ipset %s", name)
	}
	return s.References > 0, nil
}

var families = map[uint8]conf.Family{unix.AF_INET: conf.IPv4, unix.AF_INET6: conf.IPv6}

// Handle is a connection to the kernel. It belongs to the network namespace in which it was opened.
type Handle struct {
	h     *netlink.Handle
	lists *batch.Dumper
	seed  maphash.Seed // for Set.Print
}

func New() (*Handle, error) {
	h, err := netlink.NewHandle(unix.NETLINK_NETFILTER)
	if err != nil {
		return nil, fmt.Errorf("open netlink for ipsets: %w", err)
	}
	return &Handle{h, batch.NewDumper(unix.NETLINK_NETFILTER), maphash.MakeSeed()}, nil
}

func (h *Handle) Close() {
	h.h.Close()
	h.lists.Close()
}

// Create makes the set, unless it exists. It returns an error if a set of this name has another type. All programs
// together can have fewer than 65,536 sets, because a set's number has 16 bits (ip_set_id_t in
// include/uapi/linux/netfilter/ipset/ip_set.h).
//
// Equivalent to:
//
//	ipset create -exist NAME TYPE family inet comment maxelem 1048576  (inet6 for IPv6; skbinfo for marks)
//	ipset create -exist NAME bitmap:port range 0-65535
func (h *Handle) Create(s Header) error {
	options := netlink.IpsetCreateOptions{Replace: true, Revision: revisions[s.Type], Family: unix.AF_INET}
	if s.Family == conf.IPv6 {
		options.Family = unix.AF_INET6
	}
	if s.Marks {
		options.Revision, options.Skbinfo = max(options.Revision, markRevision), true
	}
	if s.Type == BitmapPort { // no comments: with comments, the set would take 512 KB instead of 8 KB
		options.PortTo = 65535
	} else {
		// An entry's comment has at most 255 bytes (IPSET_MAX_COMMENT_SIZE), as conf.Comment ensures.
		options.Comments, options.MaxElements = true, conf.MaxSetEntries
	}
	err := h.h.IpsetCreate(s.Name, s.Type, options)
	if errors.Is(err, unix.EEXIST) {
		return fmt.Errorf("create ipset %s: there is one of another type: ipset destroy %s", s.Name, s.Name)
	}
	return wrap(err, "create ipset %s (%s, %s)", s.Name, s.Type, s.Family)
}

// Has reports whether the address is in the set. If there is no such set, the error is ErrNotExist.
//
// Equivalent to: ipset test NAME ADDR
func Has(name string, a netip.Addr) (bool, error) {
	in, err := SetsContaining(a, []string{name})
	return in[name], err
}

// Destroy deletes the set. It is no error if there is no such set. If a rule uses the set, Destroy returns an error.
//
// Equivalent to: ipset destroy NAME
func (h *Handle) Destroy(name string) error {
	err := wrap(h.h.IpsetDestroy(name), "destroy ipset %s", name)
	if errors.Is(err, ErrNotExist) {
		return nil
	}
	return err
}

// Headers returns the headers of weir's sets. It doesn't read the entries.
//
// Equivalent to: ipset list -terse
func (h *Handle) Headers() ([]Header, error) {
	req := nl.NewNetlinkRequest(nl.IPSET_CMD_LIST|unix.NFNL_SUBSYS_IPSET<<8, nl.GetIpsetFlags(nl.IPSET_CMD_LIST))
	req.AddData(&nl.Nfgenmsg{NfgenFamily: uint8(unix.AF_NETLINK), Version: nl.NFNETLINK_V0})
	req.AddData(nl.NewRtAttr(nl.IPSET_ATTR_PROTOCOL, nl.Uint8Attr(nl.IPSET_PROTOCOL)))
	const listHeader = 1 << 2 // IPSET_FLAG_LIST_HEADER in include/uapi/linux/netfilter/ipset/ip_set.h
	req.AddData(&nl.Uint32Attribute{Type: nl.IPSET_ATTR_FLAGS | nl.NLA_F_NET_BYTEORDER, Value: listHeader})
	var all []Header
	err := h.lists.Dump(req, func(msg []byte) bool {
		if s, ok := parseHeader(msg); ok {
			all = append(all, s)
		}
		return true
	})
	if err != nil {
		return nil, fmt.Errorf("list the headers of ipsets: %w", err)
	}
	return all, nil
}

func parseHeader(msg []byte) (s Header, ok bool) {
	if len(msg) < nl.SizeofNfgenmsg {
		return Header{}, false
	}
	for kind, value := range attrs.In(msg[nl.SizeofNfgenmsg:]) {
		switch kind {
		case nl.IPSET_ATTR_SETNAME:
			s.Name = text(value)
		case nl.IPSET_ATTR_TYPENAME:
			s.Type = text(value)
		case nl.IPSET_ATTR_FAMILY:
			if len(value) == 1 {
				s.Family = families[value[0]]
			}
		}
	}
	return s, conf.OwnSet(s.Name)
}

// Purge deletes the addresses from all of weir's sets that may have entries of pods. It changes no sets of networks,
// and no sets of port numbers.
func (h *Handle) Purge(addrs ...netip.Addr) error {
	sets, err := h.Headers()
	if err != nil {
		return err
	}
	var changes []Change
	var errs []error
	for _, s := range sets {
		if !conf.KindOfSet(s.Name).MayHavePods() {
			continue
		}
		present, err := h.entriesOf(s, addrs)
		if !errors.Is(err, ErrNotExist) { // ErrNotExist means that the set was deleted after the call of Headers
			errs = append(errs, err)
		}
		for _, e := range present {
			changes = append(changes, Change{Set: s.Name, Entry: e, Delete: true})
		}
	}
	errs = append(errs, apply(changes, func(err error) error {
		if err = mapError(err); errors.Is(err, ErrNotExist) {
			return nil
		}
		return err
	}))
	return errors.Join(errs...)
}

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
