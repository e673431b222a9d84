package probe

import (
	"errors"
	"net"
	"os"
	"runtime"
	"slices"

	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netns"

	"github.com/weir-net/weir/conf"
)

// Apart calls do in a new network namespace, which the kernel removes afterwards with all that is in it. Without the
// right to make one, as in the agent's container, it calls do in the node's own.
//
// Equivalent to: unshare --net sh -c "ip link set lo up; ip address add 192.0.2.1/32 dev lo; …"
func Apart(do func()) {
	runtime.LockOSThread()
	own, err := netns.Get()
	if err != nil {
		runtime.UnlockOSThread()
		do()
		return
	}
	defer func() { _ = own.Close() }()
	scratch, err := netns.New()
	if err == nil {
		var lo netlink.Link
		if lo, err = netlink.LinkByName("lo"); err == nil {
			err = netlink.LinkSetUp(lo)
		}
		if err == nil { // an address of lo's own can't be the source of masqueraded packets
			addr := &net.IPNet{IP: net.IPv4(192, 0, 2, 1), Mask: net.CIDRMask(32, 32)}
			err = netlink.AddrAdd(lo, &netlink.Addr{IPNet: addr})
		}
		if err == nil {
			do()
		}
		err = errors.Join(err, scratch.Close())
	}
	if netns.Set(own) == nil {
		runtime.UnlockOSThread() // otherwise the thread ends with the goroutine
	}
	if err != nil {
		do()
	}
}

// Families returns the families that weir may need on this node. Without an IPv6 address of its own, the node can have
// no pods with IPv6.
func Families() []conf.Family {
	addrs, err := net.InterfaceAddrs()
	six := err != nil || slices.ContainsFunc(addrs, func(a net.Addr) bool {
		ip, ok := a.(*net.IPNet)
		return ok && ip.IP.To4() == nil && ip.IP.IsGlobalUnicast()
	})
	if _, err := os.Stat("/proc/sys/net/ipv6"); err != nil || !six {
		return conf.Families[:1]
	}
	return conf.Families[:]
}
