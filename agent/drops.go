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
	// dropsPause is the time between two looks for dropped packets. It bounds the work that a flood causes.
	dropsPause = 50 * time.Millisecond
	// dropsWait is how long the agent waits for packets while lines about earlier packets are still to come.
	dropsWait = 250 * time.Millisecond
	// dropsIdle is how long the agent waits for packets if no line about earlier packets is to come.
	dropsIdle = time.Minute
	// dropsRetry is the time between two attempts to read the log group.
	dropsRetry = 5 * time.Second
)

// dropLog reads and reports the packets that the kernel has dropped. One goroutine reads and counts. The other finds
// names, and hands the drops on.
type dropLog struct {
	ring    *drops.Ring
	hub     *drops.Hub
	lines   chan []drops.Line      // closed when no more lines come
	trouble atomic.Pointer[string] // why no packets are read; nil if they are
}

func newDropLog() dropLog {
	return dropLog{ring: drops.NewRing(), hub: drops.NewHub(), lines: make(chan []drops.Line, 1)}
}

// watchDrops reads dropped packets until ctx ends. On failure it logs why and tries again. It never returns an
// error: enforcement doesn't need it.
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

// unread says why no dropped packets are read; empty if they are.
func (l *dropLog) unread() string {
	if why := l.trouble.Load(); why != nil {
		return *why
	}
	return ""
}

// logReader is what readDrops needs of an nflog.Reader.
type logReader interface {
	Read(ctx context.Context, wait time.Duration, each func(*nflog.Packet)) (lost uint64, err error)
	Close() error
}

// readDrops reads the log group until ctx ends or reading fails. What was read before an error is counted.
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
	lines []drops.Line // those that wait until the reporter takes them
}

func newDropCounter(to chan<- []drops.Line) *dropCounter {
	c := &dropCounter{sums: drops.NewSums(), to: to}
	c.sums.IsPod = c.known.contains
	return c
}

// report hands the due lines to the reporter. If the reporter is busy, packets are counted on. more is true if
// report must be called again even if no packet comes.
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

// keepReporting reports what was counted, for the given time or until ctx ends.
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

// end waits until the reporter has all that was counted, and tells it that nothing more comes.
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
	bits  map[int]bool // the lengths of the prefixes in nodes
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
	if n.of == nil || len(n.of.nodes) != len(s.nodes) || len(s.nodes) > 0 && &n.of.nodes[0] != &s.nodes[0] {
		n.nodes, n.bits = map[netip.Prefix]bool{}, map[int]bool{}
		for _, node := range s.nodes {
			for _, p := range node.PodCIDRs {
				n.nodes[p], n.bits[p.Bits()] = true, true
			}
		}
	}
	n.of = s
}

// contains reports whether a pod may have the address: one of this node, or of any accepted podCIDR.
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
