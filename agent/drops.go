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
	// dropsPause is the time between two looks for dropped packets. It bounds how often a flood wakes the agent, and with
	// the bounds of nflog.Reader.Read how many packets the agent reads in a second.
	dropsPause = 50 * time.Millisecond
	// dropsWait is how long the agent waits for packets while lines about earlier packets are still to come.
	dropsWait = 250 * time.Millisecond
	// dropsIdle is how long the agent waits for packets if no line about earlier packets is to come.
	dropsIdle = time.Minute
	// dropsRetry is the time between two attempts to read the log group.
	dropsRetry = 5 * time.Second
)

// dropLog reads the packets that the kernel has dropped, and reports them. Two goroutines do this. The first one reads
// and counts. The second one finds names, and hands the drops to all that want them. Neither uses the loop's state, and
// nobody waits for them: if they are too slow, the kernel drops copies of packets and says how many.
type dropLog struct {
	ring    *drops.Ring
	hub     *drops.Hub
	lines   chan []drops.Line
	trouble atomic.Pointer[string] // why no packets are read; nil if they are
}

func newDropLog() dropLog {
	return dropLog{ring: drops.NewRing(), hub: drops.NewHub(), lines: make(chan []drops.Line, 1)}
}

// watchDrops reads dropped packets until ctx ends. If they can't be read, it tries again, and never returns an error:
// enforcement doesn't need it. With Options.NoDrops it reads nothing.
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
	for last := ""; ; {
		err := a.readDrops(ctx)
		if err != nil && err.Error() != last && ctx.Err() == nil {
			last = err.Error()
			a.Log.Warn("dropped packets aren't reported", "error", err)
		}
		a.drops.fail(last)
		select {
		case <-ctx.Done():
			<-done
			return nil
		case <-time.After(dropsRetry):
		}
	}
}

func (l *dropLog) fail(why string) { l.trouble.Store(&why) }

// readDrops reads the log group until ctx ends or reading fails.
func (a *agent) readDrops(ctx context.Context) (err error) {
	reader, err := nflog.Open(conf.LogGroup)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, reader.Close()) }()
	a.drops.trouble.Store(nil)
	sums, known := drops.NewSums(), podNetworks{stale: true}
	sums.IsPod = known.contains
	var lines []drops.Line
	wait := dropsIdle
	for ctx.Err() == nil {
		lost, err := reader.Read(ctx, wait, func(p *nflog.Packet) {
			if known.stale {
				known.load(a.snapshots.target.Load())
				sums.At(time.Now())
			}
			sums.Add(p)
		})
		if err != nil {
			return err
		}
		known.stale = true
		sums.At(time.Now())
		sums.Lost(lost)
		wait = dropsWait
		if len(lines) == 0 {
			var more bool
			if lines, more = sums.Lines(nil); !more {
				wait = dropsIdle
			}
		}
		if len(lines) > 0 {
			select {
			case a.drops.lines <- lines:
				lines = nil
			default: // the other goroutine is busy: the packets that come meanwhile are counted
				wait = dropsWait
			}
		}
		select {
		case <-ctx.Done():
		case <-time.After(dropsPause):
		}
	}
	return nil
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

// contains reports whether the address is that of a pod of this node, or within an accepted podCIDR of any Node.
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
