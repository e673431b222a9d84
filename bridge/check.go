package bridge

import (
	"errors"
	"fmt"
	"net"
	"slices"
	"strings"

	"github.com/containernetworking/plugins/pkg/netlinksafe"
	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/weir-net/weir/conf"
)

// Check verifies that the port is as Add and Open left it; its error names everything that isn't. mtu 0 means: whatever
// the end on the node has.
func Check(h netlinksafe.Handle, p Port, mtu int) error {
	br, err := h.LinkByName(Name)
	if err != nil {
		return fmt.Errorf("bridge %s: %w", Name, err)
	}
	link, err := h.LinkByName(p.HostIf)
	if err != nil {
		return fmt.Errorf("link %s: %w", p.HostIf, err)
	}
	errs := []error{checkUp(link, p.HostIf)}
	if br.Attrs().Flags&net.FlagUp == 0 { // its carrier comes a moment after its port's
		errs = append(errs, fmt.Errorf("%s is down", Name))
	}
	if link.Attrs().MasterIndex != br.Attrs().Index {
		errs = append(errs, fmt.Errorf("%s is not on %s", p.HostIf, Name))
	}
	if mtu == 0 {
		mtu = link.Attrs().MTU
	}
	if have := link.Attrs().MTU; have != mtu {
		errs = append(errs, fmt.Errorf("%s has MTU %d, not %d", p.HostIf, have, mtu))
	}
	if flags, err := h.LinkGetProtinfo(link); err != nil {
		errs = append(errs, fmt.Errorf("flags of port %s: %w", p.HostIf, err))
	} else if !flags.Isolated || flags.Learning || flags.Flood {
		errs = append(errs, fmt.Errorf("port %s is not isolated as it should be: %s", p.HostIf, flags.String()))
	}
	errs = append(errs, hasForwarding(h, link, p.MAC))
	for _, a := range p.Addresses {
		errs = append(errs, hasNeighbour(h, br.Attrs().Index, neighbour(br.Attrs().Index, a.Addr, p.MAC), "on "+Name))
	}
	pod, err := netlinksafe.NewHandleAt(p.Netns, unix.NETLINK_ROUTE)
	if err != nil {
		return errors.Join(append(errs, fmt.Errorf("open netlink in the pod's namespace: %w", err))...)
	}
	defer pod.Close()
	return errors.Join(append(errs, checkPod(pod, p, br.Attrs().HardwareAddr, mtu))...)
}

// checkUp of one end of a pair, which has a carrier when both are up.
func checkUp(link netlink.Link, name string) error {
	switch flags := link.Attrs().RawFlags; {
	case flags&unix.IFF_UP == 0:
		return fmt.Errorf("%s is down", name)
	case flags&unix.IFF_LOWER_UP == 0:
		return fmt.Errorf("%s has no carrier", name)
	}
	return nil
}

func checkPod(pod netlinksafe.Handle, p Port, gatewayMAC net.HardwareAddr, mtu int) error {
	link, err := pod.LinkByName(p.IfName)
	if err != nil {
		return fmt.Errorf("%s in the pod: %w", p.IfName, err)
	}
	name := p.IfName + " in the pod"
	errs := []error{checkUp(link, name)}
	index := link.Attrs().Index
	// A plugin after weir may have made it smaller, as tuning does; what is larger than the other end takes gets lost.
	if have := link.Attrs().MTU; have > mtu {
		errs = append(errs, fmt.Errorf("%s has MTU %d, and its other end %d", name, have, mtu))
	}
	if link.Attrs().HardwareAddr.String() != p.MAC.String() {
		errs = append(errs, fmt.Errorf("%s has MAC %s, not %s", name, link.Attrs().HardwareAddr, p.MAC))
	}
	addrs, err := pod.AddrList(link, netlink.FAMILY_ALL)
	if err != nil {
		errs = append(errs, fmt.Errorf("addresses of %s: %w", name, err))
	}
	for _, a := range p.Addresses {
		if !hasAddress(addrs, host(a.Addr)) {
			errs = append(errs, fmt.Errorf("%s lacks address %s", name, a.Addr))
		}
		errs = append(errs, checkRoutes(pod, index, conf.RoutesOf(p.Routes, conf.FamilyOf(a.Addr), a.Gateway)))
		errs = append(errs, hasNeighbour(pod, index, neighbour(index, a.Gateway, gatewayMAC), "in the pod"))
	}
	return errors.Join(errs...)
}

// Interface is one of a CNI result's.
type Interface struct {
	Name      string
	MAC       string // empty: any
	MTU       int    // 0: any
	Addresses []*net.IPNet
}

// CheckInterfaces verifies that the interfaces are there, in the namespace that the handle was opened in, as a result says.
func CheckInterfaces(h netlinksafe.Handle, where string, all []Interface) error {
	var errs []error
	for _, i := range all {
		link, err := h.LinkByName(i.Name)
		if err != nil {
			errs = append(errs, fmt.Errorf("prevResult has interface %s %s: %w", i.Name, where, err))
			continue
		}
		if mac := link.Attrs().HardwareAddr.String(); i.MAC != "" && !strings.EqualFold(mac, i.MAC) {
			errs = append(errs, fmt.Errorf("prevResult has MAC %s for %s %s, which has %s", i.MAC, i.Name, where, mac))
		}
		if i.MTU != 0 && link.Attrs().MTU != i.MTU {
			errs = append(errs, fmt.Errorf("prevResult has MTU %d for %s %s, which has %d", i.MTU, i.Name, where, link.Attrs().MTU))
		}
		if len(i.Addresses) == 0 {
			continue
		}
		addrs, err := h.AddrList(link, netlink.FAMILY_ALL)
		if err != nil {
			errs = append(errs, fmt.Errorf("addresses of %s %s: %w", i.Name, where, err))
		}
		for _, want := range i.Addresses {
			if !hasAddress(addrs, want) {
				errs = append(errs, fmt.Errorf("prevResult has address %s for %s %s, which lacks it", want, i.Name, where))
			}
		}
	}
	return errors.Join(errs...)
}

func hasAddress(addrs []netlink.Addr, want *net.IPNet) bool {
	return slices.ContainsFunc(addrs, func(a netlink.Addr) bool { return a.IPNet.String() == want.String() })
}

// hasForwarding looks for the bridge's static entry for the port.
//
// Equivalent to: bridge fdb show dev HOSTIF | grep "^MAC master weir0 static"
func hasForwarding(h netlinksafe.Handle, port netlink.Link, mac net.HardwareAddr) error {
	all, err := h.NeighList(port.Attrs().Index, unix.AF_BRIDGE)
	if err != nil {
		return fmt.Errorf("forwarding entries of %s: %w", port.Attrs().Name, err)
	}
	for _, n := range all {
		if n.HardwareAddr.String() == mac.String() && n.State&(netlink.NUD_NOARP|netlink.NUD_PERMANENT) != 0 {
			return nil
		}
	}
	return fmt.Errorf("the static forwarding entry for %s is missing on port %s", mac, port.Attrs().Name)
}

func hasNeighbour(h netlinksafe.Handle, index int, want *netlink.Neigh, where string) error {
	all, err := h.NeighList(index, want.Family)
	if err != nil {
		return fmt.Errorf("neighbours %s: %w", where, err)
	}
	for _, n := range all {
		if n.IP.Equal(want.IP) && n.HardwareAddr.String() == want.HardwareAddr.String() && n.State == netlink.NUD_PERMANENT {
			return nil
		}
	}
	return fmt.Errorf("the permanent neighbour %s with MAC %s is missing %s", want.IP, want.HardwareAddr, where)
}
