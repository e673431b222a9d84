package probe

import (
	"errors"
	"fmt"
	"net"
	"os"
	"runtime"
	"slices"

	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netns"
	"golang.org/x/sys/unix"

	"github.com/weir-net/weir/conf"
)

// Apart calls the function do in a new network namespace, which the kernel removes afterwards with everything in it. If
// Apart can't make a namespace, it calls the function in the node's own namespace: the agent's container, for example,
// has no right to make a namespace. Apart returns an error only if a thread couldn't leave the new namespace. In this
// case, the function has run, and the thread ends.
//
// Equivalent to: unshare --net sh -c "ip link set lo up; ip address add 192.0.2.1/32 dev lo; …"
func Apart(do func()) error {
	ready := false
	err := inScratch(func() {
		if ready = setUpLoopback() == nil; ready {
			do()
		}
	}, netns.Set)
	if !ready {
		do()
	}
	if errors.As(err, new(*StuckError)) {
		return err
	}
	return nil
}

// InScratch calls the function do in a new network namespace, on a thread of its own. After a StuckError, the function
// has run. After any other error, the function hasn't run.
//
// Equivalent to: unshare --net
func InScratch(do func()) error { return inScratch(do, netns.Set) }

func inScratch(do func(), enter func(netns.NsHandle) error) error {
	done := make(chan error)
	go func() {
		// Go ends a thread that is still locked when its goroutine ends. So no other goroutine uses a thread in the
		// wrong namespace.
		runtime.LockOSThread()
		own, err := netns.Get()
		if err != nil {
			runtime.UnlockOSThread()
			done <- fmt.Errorf("open the network namespace: %w", err)
			return
		}
		defer func() { _ = own.Close() }()
		// This code doesn't call netns.New, because that function makes the namespace and then opens it. If it
		// couldn't open the namespace, the thread would stay in the new namespace.
		if err := unix.Unshare(unix.CLONE_NEWNET); err != nil {
			runtime.UnlockOSThread()
			done <- fmt.Errorf("no new network namespace can be made: %w", err)
			return
		}
		do()
		if err := enter(own); err != nil {
			done <- &StuckError{err}
			return
		}
		runtime.UnlockOSThread()
		done <- nil
	}()
	return <-done
}

// StuckError says that a thread couldn't go back to its network namespace. The thread ends.
type StuckError struct{ err error }

func (e *StuckError) Error() string {
	return fmt.Sprintf("a thread can't leave the network namespace of a trial, so it ends: %v", e.err)
}

func (e *StuckError) Unwrap() error { return e.err }

func setUpLoopback() error {
	lo, err := netlink.LinkByName("lo")
	if err != nil {
		return err
	}
	if err := netlink.LinkSetUp(lo); err != nil {
		return err
	}
	// Masqueraded packets need a source other than a loopback address.
	addr := &net.IPNet{IP: net.IPv4(192, 0, 2, 1), Mask: net.CIDRMask(32, 32)}
	return netlink.AddrAdd(lo, &netlink.Addr{IPNet: addr})
}

// Families returns the families that pods of this node may have. IPv6 is among them only if the kernel has IPv6, and a
// link has an IPv6 address other than a loopback or link-local address. If the addresses can't be listed, the node
// counts as having such an address.
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
