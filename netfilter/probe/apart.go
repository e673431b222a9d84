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

// Apart calls the function do in a new network namespace, which the kernel removes afterwards with everything in it. If
// the process has no right to make a namespace, as in the agent's container, it calls do in the node's own.
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
		if err == nil { // masqueraded packets need a source other than a loopback address
			addr := &net.IPNet{IP: net.IPv4(192, 0, 2, 1), Mask: net.CIDRMask(32, 32)}
			err = netlink.AddrAdd(lo, &netlink.Addr{IPNet: addr})
		}
		if err == nil {
			do()
		}
		err = errors.Join(err, scratch.Close())
	}
	if netns.Set(own) == nil {
		runtime.UnlockOSThread() // a thread that stays locked ends with its goroutine
	}
	if err != nil {
		do()
	}
}

// Families returns the families that pods of this node may have. Without an IPv6 address, the node can have no pods
// with IPv6.
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
