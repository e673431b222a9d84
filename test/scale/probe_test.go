package scale_test

import (
	"encoding/binary"
	"errors"
	"net"
	"sync"
	"time"

	"github.com/weir-net/weir/test/nodetest"
)

const (
	probeInterval = 250 * time.Microsecond
	// A packet that hasn't arrived within the time "late" counts as dropped. A packet normally needs only microseconds. A
	// change counts as enforced when a row of "holds" packets has arrived, or has been dropped.
	late  = 20 * time.Millisecond
	holds = 100
	// patience is how long a probe or an ADD may take, and patienceUnderAttack how long it may take during an attack.
	// After this time the measurement gives up, and the time is its result.
	patience, patienceUnderAttack = 2 * time.Minute, 30 * time.Second
)

type arrivals struct {
	mu   sync.Mutex
	seen map[uint64]bool
}

func (n *node) listen(netns, address string) *arrivals {
	a := &arrivals{seen: map[uint64]bool{}}
	nodetest.In(n, netns, func() error {
		conn, err := net.ListenPacket("udp4", address)
		if err != nil {
			return err
		}
		n.Cleanup(func() { _ = conn.Close() })
		go func() {
			buf := make([]byte, 64)
			for {
				k, _, err := conn.ReadFrom(buf)
				if errors.Is(err, net.ErrClosed) {
					return
				}
				if err == nil && k == 8 {
					a.mu.Lock()
					a.seen[binary.BigEndian.Uint64(buf)] = true
					a.mu.Unlock()
				}
			}
		}()
		return nil
	})
	return a
}

// until makes a change, and returns how long it takes until all packets to the probed pod are allowed, or all are
// dropped. The packets are UDP without answers, so that none belongs to an established connection.
func (n *node) until(netns, source string, allowed bool, change func() time.Time) time.Duration {
	n.Helper()
	var conn net.Conn
	nodetest.In(n, netns, func() (err error) {
		dialer := net.Dialer{LocalAddr: &net.UDPAddr{IP: net.ParseIP(source)}}
		conn, err = dialer.Dial("udp4", n.probeServer)
		return err
	})
	defer func() { _ = conn.Close() }()
	p := probe{node: n, conn: conn}
	n.arrivals.mu.Lock()
	n.arrivals.seen = map[uint64]bool{}
	n.arrivals.mu.Unlock()
	_, ok := p.awaitRun(!allowed, 0)
	at := change()
	if !ok {
		n.Logf("what the probe changed last isn't enforced yet, within %v", n.patience)
		return n.patience
	}
	first, ok := p.awaitRun(allowed, len(p.sent))
	if !ok {
		n.Logf("a change isn't enforced within %v", n.patience)
		return n.patience
	}
	return first.Sub(at)
}

type probe struct {
	*node
	conn net.Conn
	sent []time.Time // when each packet was sent, by the packet's number
}

// awaitRun sends packets until a row of packets has arrived, or until a row has been dropped if arrive is false. The
// constant holds says how long the row must be. The parameter from is the number of the first packet that counts. The
// result first is the time at which the first packet of this row was sent. The result ok is false if no such row has
// come within the time patience.
func (p *probe) awaitRun(arrive bool, from int) (first time.Time, ok bool) {
	p.Helper()
	deadline := time.Now().Add(p.patience)
	next := time.Now()
	for {
		next = next.Add(probeInterval)
		time.Sleep(time.Until(next))
		if behind := time.Now(); behind.Sub(next) > late { // this thread had to wait for a core
			next = behind
		}
		var number [8]byte
		binary.BigEndian.PutUint64(number[:], uint64(len(p.sent)))
		p.sent = append(p.sent, time.Now())
		_, _ = p.conn.Write(number[:]) // fails with EPERM if a rule drops the packet
		if len(p.sent)%20 == 0 {
			if _, ok := p.row(arrive, from); ok {
				time.Sleep(5 * late) // waits for packets that count as dropped, but are only late
				if first, ok := p.row(arrive, from); ok {
					return p.sent[first], true
				}
				next = time.Now()
			}
			if time.Now().After(deadline) {
				return time.Time{}, false
			}
		}
	}
}

// row finds the row of packets at the end that have all arrived, or have all not arrived if arrive is false. It looks
// at the packets from the last one back to number from. first is the number of the row's first packet. ok is true if
// the row is long enough (the constant holds). The last packets don't count while they may still be on their way.
func (p *probe) row(arrive bool, from int) (first int, ok bool) {
	p.arrivals.mu.Lock()
	defer p.arrivals.mu.Unlock()
	now := time.Now()
	length := 0
	for i := len(p.sent) - 1; i >= from; i-- {
		arrived := p.arrivals.seen[uint64(i)]
		if !arrived && length == 0 && now.Sub(p.sent[i]) < late {
			continue // the packet may still be on its way
		}
		if arrived != arrive {
			break
		}
		first = i
		length++
	}
	return first, length >= holds
}
