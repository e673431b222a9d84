package probe

import (
	"errors"
	"fmt"
	"net"
	"net/netip"
	"slices"
	"time"

	"golang.org/x/sys/unix"

	"github.com/weir-net/weir/conf"
)

func listen(f conf.Family) (*net.UDPConn, error) {
	c, err := net.ListenUDP("udp", net.UDPAddrFromAddrPort(netip.AddrPortFrom(loopback[f], 0)))
	if err != nil {
		return nil, fmt.Errorf("open a socket for a trial: %w", err)
	}
	return c, nil
}

func addrOf(c *net.UDPConn) netip.AddrPort { return unmapped(c.LocalAddr().(*net.UDPAddr).AddrPort()) }

func unmapped(a netip.AddrPort) netip.AddrPort { return netip.AddrPortFrom(a.Addr().Unmap(), a.Port()) }

func portOf(c *net.UDPConn) uint16 { return addrOf(c).Port() }

// These are the times for which a trial waits for its packets. If a packet hasn't the expected result within the time
// of the constant soon, the trial sends all packets again, and waits for the time of the constant late. Usually a
// packet arrives within the system call that sends it. If the processor is busy, a packet can take longer, and a
// trial that doesn't wait would report features as missing that the kernel has.
const (
	soon = 200 * time.Millisecond
	late = time.Second
)

var errOthers = errors.New("packets for trials don't arrive unchanged over the loopback link, whatever the rules are")

// Wrong sends the packets of all needs, through chains that the caller has put into the kernel. It returns the needs
// whose rules don't have the right effect.
//
// If there are such needs, Wrong calls the function remove, which must remove the chains. Then Wrong sends the packets
// again. If a packet then doesn't arrive unchanged, other programs disturb packets over the loopback link. Nothing is
// known about the needs then, so Wrong returns an error. It returns this error at once if the rule of need 1 ("rules
// with ports") doesn't have the right effect.
func (t *Trial) Wrong(remove func()) (wrong []Need, err error) {
	for _, wait := range []time.Duration{soon, late} {
		if wrong, err = t.wrongWithin(wait); err == nil && len(wrong) == 0 {
			return nil, nil
		}
	}
	if err != nil {
		return nil, err
	}
	if slices.ContainsFunc(wrong, func(n Need) bool { return n.Name == t.Needs[1].Name }) {
		return nil, errOthers
	}
	remove()
	from, err := t.send(late)
	if err != nil {
		return nil, err
	}
	for i, n := range t.Needs {
		source := addrOf(t.sender)
		if n.answer {
			source = addrOf(t.receivers[i])
		}
		// With Need.masquerades, the packet may come from another source: even without the rule, the kernel goes on
		// masquerading a connection that it has masqueraded before.
		if !from[i].IsValid() || from[i] != source && !n.masquerades {
			return nil, errOthers
		}
	}
	return wrong, nil
}

func (t *Trial) wrongWithin(wait time.Duration) (wrong []Need, err error) {
	from, err := t.send(wait)
	if err != nil {
		return nil, err
	}
	for i, n := range t.Needs {
		arrived := from[i].IsValid()
		switch {
		case n.drops && arrived, !n.drops && !n.masquerades && !arrived:
			wrong = append(wrong, n)
		case n.masquerades && arrived && from[i] == addrOf(t.sender):
			wrong = append(wrong, n)
		}
	}
	return wrong, nil
}

// send sends the packet of each need, and returns the sources from which the packets arrived. If a packet didn't
// arrive in time, or the kernel refused to send it, the source is the zero value.
func (t *Trial) send(wait time.Duration) ([]netip.AddrPort, error) {
	if t.silent != nil {
		return nil, t.silent
	}
	if wait == late {
		t.drain()
	}
	deadline := time.Now().Add(wait)
	from := make([]netip.AddrPort, len(t.Needs))
	sent := make([]bool, len(t.Needs))
	for i, n := range t.Needs {
		_, err := t.sender.WriteToUDPAddrPort([]byte("x"), addrOf(t.receivers[i]))
		if err == nil && n.answer { // the rule is for the answer, so the packet itself must arrive
			if !arrives(t.receivers[i], deadline).IsValid() {
				return nil, errOthers
			}
			_, err = t.receivers[i].WriteToUDPAddrPort([]byte("x"), addrOf(t.sender))
		}
		sent[i] = err == nil
	}
	for i, n := range t.Needs {
		switch {
		case !sent[i] || n.drops:
		case n.answer:
			from[i] = arrives(t.sender, deadline)
		default:
			from[i] = arrives(t.receivers[i], deadline)
		}
	}
	for i, n := range t.Needs { // by now, packets that must not arrive would have arrived
		if n.drops {
			from[i] = arrives(t.receivers[i], time.Time{})
		}
	}
	return from, nil
}

// drain reads packets that came too late, so that they don't count as packets that are sent next.
func (t *Trial) drain() {
	for _, c := range append(slices.Clone(t.receivers), t.sender) {
		for arrives(c, time.Time{}).IsValid() {
		}
	}
}

// arrives returns the source of the next packet. If no packet arrives before the deadline, it returns the zero value.
// The scheduler may let this goroutine run only after the deadline, so arrives then still looks for a packet in the
// socket. A connection of package net doesn't: after its deadline, it returns an error without a look at its socket.
func arrives(at *net.UDPConn, deadline time.Time) netip.AddrPort {
	if from := waiting(at); from.IsValid() || !time.Now().Before(deadline) {
		return from
	}
	if at.SetReadDeadline(deadline) != nil {
		return netip.AddrPort{}
	}
	n, from, err := at.ReadFromUDPAddrPort(make([]byte, 8))
	if err != nil || n == 0 {
		return waiting(at)
	}
	return unmapped(from)
}

// waiting returns the source of a packet that has already arrived, or the zero value. It ignores the connection's
// deadline.
func waiting(at *net.UDPConn) (from netip.AddrPort) {
	raw, err := at.SyscallConn()
	if err != nil {
		return from
	}
	_ = raw.Control(func(fd uintptr) {
		n, source, err := unix.Recvfrom(int(fd), make([]byte, 8), unix.MSG_DONTWAIT)
		if err != nil || n == 0 {
			return
		}
		switch s := source.(type) {
		case *unix.SockaddrInet4:
			from = netip.AddrPortFrom(netip.AddrFrom4(s.Addr), uint16(s.Port))
		case *unix.SockaddrInet6:
			from = unmapped(netip.AddrPortFrom(netip.AddrFrom16(s.Addr), uint16(s.Port)))
		}
	})
	return from
}
