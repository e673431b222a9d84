package bridge

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"math"
	"net"
	"net/netip"
	"os"
	"strings"
	"time"

	"github.com/vishvananda/netlink/nl"
	"golang.org/x/sys/unix"

	"github.com/weir-net/weir/internal/attrs"
	"github.com/weir-net/weir/netfilter/batch"
)

// errUnknown means that a property (a node setting, such as a sysctl or a route) couldn't be read. A property with
// this error counts neither as right nor as wrong.
var errUnknown = errors.New("it can't be read")

// Observed is the kernel's state as Observe has read it. If a part couldn't be read, the properties that depend on
// this part are unknown.
type Observed struct {
	Links      map[string]Link
	Addresses  map[int][]netip.Prefix               // the addresses of each link, by the link's index
	Fresh      map[netip.Addr]bool                  // addresses that are younger than a second
	Learned    map[netip.Addr]bool                  // addresses that expire, such as those from router advertisements
	Neighbours map[int]map[netip.Addr]neighbourSeen // the entries of weir0, by weir0's index and by address
	// Forwarding has the MACs of the static forwarding entries, by the index of the link.
	Forwarding map[int]map[string]bool
	Routes     []routeSeen
	// Sysctl reads a sysctl by its path below /proc/sys.
	Sysctl func(key string) (string, error)
	// PodMTU returns the MTU of the pod's end of a pair. It asks the kernel once for each pair. It returns 0 if the
	// pod's end is gone, or if the namespace of that end is unknown.
	PodMTU func(port Link) (int, error)

	links, addresses, neighbours, forwarding, routes error

	mtus map[int]int // results of podMTU, by the index of the port

	lists *batch.Dumper
}

type Link struct {
	Name, Kind    string
	Index, Master int
	Peer, PeerNS  int // the index of a pair's other end, and the node's number for the namespace of that end
	MTU           int
	MAC           net.HardwareAddr
	Up            bool
	Running       bool // the link has a carrier: its operational state is up (RFC 2863, ifOperStatus)
	NoARP         bool
	Bridge        map[uint16]uint16 // options of a bridge, by IFLA_BR_*; only values of at most 16 bits
	Port          map[uint16]uint16 // options of a bridge's port, by IFLA_BRPORT_*; only values of at most 16 bits
}

type neighbourSeen struct {
	MAC       string
	Permanent bool
}

// routeSeen is a route. Link is the index of the link to which the route leads.
type routeSeen struct {
	Link, Table, Type int
	Dst               netip.Prefix
	Protocol          int
}

// Observe reads the kernel's state. The caller must call Close. Parts that can't be read are unknown. Observe
// leaves out the routes, neighbour entries and forwarding entries that package overlay makes.
//
// Equivalent to:
//
//	ip -d link; ip addr; ip neigh show dev weir0; bridge fdb show br weir0
//	ip route show table all; ip -6 route show table all
func Observe() *Observed {
	o := nothingObserved()
	o.links = o.readLinks()
	o.addresses = o.readAddresses()
	br, ok := o.Links[Name]
	for _, family := range []uint8{unix.AF_INET, unix.AF_INET6} {
		if ok {
			o.neighbours = errors.Join(o.neighbours, o.readNeighbours(br.Index, family))
		}
		o.routes = errors.Join(o.routes, o.readRoutes(family))
	}
	if ok {
		o.forwarding = o.readForwarding(br.Index)
	}
	return o
}

func nothingObserved() *Observed {
	o := &Observed{
		Links: map[string]Link{}, Addresses: map[int][]netip.Prefix{},
		Fresh: map[netip.Addr]bool{}, Learned: map[netip.Addr]bool{},
		Neighbours: map[int]map[netip.Addr]neighbourSeen{},
		Forwarding: map[int]map[string]bool{}, Sysctl: readSysctl, lists: batch.NewDumper(unix.NETLINK_ROUTE),
	}
	o.mtus, o.PodMTU = map[int]int{}, o.podMTU
	return o
}

// Lasts reports whether the state stays true until the kernel announces a change. It returns false if a part couldn't
// be read, or if an address is younger than a second, because the kernel may still add the address's routes. The answer
// doesn't cover sysctls and the MTUs of pods' ends: they may change without an announcement.
func (o *Observed) Lasts() bool {
	for _, fresh := range o.Fresh {
		if fresh {
			return false
		}
	}
	return o.readError() == nil
}

// Close closes the netlink socket. After that, PodMTU doesn't work.
func (o *Observed) Close() { o.lists.Close() }

func readSysctl(key string) (string, error) {
	data, err := os.ReadFile("/proc/sys/" + key)
	return strings.TrimSuffix(string(data), "\n"), err
}

// operUp means that a link can pass packets on (IF_OPER_UP, include/uapi/linux/if.h).
const operUp = 6

func parseLink(m []byte) (l Link, ok bool) {
	if len(m) < unix.SizeofIfInfomsg {
		return l, false
	}
	info := nl.DeserializeIfInfomsg(m)
	l = Link{Index: int(info.Index), PeerNS: -1}
	l.Up, l.NoARP = info.Flags&unix.IFF_UP != 0, info.Flags&unix.IFF_NOARP != 0
	for kind, value := range attrs.In(m[unix.SizeofIfInfomsg:]) {
		switch kind {
		case unix.IFLA_IFNAME:
			l.Name = attrs.Text(value)
		case unix.IFLA_ADDRESS:
			l.MAC = bytes.Clone(value)
		case unix.IFLA_MTU:
			l.MTU = integer(value)
		case unix.IFLA_OPERSTATE:
			l.Running = len(value) == 1 && value[0] == operUp
		case unix.IFLA_MASTER:
			l.Master = integer(value)
		case unix.IFLA_LINK:
			l.Peer = integer(value)
		case unix.IFLA_LINK_NETNSID:
			l.PeerNS = integer(value)
		case unix.IFLA_LINKINFO:
			for kind, value := range attrs.In(value) {
				switch kind {
				case nl.IFLA_INFO_KIND:
					l.Kind = attrs.Text(value)
				case nl.IFLA_INFO_DATA:
					l.Bridge = smallNumbers(value)
				case nl.IFLA_INFO_SLAVE_DATA:
					l.Port = smallNumbers(value)
				}
			}
		}
	}
	return l, l.Name != ""
}

// smallNumbers returns the attributes of one, two or four bytes as numbers. It leaves out numbers of more than 16
// bits.
func smallNumbers(data []byte) map[uint16]uint16 {
	all := map[uint16]uint16{}
	for kind, value := range attrs.In(data) {
		switch len(value) {
		case 1:
			all[kind] = uint16(value[0])
		case 2:
			all[kind] = binary.NativeEndian.Uint16(value)
		case 4:
			if n := integer(value); n >= 0 && n <= math.MaxUint16 {
				all[kind] = uint16(n)
			}
		}
	}
	return all
}

func integer(b []byte) int {
	if len(b) < 4 {
		return -1
	}
	return int(int32(binary.NativeEndian.Uint32(b)))
}

func (o *Observed) readAddresses() error {
	messages, err := dump(o.lists, listAddresses(), func(m []byte) ([]byte, bool) { return bytes.Clone(m), true })
	if err != nil {
		return fmt.Errorf("list addresses: %w", err)
	}
	var now unix.Timespec
	if err := unix.ClockGettime(unix.CLOCK_MONOTONIC, &now); err != nil {
		return fmt.Errorf("read the clock: %w", err)
	}
	for _, m := range messages {
		if len(m) < unix.SizeofIfAddrmsg {
			continue
		}
		at := nl.DeserializeIfAddrmsg(m)
		index := int(at.Index)
		for p := range addressesOf(index, [][]byte{m}) {
			o.Addresses[index] = append(o.Addresses[index], p)
			o.Learned[p.Addr()] = at.Flags&unix.IFA_F_PERMANENT == 0
			o.Fresh[p.Addr()] = time.Duration(now.Nano())-createdAt(m) < time.Second
		}
	}
	return nil
}

// createdAt returns the time from the node's start to the address's creation; 0 if unknown. The kernel counts this time
// in hundredths of seconds (struct ifa_cacheinfo).
func createdAt(m []byte) time.Duration {
	for kind, value := range attrs.In(m[unix.SizeofIfAddrmsg:]) {
		if kind == unix.IFA_CACHEINFO && len(value) >= 12 {
			return time.Duration(binary.NativeEndian.Uint32(value[8:])) * 10 * time.Millisecond
		}
	}
	return 0
}

func parseRoute(m []byte) (r routeSeen, ok bool) {
	if len(m) < unix.SizeofRtMsg {
		return r, false
	}
	at := nl.DeserializeRtMsg(m)
	r = routeSeen{Table: int(at.Table), Type: int(at.Type), Protocol: int(at.Protocol)}
	address := netip.IPv4Unspecified()
	if at.Family == unix.AF_INET6 {
		address = netip.IPv6Unspecified()
	}
	for kind, value := range attrs.In(m[unix.SizeofRtMsg:]) {
		switch kind {
		case unix.RTA_DST: // the kernel may report a default route without a destination
			if dst, ok := netip.AddrFromSlice(value); ok {
				address = dst
			}
		case unix.RTA_OIF:
			r.Link = integer(value)
		case unix.RTA_TABLE:
			r.Table = integer(value)
		}
	}
	r.Dst = netip.PrefixFrom(address, int(at.Dst_len))
	// A route with a TOS doesn't count, because it is only for packets with this TOS.
	return r, at.Flags&unix.RTM_F_CLONED == 0 && at.Tos == 0
}

// readError returns an error that wraps errUnknown if a part couldn't be read.
func (o *Observed) readError() error {
	if err := errors.Join(o.links, o.addresses, o.neighbours, o.forwarding, o.routes); err != nil {
		return fmt.Errorf("%w: %w", errUnknown, err)
	}
	return nil
}

func (o *Observed) isMissing(name string) bool {
	_, ok := o.Links[name]
	return o.links == nil && !ok
}

// link returns the link, and false if the link is missing. The parameter reads has the errors from reading the other
// lists that the caller needs. If one of these lists or the links couldn't be read, link returns an error that wraps
// errUnknown.
func (o *Observed) link(name string, reads ...error) (Link, bool, error) {
	if err := errors.Join(append(reads, o.links)...); err != nil {
		return Link{}, false, fmt.Errorf("%s: %w: %w", name, errUnknown, err)
	}
	l, ok := o.Links[name]
	return l, ok, nil
}
