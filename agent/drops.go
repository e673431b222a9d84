package agent

import (
	"context"
	"errors"
	"net/netip"
	"sync/atomic"
	"time"

	"github.com/weir-net/weir/agent/drops"
	"github.com/weir-net/weir/conf"
	"github.com/weir-net/weir/netfilter/nflog"
)

const (
	// dropsPause is the time between two reads of dropped packets. It bounds the work that a flood causes.
	dropsPause = 50 * time.Millisecond
	// dropsWait limits the wait for further packets while the agent has not yet reported all lines about earlier
	// packets. Otherwise dropsIdle limits the wait.
	dropsWait  = 250 * time.Millisecond
	dropsIdle  = time.Minute
	dropsRetry = 5 * time.Second
)

// dropLog reports the packets that the kernel has dropped. One goroutine reads and counts the packets. Another
// goroutine finds names, and hands the drops on.
type dropLog struct {
	ring    *drops.Ring
	hub     *drops.Hub
	lines   chan []drops.Line      // closed when no more lines come
	trouble atomic.Pointer[string] // why no packets are read; nil if packets are read
}

func newDropLog() dropLog {
	return dropLog{ring: drops.NewRing(), hub: drops.NewHub(), lines: make(chan []drops.Line, 1)}
}

// watchDrops reads dropped packets until ctx ends. After a failure it tries again. It never returns an error, because
// an error would end the agent.
func (a *agent) watchDrops(ctx context.Context) error {
	if a.NoDrops {
		a.drops.fail("the agent runs with --drops=false")
		<-ctx.Done()
		return nil
	}
	done := make(chan struct{})
	go func() {
		defer close(done)
		a.reportDrops(ctx)
	}()
	counted := newDropCounter(a.drops.lines)
	open := func() (logReader, error) { return nflog.Open(conf.LogGroup) }
	for last := ""; ctx.Err() == nil; {
		if err := a.readDrops(ctx, counted, open); err != nil && err.Error() != last && ctx.Err() == nil {
			last = err.Error()
			a.Log.Warn("dropped packets aren't reported", "error", err)
		}
		if ctx.Err() == nil {
			a.drops.fail(last)
			counted.keepReporting(ctx, dropsRetry)
		}
	}
	counted.end()
	<-done
	return nil
}

func (l *dropLog) fail(why string) { l.trouble.Store(&why) }

func (l *dropLog) unread() string {
	if why := l.trouble.Load(); why != nil {
		return *why
	}
	return ""
}

type logReader interface {
	Read(ctx context.Context, wait time.Duration, each func(*nflog.Packet)) (lost uint64, err error)
	Close() error
}

// readDrops counts packets until ctx ends or a read fails. It also counts the packets that it has read before the
// error.
func (a *agent) readDrops(ctx context.Context, c *dropCounter, open func() (logReader, error)) (err error) {
	reader, err := open()
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, reader.Close()) }()
	a.drops.trouble.Store(nil)
	wait := dropsIdle
	for ctx.Err() == nil {
		c.known.stale = true
		lost, err := reader.Read(ctx, wait, func(p *nflog.Packet) {
			if c.known.stale {
				c.known.load(a.snapshots.target.Load())
				c.sums.At(time.Now())
			}
			c.sums.Add(p)
		})
		c.sums.At(time.Now())
		c.sums.Lost(lost)
		if err != nil {
			return err
		}
		wait = dropsIdle
		if c.report() {
			wait = dropsWait
		}
		select {
		case <-ctx.Done():
		case <-time.After(dropsPause):
		}
	}
	return nil
}

type dropCounter struct {
	sums  *drops.Sums
	known podNetworks
	to    chan<- []drops.Line
	lines []drops.Line // lines that wait for the reporting goroutine
}

func newDropCounter(to chan<- []drops.Line) *dropCounter {
	c := &dropCounter{sums: drops.NewSums(), to: to}
	c.sums.IsPod = c.known.contains
	return c
}

// report hands lines to the reporting goroutine, but never waits for it. If more is true, the caller must call report
// again even without new packets.
func (c *dropCounter) report() (more bool) {
	if len(c.lines) == 0 {
		c.lines, more = c.sums.Lines(nil)
	}
	if len(c.lines) == 0 {
		return more
	}
	select {
	case c.to <- c.lines:
		c.lines = nil
		return more
	default:
		return true
	}
}

func (c *dropCounter) keepReporting(ctx context.Context, d time.Duration) {
	end := time.After(d)
	for {
		c.sums.At(time.Now())
		c.report()
		select {
		case <-ctx.Done():
			return
		case <-end:
			return
		case <-time.After(dropsWait):
		}
	}
}

// end puts all lines that are left into the channel, and then closes the channel. If the channel is full, end waits for
// the reporting goroutine.
func (c *dropCounter) end() {
	if len(c.lines) > 0 {
		c.to <- c.lines
	}
	if rest := c.sums.Rest(); len(rest) > 0 {
		c.to <- rest
	}
	close(c.to)
}

type podNetworks struct {
	of    *snapshot
	stale bool // load must be called before contains: there may be a newer snapshot
	pods  map[netip.Addr]bool
	nodes map[netip.Prefix]bool
	bits  map[int]bool // the lengths of the prefixes in nodes, as keys
}

func (n *podNetworks) load(s *snapshot) {
	n.stale = false
	if n.of == s {
		return
	}
	n.pods = map[netip.Addr]bool{}
	for _, e := range s.endpoints {
		for _, a := range e.Addresses {
			n.pods[a.Addr] = true
		}
	}
	if n.of == nil || !n.of.sharesNodes(s) {
		n.nodes, n.bits = map[netip.Prefix]bool{}, map[int]bool{}
		for _, node := range s.nodes {
			for _, p := range node.PodCIDRs {
				n.nodes[p], n.bits[p.Bits()] = true, true
			}
		}
	}
	n.of = s
}

// contains reports whether the address belongs to a pod of this node, or is in an accepted podCIDR.
func (n *podNetworks) contains(a netip.Addr) bool {
	if n.pods[a] {
		return true
	}
	for bits := range n.bits {
		if p, err := a.Prefix(bits); err == nil && n.nodes[p] {
			return true
		}
	}
	return false
}
