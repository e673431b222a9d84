package bridge

import (
	"bytes"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"slices"
	"strings"

	"github.com/containernetworking/plugins/pkg/netlinksafe"
	"github.com/google/nftables"
	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/weir-net/weir/conf"
	"github.com/weir-net/weir/endpoint"
)

// Check verifies both ends of a pod's veth pair, and the node settings that the pod needs. If weir0 or the port's link
// is missing, the error names only the missing link. Otherwise the error names everything that is wrong or can't be
// read. With mtu 0, the node's end may have any MTU.
func Check(h netlinksafe.Handle, p Port, mtu int) error {
	br, err := h.LinkByName(Name)
	if err != nil {
		return fmt.Errorf("bridge %s: %w", Name, err)
	}
	link, err := h.LinkByName(p.HostIf)
	if err != nil {
		return fmt.Errorf("link %s: %w", p.HostIf, err)
	}
	k := Knowledge{Pods: []Pod{{p.HostIf, p.MAC, p.Addresses, true}}}
	if k.Memory, err = NodeMemory(); err != nil {
		return err
	}
	var errs []error
	o := Observe()
	defer o.Close()
	for _, d := range Compare(Properties(k), o) {
		errs = append(errs, d)
	}
	errs = append(errs, checkCarrier(link, p.HostIf))
	if mtu == 0 {
		mtu = link.Attrs().MTU
	}
	if have := link.Attrs().MTU; have != mtu {
		errs = append(errs, fmt.Errorf("%s has MTU %d, not %d", p.HostIf, have, mtu))
	}
	pod, err := netlinksafe.NewHandleAt(p.Netns, unix.NETLINK_ROUTE)
	if err != nil {
		return errors.Join(append(errs, fmt.Errorf("open netlink in the pod's namespace: %w", err))...)
	}
	defer pod.Close()
	return errors.Join(append(errs, checkPod(pod, p, br.Attrs().HardwareAddr, mtu))...)
}

func checkCarrier(link netlink.Link, name string) error {
	if flags := link.Attrs().RawFlags; flags&unix.IFF_UP != 0 && flags&unix.IFF_LOWER_UP == 0 {
		return fmt.Errorf("%s has no carrier", name)
	}
	return nil
}

func checkUp(link netlink.Link, name string) error {
	if link.Attrs().RawFlags&unix.IFF_UP == 0 {
		return fmt.Errorf("%s is down", name)
	}
	return checkCarrier(link, name)
}

func checkPod(pod netlinksafe.Handle, p Port, gatewayMAC net.HardwareAddr, mtu int) error {
	link, err := pod.LinkByName(p.IfName)
	if err != nil {
		return fmt.Errorf("%s in the pod: %w", p.IfName, err)
	}
	name := p.IfName + " in the pod"
	errs := []error{checkUp(link, name)}
	index := link.Attrs().Index
	// A smaller MTU is allowed: another plugin, such as tuning, may have set it. With a larger MTU, the other end would
	// drop large packets.
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
		if !hasAddress(addrs, hostNet(a.Addr)) {
			errs = append(errs, fmt.Errorf("%s lacks address %s", name, a.Addr))
		}
		errs = append(errs, checkRoutes(pod, index, conf.RoutesOf(p.Routes, conf.FamilyOf(a.Addr), a.Gateway)))
		errs = append(errs, checkNeighbour(pod, index, a.Gateway, gatewayMAC))
	}
	return errors.Join(errs...)
}

// CheckLinkLocal checks the nftables table "bridge weir-link-local", which drops link-local packets of pods on other
// plugins' bridges. It returns an error if the table lacks the endpoint's port, or if the table's rules are wrong. It
// returns nil if the endpoint isn't on another plugin's bridge, or if its record has no index and its link is gone.
func CheckLinkLocal(e endpoint.Endpoint) error {
	ports, err := LinkLocalPorts(map[string]endpoint.Endpoint{e.ID(): e})
	if len(ports) == 0 || err != nil {
		return err
	}
	conn, err := nftables.New()
	if err != nil {
		return fmt.Errorf("open nftables: %w", err)
	}
	has, _, intact, err := readLinkLocal(conn)
	if err == nil && (!intact || !slices.Contains(has, ports[0])) {
		err = fmt.Errorf("nftables table bridge %s doesn't check the packets of %s", conf.LinkLocalTable, e.HostIf)
	}
	return err
}

type Interface struct {
	Name      string
	MAC       string // empty if any MAC is right
	MTU       int    // 0 if any MTU is right
	Addresses []*net.IPNet
}

// CheckInterfaces verifies MACs, MTUs and addresses in the handle's network namespace. The parameter where, such as
// "on the node", is part of the errors' text.
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
			errs = append(errs, fmt.Errorf("prevResult has MTU %d for %s %s, which has %d",
				i.MTU, i.Name, where, link.Attrs().MTU))
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

func checkNeighbour(pod netlinksafe.Handle, index int, addr netip.Addr, mac net.HardwareAddr) error {
	all, err := pod.NeighList(index, int(familyOf(addr)))
	if err != nil {
		return fmt.Errorf("list the neighbours in the pod: %w", err)
	}
	for _, n := range all {
		if n.IP.Equal(addr.AsSlice()) && bytes.Equal(n.HardwareAddr, mac) && n.State == netlink.NUD_PERMANENT {
			return nil
		}
	}
	return fmt.Errorf("the permanent neighbour %s with MAC %s is missing in the pod", addr, mac)
}
