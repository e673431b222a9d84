package nftnl

import (
	"encoding/binary"
	"errors"
	"fmt"
	"syscall"

	"golang.org/x/sys/unix"
)

// Batch is a transaction: a list of requests, which the kernel carries out together or not at all. All exported methods
// except Empty and Commit add requests. With the parameter about, the caller names a request. If the kernel refuses the
// request, Refusal.About has this name.
//
// Equivalent to: nft -f FILE
type Batch struct{ messages []message }

func (b *Batch) Empty() bool { return len(b.messages) == 0 }

type Refusal struct {
	About any // the caller's name for the request, or nil
	Err   error
}

// RefusedError says which requests of a batch the kernel refuses. After this error, the kernel has carried out no
// request of the batch.
type RefusedError struct{ Refusals []Refusal }

func (e *RefusedError) Error() string {
	return fmt.Sprintf("nf_tables refuses %d requests of a transaction, the first of them: %v", len(e.Refusals),
		e.Refusals[0].Err)
}

func (e *RefusedError) Unwrap() []error {
	var all []error
	for _, r := range e.Refusals {
		all = append(all, r.Err)
	}
	return all
}

func (b *Batch) add(m message) { b.messages = append(b.messages, m) }

func (b *Batch) request(kind int, t Table, flags uint16, about any, body attrs) {
	b.add(message{unix.NFNL_SUBSYS_NFTABLES<<8 | uint16(kind), flags, t.Family, body, about})
}

// Commit sends the requests. If it returns a RefusedError, the kernel has carried out no request. After another error,
// the kernel has carried out either all requests or none.
func (b *Batch) Commit() error {
	var s Sender
	defer s.Close()
	return s.Commit(b)
}

// Sender commits batches, one after the other, over the same socket. The zero Sender is ready for use. Only one
// goroutine may use it.
//
// A program that makes many changes should keep its Sender open. When a netfilter socket is closed, the kernel first
// frees the objects that earlier transactions have deleted, and no transaction can begin until then (nft_rcv_nl_event
// in net/netfilter/nf_tables_api.c). This takes 6 to 30 ms, while a transaction takes 0.1 ms.
type Sender struct {
	fd   int
	open bool
	buf  []byte // for answers
}

// Close closes the socket. A later Commit opens another socket.
func (s *Sender) Close() {
	if s.open {
		_ = unix.Close(s.fd)
		s.open = false
	}
}

// Commit sends the batch over the Sender's socket. The errors are those of Batch.Commit.
func (s *Sender) Commit(b *Batch) (err error) {
	if b.Empty() {
		return nil
	}
	if !s.open {
		s.fd, err = unix.Socket(unix.AF_NETLINK, unix.SOCK_RAW|unix.SOCK_CLOEXEC, unix.NETLINK_NETFILTER)
		if err != nil {
			return fmt.Errorf("open netlink: %w", err)
		}
		s.open = true
		if err := unix.SetsockoptInt(s.fd, unix.SOL_NETLINK, unix.NETLINK_CAP_ACK, 1); err != nil {
			s.Close()
			return fmt.Errorf("ask nf_tables for short answers: %w", err)
		}
	}
	if s.buf == nil {
		s.buf = make([]byte, 64<<10)
	}
	if err = b.commit(s.fd, s.buf); err != nil && !errors.As(err, new(*RefusedError)) {
		s.Close() // the socket may have more answers, so it can't be used again
	}
	return err
}

func (b *Batch) commit(fd int, buf []byte) error {
	all := b.serialize()
	if err := makeRoom(fd, len(all), len(b.messages)); err != nil {
		return fmt.Errorf("make room for a transaction of nf_tables: %w", err)
	}
	if err := unix.Sendto(fd, all, 0, &unix.SockaddrNetlink{Family: unix.AF_NETLINK}); err != nil {
		return fmt.Errorf("send a transaction to nf_tables: %w", err)
	}
	return b.answers(fd, buf)
}

func (b *Batch) serialize() []byte {
	size := 0
	for _, m := range b.messages {
		size += unix.SizeofNlMsghdr + sizeofGenmsg + len(m.body)
	}
	all := message{kind: unix.NFNL_MSG_BATCH_BEGIN}.append(make([]byte, 0, size+64), 0)
	for i, m := range b.messages {
		if i == len(b.messages)-1 {
			m.flags |= unix.NLM_F_ACK
		}
		all = m.append(all, uint32(i+1))
	}
	return message{kind: unix.NFNL_MSG_BATCH_END}.append(all, uint32(len(b.messages)+1))
}

// makeRoom makes the socket's buffers large enough for the transaction and the kernel's answers. If the process isn't
// allowed to exceed the kernel's limits of buffers, as in a user namespace, makeRoom stays within them.
func makeRoom(fd, size, messages int) error {
	const usual, answer = 64 << 10, 1 << 10 // answer: the bytes that the kernel counts for one answer
	for option, need := range map[[2]int]int{
		{unix.SO_SNDBUFFORCE, unix.SO_SNDBUF}: size + usual, {unix.SO_RCVBUFFORCE, unix.SO_RCVBUF}: messages*answer + usual,
	} {
		if need <= 2*usual {
			continue
		}
		if err := unix.SetsockoptInt(fd, unix.SOL_SOCKET, option[0], need); errors.Is(err, unix.EPERM) {
			err = unix.SetsockoptInt(fd, unix.SOL_SOCKET, option[1], need)
			if err != nil {
				return err
			}
		} else if err != nil {
			return err
		}
	}
	return nil
}

// answers reads the kernel's answers, which are in the socket when the requests have been sent. The kernel answers each
// request that it refuses, and the last request in any case (nfnetlink_rcv_batch in net/netfilter/nfnetlink.c).
func (b *Batch) answers(fd int, buf []byte) error {
	refused := &RefusedError{}
	answered := false
	for {
		n, _, err := unix.Recvfrom(fd, buf, unix.MSG_DONTWAIT)
		switch {
		case errors.Is(err, unix.EINTR):
			continue
		case errors.Is(err, unix.EAGAIN) && len(refused.Refusals) > 0:
			return refused
		case errors.Is(err, unix.EAGAIN) && answered:
			return nil
		case err != nil:
			return fmt.Errorf("nf_tables doesn't answer: %w", err)
		}
		msgs, err := syscall.ParseNetlinkMessage(buf[:n])
		if err != nil {
			return fmt.Errorf("read the answer of nf_tables: %w", err)
		}
		for _, m := range msgs {
			if m.Header.Type != unix.NLMSG_ERROR || len(m.Data) < 4 {
				continue
			}
			answered = true
			if code := int32(binary.NativeEndian.Uint32(m.Data)); code != 0 {
				r := Refusal{Err: unix.Errno(-code)}
				if i := int(m.Header.Seq) - 1; i >= 0 && i < len(b.messages) {
					r.About = b.messages[i].about
				}
				refused.Refusals = append(refused.Refusals, r)
			}
		}
	}
}
