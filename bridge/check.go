package bridge

import (
	"errors"
	"fmt"
	"net"

	"github.com/containernetworking/plugins/pkg/netlinksafe"
	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/weir-net/weir/conf"
)

// Check verifies that the port is as Add and Open left it; its error names everything that isn't.
func Check(h netlinksafe.Handle, p Port) error {
	br, err := h.LinkByName(Name)
	if err != nil {
		return fmt.Errorf("bridge %s: %w", Name, err)
	}
	link, err := h.LinkByName(p.HostIf)
	if err != nil {
		return fmt.Errorf("link %s: %w", p.HostIf, err)
	}
	var errs []error
	if link.Attrs().MasterIndex != br.Attrs().Index {
		errs = append(errs, fmt.Errorf("%s is not on %s", p.HostIf, Name))
	}
	if link.Attrs().Flags&net.FlagUp == 0 {
		errs = append(errs, fmt.Errorf("%s is down", p.HostIf))
	}
	if flags, err := h.LinkGetProtinfo(link); err != nil {
		errs = append(errs, fmt.Errorf("flags of port %s: %w", p.HostIf, err))
	} else if !flags.Isolated || flags.Learning || flags.Flood {
		errs = append(errs, fmt.Errorf("port %s is not isolated as it should be: %s", p.HostIf, flags.String()))
	}
	for _, a := range p.Addresses {
		errs = append(errs, hasNeighbour(h, br.Attrs().Index, neighbour(br.Attrs().Index, a.Addr, p.MAC), "on "+Name))
	}
	pod, err := netlinksafe.NewHandleAt(p.Netns, unix.NETLINK_ROUTE)
	if err != nil {
		return errors.Join(append(errs, fmt.Errorf("open netlink in the pod's namespace: %w", err))...)
	}
	defer pod.Close()
	return errors.Join(append(errs, checkPod(pod, p, br.Attrs().HardwareAddr))...)
}

func checkPod(pod netlinksafe.Handle, p Port, gatewayMAC net.HardwareAddr) error {
	link, err := pod.LinkByName(p.IfName)
	if err != nil {
		return fmt.Errorf("%s in the pod: %w", p.IfName, err)
	}
	var errs []error
	index := link.Attrs().Index
	if link.Attrs().HardwareAddr.String() != p.MAC.String() {
		errs = append(errs, fmt.Errorf("%s in the pod has MAC %s, not %s", p.IfName, link.Attrs().HardwareAddr, p.MAC))
	}
	if link.Attrs().Flags&net.FlagUp == 0 {
		errs = append(errs, fmt.Errorf("%s in the pod is down", p.IfName))
	}
	addrs, err := pod.AddrList(link, netlink.FAMILY_ALL)
	if err != nil {
		errs = append(errs, fmt.Errorf("addresses of %s in the pod: %w", p.IfName, err))
	}
	for _, a := range p.Addresses {
		has := false
		for _, b := range addrs {
			has = has || b.IPNet.String() == host(a.Addr).String()
		}
		if !has {
			errs = append(errs, fmt.Errorf("%s in the pod lacks address %s", p.IfName, a.Addr))
		}
		errs = append(errs, checkRoutes(pod, index, conf.RoutesOf(p.Routes, conf.FamilyOf(a.Addr), a.Gateway)))
		errs = append(errs, hasNeighbour(pod, index, neighbour(index, a.Gateway, gatewayMAC), "in the pod"))
	}
	return errors.Join(errs...)
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
