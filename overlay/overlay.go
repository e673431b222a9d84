package overlay

import (
	"errors"
	"fmt"
	"maps"
	"net"
	"net/netip"
	"slices"
	"time"

	"github.com/containernetworking/plugins/pkg/netlinksafe"
	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/weir-net/weir/bridge"
	"github.com/weir-net/weir/conf"
	"github.com/weir-net/weir/endpoint"
	"github.com/weir-net/weir/policy/ruleset"
)

// Overlay writes the VXLAN device, the entries and the routes of a Plan to the kernel. A Gate writes the rest.
type Overlay struct{ h netlinksafe.Handle }

func New(h netlinksafe.Handle) *Overlay { return &Overlay{h} }

// Applied says what Apply had to write, and what the kernel refused.
type Applied struct {
	// Lacks are the parts of the plan that Apply found missing or wrong. If Apply had to make the VXLAN device, Lacks
	// has only the device: its addresses, neighbours and routes were missing for the same reason.
	Lacks []Lack
	// Refused has a problem for each node whose route or entry the kernel refuses.
	Refused []ruleset.Problem
}

type Lack struct {
	// Node is the node to which the part leads. It is empty for parts of the VXLAN device itself.
	Node string
	// Was says what was wrong, such as "weir-vxlan is down".
	Was string
	// Command is a shell command that would make the part. Apply may set further properties.
	Command string
}

func (a *Applied) lack(was, command string, args ...any) { a.lackTo("", was, command, args...) }

func (a *Applied) lackTo(node, was, command string, args ...any) {
	a.Lacks = append(a.Lacks, Lack{node, was, fmt.Sprintf(command, args...)})
}

// Apply makes the kernel's overlay equal to the plan. If nothing differs, it writes nothing. If the kernel refuses
// a route or an entry, Apply reports it in Refused and writes the rest. Without a node address, Apply only removes
// weir's routes.
func (o *Overlay) Apply(p Plan) (Applied, error) {
	var all Applied
	if !p.NodeAddress.IsValid() {
		return all, o.removeRoutes()
	}
	tunnel := 0 // the index of the VXLAN device, or 0 if no remote is behind a tunnel
	refused := refusals{}
	made := false
	if slices.ContainsFunc(p.Remotes, func(remote Remote) bool { return !remote.Direct }) {
		link, isNew, err := o.ensureTunnel(p, &all)
		if err != nil {
			return all, err
		}
		tunnel, made = link.Attrs().Index, isNew
		if err := o.setNeighbours(tunnel, p.Remotes, &all, refused); err != nil {
			all.Refused = refused.problems()
			return all, err
		}
	} else if err := o.removeTunnel(); err != nil {
		return all, err
	}
	err := o.setRoutes(tunnel, p, &all, refused)
	if made {
		all.Lacks = all.Lacks[:1] // all other parts are missing because the device was missing
	}
	all.Refused = refused.problems()
	return all, err
}

type refusals map[string]error

func (r refusals) problems() []ruleset.Problem {
	var all []ruleset.Problem
	for _, node := range slices.Sorted(maps.Keys(r)) {
		all = append(all, ruleset.Problem{
			Object: "Node " + node, Field: "status.addresses",
			Message: fmt.Sprintf("the kernel refuses a route or tunnel to it, so its pods can't be reached: %v", r[node]),
		})
	}
	return all
}

// ensureTunnel makes or repairs the VXLAN device. It fails while the plan has no MTU, or no link has the node's
// address.
//
// Equivalent to:
//
//	ip link add weir-vxlan address MAC mtu MTU type vxlan id VNI local ADDR dstport PORT nolearning
//	ip link set weir-vxlan addrgenmode none; sysctl net.ipv6.conf.weir-vxlan.accept_ra=0
//	ip addr replace GATEWAY/32 dev weir-vxlan; ip link set weir-vxlan up  (IPv6: GATEWAY/128 and nodad)
func (o *Overlay) ensureTunnel(p Plan, all *Applied) (link netlink.Link, made bool, err error) {
	if err := o.checkNodeAddress(p.NodeAddress); err != nil {
		return nil, false, err
	}
	if p.TunnelMTU == 0 {
		return nil, false, fmt.Errorf("%s: the MTU of the paths to other nodes is unknown", conf.Tunnel)
	}
	link, made, err = o.tunnel(p)
	if err != nil {
		return nil, false, err
	}
	if made {
		all.lack(conf.Tunnel+" isn't there", "ip link add %s type vxlan", conf.Tunnel)
	}
	if mtu := link.Attrs().MTU; mtu != p.TunnelMTU {
		all.lack(fmt.Sprintf("%s has MTU %d, not %d", conf.Tunnel, mtu, p.TunnelMTU),
			"ip link set %s mtu %d", conf.Tunnel, p.TunnelMTU)
		if err := o.configure(func() error { return o.h.LinkSetMTU(link, p.TunnelMTU) }); err != nil {
			return nil, false, fmt.Errorf("set the MTU of %s to %d: %w", conf.Tunnel, p.TunnelMTU, err)
		}
	}
	if err := o.setAddresses(link, p.Gateways, all); err != nil {
		return nil, false, err
	}
	if !isUp(link) {
		all.lack(conf.Tunnel+" is down", "ip link set %s up", conf.Tunnel)
		if err := o.h.LinkSetUp(link); err != nil {
			return nil, false, fmt.Errorf("set %s up: %w", conf.Tunnel, err)
		}
	}
	return link, made, nil
}

func isUp(link netlink.Link) bool { return link.Attrs().Flags&net.FlagUp != 0 }

// tunnel returns the VXLAN device, and makes it if it is missing or has other properties.
func (o *Overlay) tunnel(p Plan) (link netlink.Link, made bool, err error) {
	want := &netlink.Vxlan{
		LinkAttrs: netlink.LinkAttrs{Name: conf.Tunnel, HardwareAddr: MAC(p.NodeAddress), MTU: p.TunnelMTU, TxQLen: -1},
		VxlanId:   int(p.VNI), SrcAddr: p.NodeAddress.AsSlice(), Port: int(p.Port), Learning: false,
	}
	link, err = o.h.LinkByName(conf.Tunnel)
	switch {
	case err == nil && sameTunnel(link, want) && isUp(link):
		return link, false, nil
	case err == nil && sameTunnel(link, want): // not up: perhaps configure was killed before its end
		return link, false, o.configure(func() error { return nil })
	case err == nil:
		if err := o.h.LinkDel(link); err != nil {
			return nil, false, fmt.Errorf("delete %s, which has other properties: %w", conf.Tunnel, err)
		}
	case !errors.As(err, &netlink.LinkNotFoundError{}):
		return nil, false, fmt.Errorf("look up %s: %w", conf.Tunnel, err)
	}
	err = o.configure(func() error { return o.h.LinkAdd(want) })
	if errors.Is(err, unix.EEXIST) {
		return nil, false, fmt.Errorf(
			"create %s: another VXLAN device has VNI %d on port %d; --overlay-vni or --overlay-port give weir's another: %w",
			conf.Tunnel, p.VNI, p.Port, err)
	}
	if err != nil {
		return nil, false, bridge.WithModule("vxlan", fmt.Errorf("create %s: %w", conf.Tunnel, err))
	}
	if link, err = o.h.LinkByName(conf.Tunnel); err != nil {
		return nil, false, fmt.Errorf("look up new %s: %w", conf.Tunnel, err)
	}
	return link, true, nil
}

// lockWait is how long configure waits for the node's lock. A process that hangs may have the lock, and the agent must
// go on meanwhile.
const lockWait = time.Second

// configure calls the function change, after which the kernel may configure IPv6 on the tunnel's device by itself: for
// example, change makes the device, or gives the device an MTU that is large enough for IPv6. Then configure stops the
// kernel from configuring IPv6. If that fails, the agent's check of the node settings reports it.
//
// Meanwhile configure has the node's lock, under which the agent repairs node settings. Otherwise the agent could find
// the kernel's defaults on the device, and report them as another program's change.
func (o *Overlay) configure(change func() error) error {
	unlock, err := endpoint.LockWithin(lockWait)
	if err != nil {
		return err
	}
	defer unlock()
	if err := change(); err != nil {
		return err
	}
	_ = bridge.RemoveAutoconfigured(o.h)
	return nil
}

func (o *Overlay) checkNodeAddress(local netip.Addr) error {
	addrs, err := o.h.AddrList(nil, netlink.FAMILY_ALL)
	if err != nil {
		return fmt.Errorf("list the node's addresses: %w", err)
	}
	for _, a := range addrs {
		if ip, ok := netip.AddrFromSlice(a.IP); ok && ip.Unmap() == local {
			return nil
		}
	}
	return fmt.Errorf("no link has the node's address %s", local)
}

func sameTunnel(link netlink.Link, want *netlink.Vxlan) bool {
	have, ok := link.(*netlink.Vxlan)
	return ok && have.VxlanId == want.VxlanId && have.SrcAddr.Equal(want.SrcAddr) && have.Port == want.Port &&
		!have.Learning && have.HardwareAddr.String() == want.HardwareAddr.String()
}

func (o *Overlay) setAddresses(link netlink.Link, want []netip.Addr, all *Applied) error {
	have, err := o.h.AddrList(link, netlink.FAMILY_ALL)
	if err != nil {
		return fmt.Errorf("list addresses of %s: %w", conf.Tunnel, err)
	}
	has := map[string]bool{}
	for _, a := range have {
		has[a.IPNet.String()] = true
		wanted := slices.ContainsFunc(want, func(w netip.Addr) bool { return hostNet(w).String() == a.IPNet.String() })
		if wanted {
			continue
		}
		if err := o.h.AddrDel(link, &a); err != nil {
			return fmt.Errorf("delete address %s of %s: %w", a.IPNet, conf.Tunnel, err)
		}
	}
	for _, w := range want {
		if has[hostNet(w).String()] {
			continue
		}
		all.lack(fmt.Sprintf("%s lacks the address %s", conf.Tunnel, w), "ip addr replace %s dev %s", w, conf.Tunnel)
		addr := &netlink.Addr{IPNet: hostNet(w)}
		if w.Is6() {
			addr.Flags = unix.IFA_F_NODAD
		}
		if err := o.h.AddrReplace(link, addr); err != nil {
			return fmt.Errorf("add address %s to %s: %w", w, conf.Tunnel, err)
		}
	}
	return nil
}

func hostNet(a netip.Addr) *net.IPNet {
	return &net.IPNet{IP: a.AsSlice(), Mask: net.CIDRMask(a.BitLen(), a.BitLen())}
}

// Remove deletes the whole overlay: routes, device and gate.
//
// Equivalent to:
//
//	ip route flush proto 88; ip -6 route flush proto 88
//	ip link del weir-vxlan; nft delete table inet weir-tunnel
func (o *Overlay) Remove() error {
	return errors.Join(o.removeRoutes(), o.removeTunnel(), Gate{}.Remove())
}

func (o *Overlay) removeTunnel() error {
	link, err := o.h.LinkByName(conf.Tunnel)
	if errors.As(err, &netlink.LinkNotFoundError{}) {
		return nil
	}
	if err == nil {
		err = o.h.LinkDel(link)
	}
	if err != nil {
		return fmt.Errorf("delete %s: %w", conf.Tunnel, err)
	}
	return nil
}
