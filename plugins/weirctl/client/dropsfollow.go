package client

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"sync"
	"time"

	"github.com/weir-net/weir/agentapi"
)

type FollowTimes struct {
	// Window is how long a drop waits before it is printed, so that older drops of other nodes can come first.
	Window time.Duration
	// Opens is how long a node may take to open its stream.
	Opens time.Duration
	// Silent is how long a node's stream may be silent before it counts as failed. An agent gives a sign of life
	// every 15 seconds.
	Silent time.Duration
	// Retry is the wait before a node is asked again. It doubles with each failure, up to Retries.
	Retry, Retries time.Duration
	// Look is the time from one listing of the nodes to the next.
	Look time.Duration
}

// DefaultFollowTimes are the times of weirctl drops --follow. A flow's first drop is usually printed within a
// second.
var DefaultFollowTimes = FollowTimes{
	Window: 300 * time.Millisecond, Opens: 20 * time.Second, Silent: 40 * time.Second, Retry: time.Second,
	Retries: 30 * time.Second, Look: 10 * time.Second,
}

const (
	// again is the time for which two streams of a node overlap. A new stream also has the drops of this time
	// before the old stream's last sign of life, because an agent may report a drop a second late.
	again = 3 * time.Second
	// maxRecent limits the number of drops in nodeFollower.recent. If a new stream repeats a drop in recent, the
	// drop isn't printed again.
	maxRecent  = 8192
	firstNames = 20
)

var errGone = errors.New("the node is gone")

// FollowDrops prints the nodes' drops as they happen. It sorts drops that come within times.Window by their times. It
// also asks nodes that join, and asks again after a node's stream has ended. It returns if ctx ends, if Print fails,
// or with an error that concerns all nodes.
func (c *Cluster) FollowDrops(ctx context.Context, o DropsOfNodes, times FollowTimes) error {
	agents, err := c.Wanted(ctx, o.Nodes)
	if err != nil {
		return err
	}
	ctx, stop := context.WithCancelCause(ctx)
	f := &follower{
		Cluster: c, DropsOfNodes: o, times: times, stop: stop, nodes: map[string]*nodeFollower{},
		opening: make(chan struct{}, max(o.Parallel, 1)), drops: make(chan *agentapi.Drop, maxRecent),
		told: teller{tell: o.Tell, room: firstNames},
	}
	f.update(ctx, agents)
	f.running.Go(func() { f.look(ctx) })
	f.print(ctx)
	stop(nil)
	f.running.Wait()
	return context.Cause(ctx)
}

type follower struct {
	*Cluster
	DropsOfNodes
	times   FollowTimes
	stop    context.CancelCauseFunc
	running sync.WaitGroup
	opening chan struct{} // has room for as many streams as may be opened at the same time
	drops   chan *agentapi.Drop

	mu      sync.Mutex // guards the fields below
	nodes   map[string]*nodeFollower
	told    teller
	started bool
}

type nodeFollower struct {
	agent  Agent
	stop   context.CancelCauseFunc
	wake   chan struct{} // has room for one message, which means that the field agent has changed
	state  followState
	recent map[string]time.Time // the drops of the last seconds, each with the time at which weirctl received it
	heard  time.Time            // when the node last sent something; zero before the first time
}

type followState int

const (
	opening followState = iota
	telling
	failing
)

func (f *follower) look(ctx context.Context) {
	for wait(ctx, f.times.Look, nil) {
		agents, err := f.Agents(ctx)
		if err == nil { // if the nodes can't be listed, the known nodes are followed
			f.update(ctx, agents)
		}
	}
}

// wait returns when the time d is over, wake has a message, or ctx has ended. It returns false if ctx has ended.
func wait(ctx context.Context, d time.Duration, wake <-chan struct{}) bool {
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-timer.C:
	case <-wake:
	case <-ctx.Done():
	}
	return ctx.Err() == nil
}

func (f *follower) update(ctx context.Context, agents []Agent) {
	f.mu.Lock()
	defer f.mu.Unlock()
	// Nodes about which the API server reports a fault come last, because requests to their agents may take long to
	// fail.
	slices.SortStableFunc(agents, func(a, b Agent) int { return len(a.Away+a.Down) - len(b.Away+b.Down) })
	gone := maps.Clone(f.nodes)
	for _, a := range agents {
		if len(f.Nodes) > 0 && !slices.Contains(f.Nodes, a.Node) {
			continue
		}
		delete(gone, a.Node)
		if n := f.nodes[a.Node]; n != nil {
			if n.agent != a {
				n.agent = a
				select {
				case n.wake <- struct{}{}:
				default:
				}
			}
			continue
		}
		one, stop := context.WithCancelCause(ctx)
		n := &nodeFollower{agent: a, stop: stop, wake: make(chan struct{}, 1), recent: map[string]time.Time{}}
		f.nodes[a.Node] = n
		if f.started {
			f.told.say("%s: the node is new", a.Node)
		}
		f.running.Go(func() { f.follow(one, n) })
	}
	for name, n := range gone {
		delete(f.nodes, name)
		n.stop(errGone)
		f.told.say("%s: %v", name, errGone)
	}
	f.start()
}

// start says once how many nodes are followed, as soon as each node has answered or failed. The caller has locked mu.
func (f *follower) start() {
	if f.started {
		return
	}
	tell := 0
	for _, n := range f.nodes {
		switch n.state {
		case opening:
			return
		case telling:
			tell++
		}
	}
	f.started = true
	more := ""
	if f.told.leftOut > 0 {
		more = fmt.Sprintf(" (%d more don't answer)", f.told.leftOut)
	}
	f.told = teller{tell: f.Tell, room: -1}
	f.told.say("following the drops of %d of %d nodes%s", tell, len(f.nodes), more)
}

func (f *follower) follow(ctx context.Context, n *nodeFollower) {
	defer n.stop(nil)
	for retry := f.times.Retry; ; retry = min(2*retry, f.times.Retries) {
		f.mu.Lock()
		agent, first := n.agent, n.state == opening
		f.mu.Unlock()
		err := f.stream(ctx, n, agent)
		if ctx.Err() != nil {
			return
		}
		if errors.As(err, new(*forbiddenError)) {
			f.stop(err)
			return
		}
		f.mu.Lock()
		if n.state == telling {
			first, retry = true, f.times.Retry
		}
		if n.state = failing; first {
			f.told.say("%s: %v; trying again", agent.Node, err)
		}
		f.start()
		f.mu.Unlock()
		if !wait(ctx, retry, n.wake) {
			return
		}
	}
}

var errEnded = errors.New("the agent has ended")

func (f *follower) stream(ctx context.Context, n *nodeFollower, agent Agent) error {
	select {
	case f.opening <- struct{}{}:
	case <-ctx.Done():
		return ctx.Err()
	}
	opened := sync.OnceFunc(func() { <-f.opening })
	defer opened()
	ctx, stop := context.WithCancelCause(ctx)
	defer stop(nil)
	silence := time.AfterFunc(f.times.Opens, func() { stop(errNoAnswer(f.times.Opens)) })
	defer silence.Stop()
	q := f.Query
	if !n.heard.IsZero() {
		q.Since = time.Since(n.heard) + again
	}
	err := f.readDrops(ctx, agent, q, func(d *agentapi.Drop) error {
		opened()
		silence.Stop() // this command's slow output doesn't count as the node's silence
		now := time.Now()
		f.tells(n, agent)
		n.heard = now
		if d != nil && n.isNew(d, now) {
			select {
			case f.drops <- d:
			case <-ctx.Done():
				return ctx.Err()
			}
		}
		silence = time.AfterFunc(f.times.Silent, func() {
			stop(fmt.Errorf("no sign of life for %s", f.times.Silent))
		})
		return nil
	})
	silence.Stop()
	if ctx.Err() != nil {
		return context.Cause(ctx)
	}
	if err == nil {
		err = errEnded
	}
	return err
}

func (f *follower) tells(n *nodeFollower, agent Agent) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if n.state == telling {
		return
	}
	if n.state == failing && f.started {
		f.told.say("%s: sends drops again; if the agent of the node has restarted, drops in between are missing",
			agent.Node)
	}
	n.state = telling
	f.start()
}

// isNew reports whether this is the first time that the node reports this drop. Reports of missed packets always count
// as new.
func (n *nodeFollower) isNew(d *agentapi.Drop, now time.Time) bool {
	if d.Kind == agentapi.DropMissed {
		return true
	}
	key := fmt.Sprint(d.Time.UnixNano(), d.Kind, d.Count, d.Source, d.Destination, d.Protocol, d.ICMP, d.Chain,
		d.Direction, d.Reason)
	if _, known := n.recent[key]; known {
		return false
	}
	if len(n.recent) >= maxRecent {
		maps.DeleteFunc(n.recent, func(_ string, at time.Time) bool { return now.Sub(at) > 2*again })
		if len(n.recent) >= maxRecent {
			clear(n.recent)
		}
	}
	n.recent[key] = now
	return true
}

// print prints the drops in the order of their times. An error of Print ends the command.
func (f *follower) print(ctx context.Context) {
	order := dropOrder{window: f.times.Window}
	timer := time.NewTimer(0)
	defer timer.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case d := <-f.drops:
			order.add(d, time.Now())
			if len(order.drops) > 1 {
				continue // the timer is already running
			}
		case <-timer.C:
		}
		due, next := order.due(time.Now())
		for _, d := range due {
			if err := f.Print(d); err != nil {
				f.stop(err)
				return
			}
		}
		if next > 0 {
			timer.Reset(max(next, f.times.Window/10))
		}
	}
}
