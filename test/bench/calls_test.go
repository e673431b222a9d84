//go:build bench

package bench_test

import (
	"net/netip"
	"os"
	"runtime"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"
)

// The functions below make system calls directly, so that Go's scheduler doesn't wake other threads while a call waits.

// idle is how long a worker waits for a packet before it checks whether the client has ended. lost is how long the
// client waits for an answer.
const (
	idle = 50 * time.Millisecond
	lost = 5 * time.Second
)

func boundSocket(kind int, addr netip.Addr, port int, wait time.Duration) (int, error) {
	fd, err := unix.Socket(unix.AF_INET, kind|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return 0, err
	}
	if err := setWait(fd, wait); err != nil {
		return 0, err
	}
	return fd, unix.Bind(fd, &unix.SockaddrInet4{Addr: addr.As4(), Port: port})
}

func setWait(fd int, wait time.Duration) error {
	tv := unix.NsecToTimeval(wait.Nanoseconds())
	return unix.SetsockoptTimeval(fd, unix.SOL_SOCKET, unix.SO_RCVTIMEO, &tv)
}

func call(name string, number uintptr, args ...uintptr) (int, error) {
	var a [6]uintptr
	copy(a[:], args)
	for {
		r, _, errno := unix.RawSyscall6(number, a[0], a[1], a[2], a[3], a[4], a[5])
		switch errno {
		case 0:
			return int(r), nil
		case unix.EINTR: // Go's scheduler sends signals until the thread pauses
			runtime.Gosched()
		default:
			return 0, os.NewSyscallError(name, errno)
		}
	}
}

func read(fd int, p []byte) (int, error) {
	return call("read", unix.SYS_READ, uintptr(fd), uintptr(unsafe.Pointer(&p[0])), uintptr(len(p)))
}

func write(fd int, p []byte) (int, error) {
	return call("write", unix.SYS_WRITE, uintptr(fd), uintptr(unsafe.Pointer(&p[0])), uintptr(len(p)))
}

func acceptFrom(fd int) (int, error) { return call("accept", unix.SYS_ACCEPT4, uintptr(fd)) }

func closeFD(fd int) error {
	_, err := call("close", unix.SYS_CLOSE, uintptr(fd))
	return err
}

func connectTo(fd int, to *unix.RawSockaddrInet4) error {
	_, err := call("connect", unix.SYS_CONNECT, uintptr(fd), uintptr(unsafe.Pointer(to)), unsafe.Sizeof(*to))
	return err
}

func newSocket(kind int) (int, error) {
	return call("socket", unix.SYS_SOCKET, unix.AF_INET, uintptr(kind|unix.SOCK_CLOEXEC))
}

func echo(fd int, p []byte) error {
	var from unix.RawSockaddrInet4
	size := uint32(unsafe.Sizeof(from))
	k, err := call("recvfrom", unix.SYS_RECVFROM, uintptr(fd), uintptr(unsafe.Pointer(&p[0])), uintptr(len(p)), 0,
		uintptr(unsafe.Pointer(&from)), uintptr(unsafe.Pointer(&size)))
	if err != nil {
		return err
	}
	_, err = call("sendto", unix.SYS_SENDTO, uintptr(fd), uintptr(unsafe.Pointer(&p[0])), uintptr(k), 0,
		uintptr(unsafe.Pointer(&from)), uintptr(size))
	return err
}
