package probe

import (
	"errors"
	"syscall"

	"golang.org/x/sys/unix"
)

// dontFragment makes the kernel refuse packets larger than a link's MTU, instead of fragmenting them.
//
// Equivalent to: ping -M do
func dontFragment(network, _ string, conn syscall.RawConn) (err error) {
	level, option, value := unix.IPPROTO_IP, unix.IP_MTU_DISCOVER, unix.IP_PMTUDISC_DO
	if network == "udp6" {
		level, option, value = unix.IPPROTO_IPV6, unix.IPV6_MTU_DISCOVER, unix.IPV6_PMTUDISC_DO
	}
	controlErr := conn.Control(func(fd uintptr) { err = unix.SetsockoptInt(int(fd), level, option, value) })
	return errors.Join(controlErr, err)
}
