package nodetest

import (
	"encoding/binary"
	"errors"
	"fmt"
	"os"
	"runtime"
	"testing"
	"unsafe"

	"golang.org/x/sys/unix"
)

// These numbers are missing in the package unix (include/uapi/linux/seccomp.h).
const (
	seccompSetModeFilter = 1
	// tsync applies the filter to all threads. newListener returns a descriptor from which the filtered calls are read.
	// The kernel accepts both flags together only with esrch.
	tsync, newListener, esrch = 1 << 0, 1 << 3, 1 << 4
	retAllow, retErrno        = 0x7fff0000, 0x00050000
	retUserNotif              = 0x7fc00000
	notifRecv                 = 0xc0502100 // SECCOMP_IOCTL_NOTIF_RECV
	notifSend                 = 0xc0182101 // SECCOMP_IOCTL_NOTIF_SEND
	notifIDValid              = 0x40082102 // SECCOMP_IOCTL_NOTIF_ID_VALID
	flagContinue              = 1
)

// call is a system call that waits for an answer (struct seccomp_notif).
type call struct {
	id          uint64
	pid, flags  uint32
	number      int32
	arch        uint32
	instruction uint64
	args        [6]uint64
}

type answer struct { // struct seccomp_notif_resp
	id    uint64
	value int64
	err   int32
	flags uint32
}

// EditNetlink passes each netlink message of this process and its later children to the function edit, before the
// kernel receives the message. edit may change the message, but not its length. If edit returns an error, the system
// call fails with this error. If legacy is false, the kernel also seems to have no tables of iptables-legacy. All this
// lasts until the process ends.
func EditNetlink(t testing.TB, legacy bool, edit func(message []byte) unix.Errno) {
	t.Helper()
	filter := filterOf(legacy)
	program := unix.SockFprog{Len: uint16(len(filter)), Filter: &filter[0]}
	fd, _, errno := unix.Syscall(unix.SYS_SECCOMP, seccompSetModeFilter, tsync|newListener|esrch,
		uintptr(unsafe.Pointer(&program)))
	runtime.KeepAlive(filter)
	if errno != 0 {
		t.Fatalf("filter the netlink messages of the process: %v", errno)
	}
	go func() {
		for {
			var c call
			if _, _, errno := unix.Syscall(unix.SYS_IOCTL, fd, notifRecv, uintptr(unsafe.Pointer(&c))); errno != 0 {
				if errno == unix.EINTR || errno == unix.ENOENT { // ENOENT: the process was killed
					continue
				}
				panic(fmt.Sprintf("receive a filtered call: %v", errno))
			}
			a := answer{id: c.id, flags: flagContinue}
			err := c.each(edit)
			var refused unix.Errno
			switch {
			case err == nil, !c.waits(fd): // the call doesn't wait any more if the process was killed
			case errors.As(err, &refusal{}) && errors.As(err, &refused):
				a.err, a.flags = -int32(refused), 0
			default:
				panic(fmt.Sprintf("edit the netlink messages of process %d: %v", c.pid, err))
			}
			// The call fails if the process was killed, which is no fault of the test.
			_, _, _ = unix.Syscall(unix.SYS_IOCTL, fd, notifSend, uintptr(unsafe.Pointer(&a)))
		}
	}()
}

// waits reports whether the system call still waits for an answer. If the call doesn't wait, its process was killed,
// and errors of reading the process's memory don't matter.
func (c *call) waits(fd uintptr) bool {
	_, _, errno := unix.Syscall(unix.SYS_IOCTL, fd, notifIDValid, uintptr(unsafe.Pointer(&c.id)))
	return errno == 0
}

// refusal is an error that edit has returned. The system call fails with this error.
type refusal struct{ error }

func (r refusal) Unwrap() error { return r.error }

// filterOf returns a seccomp program that passes sendto and sendmsg to EditNetlink. If legacy is false, the socket
// options of iptables-legacy's tables don't exist (IPT_BASE_CTL in include/uapi/linux/netfilter_ipv4/ip_tables.h, and
// IP6T_BASE_CTL).
func filterOf(legacy bool) (f []unix.SockFilter) {
	const number, level, option = 0, 24, 32 // offsets in struct seccomp_data
	add := func(code uint16, jt, jf uint8, k uint32) {
		f = append(f, unix.SockFilter{Code: code, Jt: jt, Jf: jf, K: k})
	}
	const load, equal, atLeast, ret = unix.BPF_LD | unix.BPF_W | unix.BPF_ABS, unix.BPF_JMP | unix.BPF_JEQ | unix.BPF_K,
		unix.BPF_JMP | unix.BPF_JGE | unix.BPF_K, unix.BPF_RET | unix.BPF_K
	add(load, 0, 0, number)
	for _, n := range []uint32{unix.SYS_SENDTO, unix.SYS_SENDMSG} {
		add(equal, 0, 1, n)
		add(ret, 0, 0, retUserNotif)
	}
	if !legacy {
		add(equal, 2, 0, unix.SYS_SETSOCKOPT)
		add(equal, 1, 0, unix.SYS_GETSOCKOPT)
		add(ret, 0, 0, retAllow)
		add(load, 0, 0, level)
		add(equal, 2, 0, unix.SOL_IP)
		add(equal, 1, 0, unix.SOL_IPV6)
		add(ret, 0, 0, retAllow)
		add(load, 0, 0, option)
		add(atLeast, 0, 2, 64)
		add(atLeast, 1, 0, 66) // IPV6_RECVTCLASS, an option of IPv6, has the number 66
		add(ret, 0, 0, retErrno|uint32(unix.ENOPROTOOPT))
	}
	add(ret, 0, 0, retAllow)
	return f
}

// each calls edit for each netlink message of the system call. It writes changed messages back into the process's
// memory.
func (c *call) each(edit func([]byte) unix.Errno) error {
	memory, err := os.OpenFile(fmt.Sprintf("/proc/%d/mem", c.pid), os.O_RDWR, 0)
	if err != nil {
		return err
	}
	defer func() { _ = memory.Close() }()
	read := func(at, length uint64) ([]byte, error) {
		b := make([]byte, length)
		_, err := memory.ReadAt(b, int64(at))
		return b, err
	}
	word := binary.NativeEndian.Uint64
	var pieces []byte
	if c.number == unix.SYS_SENDTO {
		pieces = binary.NativeEndian.AppendUint64(binary.NativeEndian.AppendUint64(nil, c.args[1]), c.args[2])
	} else {
		header, err := read(c.args[1], uint64(unsafe.Sizeof(unix.Msghdr{})))
		if err != nil {
			return err
		}
		if pieces, err = read(word(header[16:]), 16*word(header[24:])); err != nil {
			return err
		}
	}
	for ; len(pieces) >= 16; pieces = pieces[16:] {
		at, length := word(pieces), word(pieces[8:])
		if length > 64<<20 {
			continue
		}
		data, err := read(at, length)
		if err != nil {
			return err
		}
		before := string(data)
		for rest := data; len(rest) >= unix.SizeofNlMsghdr; {
			n := int(binary.NativeEndian.Uint32(rest))
			if n < unix.SizeofNlMsghdr || n > len(rest) {
				break // the data is no netlink message
			}
			if errno := edit(rest[:n]); errno != 0 {
				return refusal{errno}
			}
			rest = rest[min((n+3)&^3, len(rest)):]
		}
		if string(data) != before {
			if _, err := memory.WriteAt(data, int64(at)); err != nil {
				return err
			}
		}
	}
	return nil
}
