// Command floor does only what every plugin must do. Benchmarks compare plugins with it. "add" makes a veth pair, gives
// the pod's end an address, and makes a route on the node and a route in the pod. "del" deletes the veth pair. floor
// reads no configuration, stores nothing and checks nothing.
//
//	floor add NETNS IFNAME HOSTIF ADDRESS GATEWAY
//	floor del HOSTIF
package main

import (
	"fmt"
	"net"
	"os"

	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netns"
)

func main() {
	var err error
	switch {
	case len(os.Args) == 7 && os.Args[1] == "add":
		err = add(os.Args[2], os.Args[3], os.Args[4], net.ParseIP(os.Args[5]), net.ParseIP(os.Args[6]))
	case len(os.Args) == 3 && os.Args[1] == "del":
		err = netlink.LinkDel(&netlink.Device{LinkAttrs: netlink.LinkAttrs{Name: os.Args[2]}})
	default:
		err = fmt.Errorf("usage: floor add NETNS IFNAME HOSTIF ADDRESS GATEWAY, or floor del HOSTIF")
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, "floor:", err)
		os.Exit(1)
	}
}

func host(ip net.IP) *net.IPNet { return &net.IPNet{IP: ip, Mask: net.CIDRMask(32, 32)} }

func add(path, ifName, hostIf string, address, gateway net.IP) error {
	fd, err := netns.GetFromPath(path)
	if err != nil {
		return err
	}
	veth := netlink.NewVeth(netlink.LinkAttrs{Name: hostIf, TxQLen: -1, Flags: net.FlagUp})
	veth.PeerName, veth.PeerNamespace = ifName, netlink.NsFd(int(fd))
	if err := netlink.LinkAdd(veth); err != nil {
		return err
	}
	if err := netlink.RouteAdd(&netlink.Route{
		LinkIndex: veth.Index,
		Scope:     netlink.SCOPE_LINK,
		Dst:       host(address),
	}); err != nil {
		return err
	}
	pod, err := netlink.NewHandleAt(fd)
	if err != nil {
		return err
	}
	link, err := pod.LinkByName(ifName)
	if err != nil {
		return err
	}
	if err := pod.AddrAdd(link, &netlink.Addr{IPNet: host(address)}); err != nil {
		return err
	}
	if err := pod.LinkSetUp(link); err != nil {
		return err
	}
	return pod.RouteAdd(&netlink.Route{LinkIndex: link.Attrs().Index, Gw: gateway, Flags: int(netlink.FLAG_ONLINK)})
}
