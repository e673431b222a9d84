// Package ipset owns the way to the kernel's IP sets: weir's verbs on them, over netlink, each safe to repeat. The
// plugin uses it for the sets a pod is in, the driver for all of them. It knows nothing of policy.
package ipset

import (
	"errors"
	"fmt"
	"net/netip"
	"strings"

	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netlink/nl"
	"golang.org/x/sys/unix"
)

// Types of sets (ipset(8)).
const (
	HashIP  = "hash:ip"
	HashNet = "hash:net"
)

const (
	// Prefix begins the names of weir's sets, and of nobody else's.
	Prefix = "weir-"
	// NetPrefix begins the names of those that hold networks rather than pods.
	NetPrefix = "weir-net"

	// maxElements raises ipset's default of 65,536, which a large cluster has more pods than. Memory is taken as the set
	// grows, so the bound itself costs nothing.
	maxElements = 1 << 20
)

// revisions of the types: of the first kernel that has their comments and all else that weir needs (3.14). The ipset
// command goes by them; of a set of an older revision it wouldn't show the comments.
var revisions = map[string]uint8{HashIP: 3, HashNet: 5}

// ErrNotExist says that there is no such set.
var ErrNotExist = errors.New("no such ipset")

// Entry is an address or network in a set, with the words that "ipset list" shows beside it.
type Entry struct {
	Prefix  netip.Prefix
	Comment string
}

// Set is a set as the kernel has it.
type Set struct {
	Name, Type string
	Comments   bool // it was made to hold comments
	Entries    []Entry
}

// Handle is a connection to the kernel, in the network namespace it was opened in.
type Handle struct{ h *netlink.Handle }

// Open connects.
func Open() (*Handle, error) {
	h, err := netlink.NewHandle(unix.NETLINK_NETFILTER)
	if err != nil {
		return nil, fmt.Errorf("open netlink for ipsets: %w", err)
	}
	return &Handle{h}, nil
}

// Close disconnects.
func (h *Handle) Close() { h.h.Close() }

// Create makes the set if it isn't there. If there is one of another type, its error says so.
//
// Equivalent to: ipset create -exist NAME TYPE comment maxelem 1048576
func (h *Handle) Create(name, kind string) error {
	err := h.h.IpsetCreate(name, kind, netlink.IpsetCreateOptions{
		Replace: true, Comments: true, Family: unix.AF_INET, MaxElements: maxElements, Revision: revisions[kind],
	})
	if errors.Is(err, unix.EEXIST) {
		return fmt.Errorf("create ipset %s: there is one of another type: ipset destroy %s", name, name)
	}
	return wrap(err, "create ipset %s (%s)", name, kind)
}

// Add puts the entry in, or renews its comment.
//
// Equivalent to: ipset add -exist NAME PREFIX comment "COMMENT"
func (h *Handle) Add(name string, e Entry) error {
	return wrap(h.h.IpsetAdd(name, entry(e)), "add %s to ipset %s", e.Prefix, name)
}

// Del takes the entry out; that it isn't in is no error.
//
// Equivalent to: ipset del -exist NAME PREFIX
func (h *Handle) Del(name string, p netip.Prefix) error {
	return wrap(h.h.IpsetDel(name, entry(Entry{Prefix: p})), "delete %s from ipset %s", p, name)
}

// Has says whether the address is in the set.
//
// Equivalent to: ipset test NAME ADDR
func (h *Handle) Has(name string, a netip.Addr) (bool, error) {
	in, err := h.h.IpsetTest(name, &netlink.IPSetEntry{IP: a.AsSlice()})
	if errors.Is(err, nl.IPSetError(nl.IPSET_ERR_EXIST)) {
		return false, nil
	}
	return in, wrap(err, "test %s in ipset %s", a, name)
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
	s := Set{Name: name, Type: r.TypeName, Comments: r.CadtFlags&nl.IPSET_FLAG_WITH_COMMENT != 0}
	for _, e := range r.Entries {
		addr, ok := netip.AddrFromSlice(e.IP)
		if !ok {
			return Set{}, fmt.Errorf("list ipset %s: entry %v is no address", name, e.IP)
		}
		bits := addr.BitLen()
		if e.CIDR != 0 {
			bits = int(e.CIDR)
		}
		s.Entries = append(s.Entries, Entry{netip.PrefixFrom(addr, bits), e.Comment})
	}
	return s, nil
}

// Names are the names of weir's sets. They are read without the sets' entries.
//
// Equivalent to: ipset list -name | grep ^weir-
func (h *Handle) Names() ([]string, error) {
	req := nl.NewNetlinkRequest(nl.IPSET_CMD_LIST|unix.NFNL_SUBSYS_IPSET<<8, nl.GetIpsetFlags(nl.IPSET_CMD_LIST))
	req.AddData(&nl.Nfgenmsg{NfgenFamily: uint8(unix.AF_NETLINK), Version: nl.NFNETLINK_V0})
	req.AddData(nl.NewRtAttr(nl.IPSET_ATTR_PROTOCOL, nl.Uint8Attr(nl.IPSET_PROTOCOL)))
	const listSetName = 1 << 1 // IPSET_FLAG_LIST_SETNAME, include/uapi/linux/netfilter/ipset/ip_set.h
	req.AddData(&nl.Uint32Attribute{Type: nl.IPSET_ATTR_FLAGS | nl.NLA_F_NET_BYTEORDER, Value: listSetName})
	msgs, err := req.Execute(unix.NETLINK_NETFILTER, 0)
	if err != nil {
		return nil, fmt.Errorf("list the names of ipsets: %w", err)
	}
	var names []string
	for _, msg := range msgs {
		for attr := range nl.ParseAttributes(msg[4:]) { // behind struct nfgenmsg
			if attr.Type != nl.IPSET_ATTR_SETNAME {
				continue
			}
			if name := nl.BytesToString(attr.Value); strings.HasPrefix(name, Prefix) {
				names = append(names, name)
			}
		}
	}
	return names, nil
}

// Purge takes the addresses out of every weir set that holds pods; those of networks and nodes are left alone.
func (h *Handle) Purge(addrs ...netip.Addr) error {
	names, err := h.Names()
	if err != nil {
		return err
	}
	var errs []error
	for _, name := range names {
		if strings.HasPrefix(name, NetPrefix) || name == "weir-nodes" {
			continue
		}
		for _, a := range addrs {
			err := h.Del(name, netip.PrefixFrom(a, a.BitLen()))
			if !errors.Is(err, ErrNotExist) { // gone since it was listed
				errs = append(errs, err)
			}
		}
	}
	return errors.Join(errs...)
}

func entry(e Entry) *netlink.IPSetEntry {
	n := &netlink.IPSetEntry{IP: e.Prefix.Addr().AsSlice(), Comment: e.Comment, Replace: true}
	if !e.Prefix.IsSingleIP() {
		n.CIDR = uint8(e.Prefix.Bits())
	}
	return n
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
