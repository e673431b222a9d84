package bridge

import (
	"bytes"
	"errors"
	"fmt"
	"hash/fnv"
	"net"
	"net/netip"
	"slices"
	"time"

	"github.com/vishvananda/netns"
	"golang.org/x/sys/unix"

	"github.com/weir-net/weir/conf"
	"github.com/weir-net/weir/endpoint"
	"github.com/weir-net/weir/netfilter/batch"
)

// ErrInterfaceExists means that the pod already has an interface of this name.
var ErrInterfaceExists = errors.New("the interface exists already")

// loopback is the index of the link lo in each network namespace.
const loopback = 1

// ErrMACInUse means that another port, or the bridge, has the MAC. The bridge would send frames for this MAC to only
// one of the two.
var ErrMACInUse = errors.New("another port or the bridge has this MAC")

// PortName returns the name of an attachment's link on the node: PortPrefix and a hash of the attachment's ID. It
// has 15 characters, the kernel's maximum.
func PortName(id string) string {
	h := fnv.New64a()
	_, _ = h.Write([]byte(id)) // writing to a hash never fails
	sum := h.Sum64()
	return fmt.Sprintf("%s%010x", PortPrefix, (sum^sum>>40)&(1<<40-1))
}

// Port is a veth pair to make: one end on the bridge, the other in the pod.
type Port struct {
	HostIf    string
	IfName    string // the interface's name in the pod
	Netns     netns.NsHandle
	MAC       net.HardwareAddr // the MAC of the pod's end
	Addresses []endpoint.Address
	Routes    []conf.Route // the configured routes; a default route replaces weir's default route of the same family
	Alias     string       // the alias of the node's end, which names the pod
}

func (p Port) Sender() Sender { return Sender{p.HostIf, p.MAC, p.Addresses} }

// Pair is a veth pair that AddPort has made.
type Pair struct {
	Routes []conf.Route // of the pod's interface
	node   Link         // the end on the node
}

// AddPort makes the pair and configures the pod's end. No packet passes until Start. If AddPort fails, it removes what
// it made. Its errors may wrap ErrInterfaceExists, ErrMACInUse or ErrRouteExists. For a pod's second interface, see
// addSecondaryRoutes.
//
// Equivalent to:
//
//	ip link add HOSTIF mtu MTU type veth peer name IFNAME address MAC mtu MTU netns NETNS
//	ip link set HOSTIF master weir0 addrgenmode none alias ALIAS
//	bridge link set dev HOSTIF isolated on learning off flood off mcast_flood off bcast_flood off
//	ip link set HOSTIF type bridge_slave group_fwd_mask 0xfffd
//	bridge fdb add MAC dev HOSTIF master static
//	ip neigh replace ADDR lladdr MAC dev weir0 nud permanent
//
// and in the pod:
//
//	ip link set lo up; ip addr add ADDR/32 dev IFNAME; ip link set IFNAME up
//	ip neigh replace GATEWAY lladdr BRIDGEMAC dev IFNAME nud permanent
//	ip route add GATEWAY dev IFNAME scope link; ip route add default via GATEWAY dev IFNAME; and the other routes
//
// for an IPv6 address:
//
//	ip link set IFNAME addrgenmode none; ip addr add ADDR/128 dev IFNAME nodad; ip link set IFNAME up
//	ip neigh replace GATEWAY lladdr BRIDGEMAC dev IFNAME nud permanent
//	ip -6 route add default via GATEWAY dev IFNAME onlink
func (b *Bridge) AddPort(p Port) (made Pair, err error) {
	if bytes.Equal(p.MAC, b.MAC) {
		return made, fmt.Errorf("create veth pair %s, %s in the pod, with MAC %s: %w",
			p.HostIf, p.IfName, p.MAC, ErrMACInUse)
	}
	var pair batch.Batch
	create := pair.Add(b.newPair(p), "create veth pair %s, %s in the pod", p.HostIf, p.IfName)
	create.MapError = batch.MapError(unix.EEXIST, ErrInterfaceExists)
	pair.Add(getLink(p.HostIf), "look up new link %s", p.HostIf)
	replies, err := pair.Do(unix.NETLINK_ROUTE, netns.None())
	if err != nil {
		return made, WithModule("veth", err)
	}
	defer func() {
		if err != nil {
			err = errors.Join(err, RemovePort(p.HostIf, p.Addresses))
		}
	}()
	if made.node, err = newLink(replies); err != nil {
		return made, fmt.Errorf("look up new link %s: %w", p.HostIf, err)
	}
	if _, err := b.portBatch(p, made.node.Index).Do(unix.NETLINK_ROUTE, netns.None()); err != nil {
		return made, err
	}
	existing := existingRoutes{}
	if _, err = b.podBatch(p, made.node.Peer, existing).Do(unix.NETLINK_ROUTE, p.Netns); err != nil {
		return made, err
	}
	made.Routes, err = p.addSecondaryRoutes(made.node.Peer, existing)
	return made, err
}

// newLink reads the kernel's answer about the node's end of a new pair. If both ends have the same index, each in its
// own namespace, the answer lacks the index of the pod's end. newLink then fills this index in.
func newLink(replies [][]byte) (Link, error) {
	l, err := linkIn(replies)
	if l.Peer == 0 {
		l.Peer = l.Index
	}
	return l, err
}

// linkIn returns the link that the only reply describes. Without exactly one such reply, it returns batch.ErrNoAnswer.
func linkIn(replies [][]byte) (l Link, err error) {
	ok := false
	if len(replies) == 1 {
		l, ok = parseLink(replies[0])
	}
	if !ok {
		return l, batch.ErrNoAnswer
	}
	return l, nil
}

func (b *Bridge) portBatch(p Port, index int) (port batch.Batch) {
	port.Add(isolate(index), "isolate port %s", p.HostIf)
	mode := port.Add(noLinkLocal(index), "keep %s from a link-local address", p.HostIf)
	mode.MapError = batch.MapError(unix.EAFNOSUPPORT, nil)
	port.Add(setAlias(index, p.Alias), "name %s's pod in its alias", p.HostIf)
	entry := port.Add(addForwarding(index, p.MAC), "add forwarding entry %s to %s", p.MAC, p.HostIf)
	entry.MapError = batch.MapError(unix.EEXIST, ErrMACInUse)
	for _, a := range p.Addresses {
		port.Add(setNeighbour(b.Index, a.Addr, p.MAC), "add neighbour %s to %s", a.Addr, Name)
	}
	return port
}

func (b *Bridge) podBatch(p Port, index int, existing existingRoutes) (pod batch.Batch) {
	pod.Add(linkUp(loopback, ""), "set lo up in the pod")
	for _, a := range p.Addresses {
		if a.Addr.Is6() {
			mode := pod.Add(noLinkLocal(index), "keep %s in the pod from a link-local address", p.IfName)
			mode.MapError = explainNoIPv6InPod
		}
		address := pod.Add(addAddress(index, a.Addr), "add address %s to %s in the pod", a.Addr, p.IfName)
		if a.Addr.Is6() {
			address.MapError = explainNoIPv6InPod
		}
	}
	pod.Add(linkUp(index, ""), "set %s up in the pod", p.IfName)
	for _, a := range p.Addresses {
		pod.Add(setNeighbour(index, a.Gateway, b.MAC), "add the gateway %s as neighbour in the pod", a.Gateway)
		if a.Addr.Is4() {
			onLink := conf.ScopeLink
			toGateway := conf.Route{Dst: netip.PrefixFrom(a.Gateway, a.Gateway.BitLen()), Scope: &onLink}
			route := pod.Add(addRoute(index, toGateway), "add the route to gateway %s in the pod", a.Gateway)
			route.MapError = existing.tolerate(toGateway)
		}
		given := hasDefault(p.Routes, a)
		for _, r := range conf.RoutesOf(p.Routes, conf.FamilyOf(a.Addr), a.Gateway) {
			route := pod.Add(addRoute(index, r), "add the route to %s via %s in the pod", r.Dst, a.Gateway)
			route.MapError = existing.refuse(r)
			if r.IsDefault() && !given {
				route.MapError = existing.tolerate(r)
			}
		}
	}
	return pod
}

// SetLinkUp sets the node's end of the pair up. Then packets pass as soon as the kernel has activated the link.
//
// Equivalent to: ip link set HOSTIF up
func SetLinkUp(hostIf string) error {
	var up batch.Batch
	up.Add(linkUp(0, hostIf), "set %s up", hostIf)
	_, err := up.Do(unix.NETLINK_ROUTE, netns.None())
	return err
}

// linkWait is the longest time that Start waits for the link. On a quiet machine, the kernel activates the link in less
// than a millisecond.
const linkWait = time.Second

// Start sets the node's end of the pair up. Then it waits until packets pass the pair in both directions, for at most a
// second. A link that is up drops packets until the kernel's link watch has run (net/core/link_watch.c). Since Linux
// 6.8, looking up the link makes the link watch run.
//
// Equivalent to: ip link set HOSTIF up; ip link show HOSTIF; ip link show weir0; ip -n NETNS link show IFNAME
func (p Pair) Start() error {
	var start batch.Batch
	start.Add(linkUp(p.node.Index, ""), "set %s up", p.node.Name)
	for end := time.Now().Add(linkWait); ; time.Sleep(time.Millisecond) {
		start.Add(getLink(p.node.Name), "look up link %s", p.node.Name)
		start.Add(getLink(Name), "look up link %s", Name)
		start.Add(getPeer(p.node), "look up the pod's end of %s", p.node.Name)
		links, err := start.Do(unix.NETLINK_ROUTE, netns.None())
		if err != nil || !slices.ContainsFunc(links, stopped) || time.Now().After(end) {
			return err
		}
		start = nil
	}
}

func stopped(answer []byte) bool {
	l, ok := parseLink(answer)
	return !ok || !l.Running
}

// RemovePort deletes the pair, and the node's neighbour entries for the addresses. A missing pair or entry is no
// error.
//
// Equivalent to: ip neigh del ADDR dev weir0; ip link del HOSTIF
func RemovePort(hostIf string, addrs []endpoint.Address) error {
	var del batch.Batch
	if err := addNeighbourDeletions(&del, addrs); err != nil {
		return err
	}
	del.Add(delLink(hostIf), "delete link %s", hostIf).MapError = batch.MapError(unix.ENODEV, nil)
	_, err := del.Do(unix.NETLINK_ROUTE, netns.None())
	return err
}

// RemoveNeighbours deletes the node's neighbour entries for the addresses. Missing entries are no error.
//
// Equivalent to: ip neigh del ADDR dev weir0
func RemoveNeighbours(addrs []endpoint.Address) error {
	var del batch.Batch
	if err := addNeighbourDeletions(&del, addrs); err != nil || len(del) == 0 {
		return err
	}
	_, err := del.Do(unix.NETLINK_ROUTE, netns.None())
	return err
}

func addNeighbourDeletions(b *batch.Batch, addrs []endpoint.Address) error {
	if len(addrs) == 0 {
		return nil
	}
	index, err := indexOf(Name)
	if index == 0 || err != nil {
		return err
	}
	for _, a := range addrs {
		entry := b.Add(delNeighbour(index, a.Addr), "delete neighbour %s of %s", a.Addr, Name)
		entry.MapError = batch.MapError(unix.ENOENT, nil)
	}
	return nil
}

// indexOf returns the link's index, or 0 if the link doesn't exist. Unlike netlink, it doesn't wait while the kernel
// deletes other links. It first binds a socket to the link, because binding fails at once if the link is missing.
// Without this step, the ioctl that reads the index could run modprobe for a missing link, and wait until modprobe
// ends (dev_load in net/core/dev_ioctl.c).
func indexOf(name string) (int, error) {
	fd, err := unix.Socket(unix.AF_INET, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return 0, fmt.Errorf("look up %s: %w", name, err)
	}
	defer func() { _ = unix.Close(fd) }()
	r, err := unix.NewIfreq(name)
	if err == nil {
		err = unix.BindToDevice(fd, name)
	}
	if err == nil {
		err = unix.IoctlIfreq(fd, unix.SIOCGIFINDEX, r)
	}
	if errors.Is(err, unix.ENODEV) {
		return 0, nil
	}
	if err != nil {
		return 0, fmt.Errorf("look up %s: %w", name, err)
	}
	return int(r.Uint32()), nil
}

// RemoveAll deletes the pairs of all pods, then the bridge. A pair without the bridge would still connect its pod
// with the node.
//
// Equivalent to: for link in $(ls -d /sys/class/net/weirp* /sys/class/net/weir0); do ip link del ${link##*/}; done
func RemoveAll() error {
	ports, err := Ports()
	if err != nil {
		return err
	}
	for _, name := range append(ports, Name) {
		if err := RemovePort(name, nil); err != nil {
			return err
		}
	}
	return nil
}
