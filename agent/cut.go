package agent

import (
	"cmp"
	"fmt"
	"net/netip"
	"strings"
	"sync/atomic"
	"time"

	"github.com/containernetworking/plugins/pkg/netlinksafe"
	"github.com/vishvananda/netlink"

	"github.com/weir-net/weir/netfilter"
	"github.com/weir-net/weir/netfilter/conntrack"
	"github.com/weir-net/weir/netfilter/cut"
	"github.com/weir-net/weir/policy"
	"github.com/weir-net/weir/policy/ruleset"
)

// cutting cuts connections that the rules no longer allow, and restores cut connections that the rules allow again. A
// walk goes through all connections. For 200,000 connections, it takes a quarter of a second. So several changes share
// a walk.
//
// Invariants:
//
//   - At most one walk runs. While one runs, walking is true.
//   - If due, restore and held are false and no walk runs, all connections are as the rules require.
type cutting struct {
	due bool
	// held means that another program held packets (NFQUEUE) when the last walk began. Earlier rules may have allowed a
	// held packet. The kernel adds the packet's connection to the table only when the program lets the packet go on, so
	// the walk may have missed the connection. Further walks follow until a walk begins while no packet is held.
	held     bool
	lazy     bool
	last     time.Time // when the last walk began
	standing int       // the number of cut connections when the last walk ended
	// known has the cut connections: all of them, or only some if there are very many. restore means that the rules may
	// now allow some of the connections in known. To restore these, the agent looks only at known.
	known    []conntrack.Edit
	restore  bool
	restored time.Time // when the last restoring began
	// restoring means that the running walk only restores known connections.
	restoring bool
	walking   bool
	results   chan walkResult // has room for one result, so a walk never waits for the loop
	shortest  time.Duration   // shortestPeriod, except in tests
	next      time.Time       // the time before which no walk through all connections begins
	paid      time.Time       // the end of the last walk's period; see shortestPeriod
	pause     *time.Timer
}

// A walk's period is twice the walk's duration, and at least shortestPeriod. The periods follow one another, so in the
// long run walks take at most half of the time. But a few changes in a row needn't wait. The next walk may begin at
// the earlier of two times: the beginning of the last walk's period, and the time earlyPeriods times shortestPeriod
// before the end of that period.
const (
	shortestPeriod = 500 * time.Millisecond
	earlyPeriods   = 4
)

// restoresPerPeriod bounds how often known cut connections are restored in a shortestPeriod.
const restoresPerPeriod = 10

// If a walk is due only because pods have ended, it begins no earlier than lazyPeriods times shortestPeriod after the
// beginning of the last walk. Such a walk can wait, because no packets come from the addresses of ended pods. In a
// large cluster, pods end all the time.
const lazyPeriods = 4

type walkResult struct {
	cut.Result
	restore bool // true if the walk looked only at the cut connections in cutting.known
	held    bool // see cutting.held
	began   time.Time
	took    time.Duration
	err     error
}

// newCutting makes a walk due, because the rules may have changed while no agent ran.
func newCutting() cutting {
	c := cutting{due: true, results: make(chan walkResult, 1), shortest: shortestPeriod, pause: time.NewTimer(0)}
	c.pause.Stop()
	return c
}

func (s *snapshot) links() map[netip.Addr]ruleset.Link {
	all := map[netip.Addr]ruleset.Link{}
	for _, e := range s.endpoints {
		link := policy.LinkOf(e)
		for _, addr := range e.Addresses {
			all[addr.Addr] = link
		}
	}
	return all
}

// afterApply makes a walk due if connections may have to be cut or restored after the applied change. A change that
// only allows more packets needs a walk only if connections are cut now, or if a walk is running. If the agent knows
// all cut connections, and no walk through all connections is running, such a change needs no walk: then only the
// restoring of the known connections becomes due. gone is true if the change closes only addresses of ended pods.
func (c *cutting) afterApply(r netfilter.Result, verify netfilter.Verify, gone bool) {
	opens := r.Changed && !gone && (c.standing > 0 || c.walking)
	if opens && (!c.walking || c.restoring) && len(c.known) == c.standing {
		c.restore, opens = true, false
	}
	// While the repaired sets or rules were missing, forbidden connections may have begun, so a walk is due.
	repaired := r.Changed && verify == netfilter.All
	if gone && r.Closes && !repaired {
		c.due, c.lazy = true, !c.due || c.lazy
		return
	}
	c.makeDue(r.Closes || opens || repaired)
}

func (c *cutting) makeDue(yes bool) {
	if yes {
		c.due, c.lazy = true, false
	}
}

// walk starts the walk that is due, or else the restoring that is due. If it is too early, walk sets the timer pause
// instead. The kernel must already have the rules of snapshots.target.
func (a *agent) walk() {
	c := &a.cutting
	if c.walking {
		return
	}
	began := time.Now()
	by := a.snapshots.target.Load()
	var wait time.Duration
	if c.due {
		next := c.next
		if late := c.last.Add(lazyPeriods * c.shortest); c.lazy && late.After(next) {
			next = late
		}
		if wait = next.Sub(began); wait <= 0 {
			c.due, c.lazy, c.restore, c.walking, c.last = false, false, false, true, began
			go func() {
				held := conntrack.Held() // asked before the walk, because held packets may go on during the walk
				walk, err := walkConnections(by, &a.snapshots.target)
				c.results <- walkResult{walk, false, held, began, time.Since(began), err}
			}()
			return
		}
	}
	if c.restore {
		left := c.restored.Add(c.shortest / restoresPerPeriod).Sub(began)
		if left <= 0 {
			known := c.known
			c.restore, c.walking, c.restoring, c.restored = false, true, true, began
			go func() {
				walk, err := restoreConnections(known, by, &a.snapshots.target)
				c.results <- walkResult{walk, true, false, began, time.Since(began), err}
			}()
			return
		}
		wait = sooner(wait, left)
	}
	if wait > 0 {
		c.pause.Reset(wait)
	}
}

// endPause starts the walk that has waited for the end of the pause. If the kernel has a fault, a later reconcile
// starts the walk.
func (a *agent) endPause() {
	if a.faults.now[partKernel] == nil {
		a.walk()
	}
}

// takeWalk takes a walk's result. After a failed walk, no pod is enrolled until another walk succeeds. reconcile is
// true if this walk is the first to succeed after a failed one. The next reconcile may then enrol pods again.
func (a *agent) takeWalk(w walkResult) (reconcile bool) {
	defer a.publishStatus()
	c := &a.cutting
	c.walking, c.restoring, c.standing, c.known = false, false, w.Standing, w.Known
	if !w.restore {
		c.pay(w)
		c.makeDue(w.held && !c.held) // if packets are held for longer, prepareResync makes more walks due
		c.held = w.held
	}
	a.stats.Cut += w.Cut
	if n := w.Cut + w.Restored; n > 0 {
		a.Log.Info("connections evaluated anew", "cut", w.Cut, "restored", w.Restored,
			"which", a.listed(w.Examples, n-len(w.Examples)))
	}
	unknown := a.faults.now[partConnections] != nil
	a.faults.set(partConnections, w.err)
	if w.err != nil {
		c.makeDue(true)
		return false
	}
	a.endPause()
	return unknown
}

// pay computes when the next walk may begin after the walk with the result w (see shortestPeriod).
func (c *cutting) pay(w walkResult) {
	if c.next = c.paid; w.began.After(c.next) {
		c.next = w.began
	}
	c.paid = c.next.Add(max(c.shortest, 2*w.took))
	if soon := c.paid.Add(-earlyPeriods * c.shortest); soon.Before(c.next) {
		c.next = soon
	}
}

func (a *agent) listed(connections []cut.Example, more int) string {
	names := map[netip.Addr]string{}
	for _, e := range a.records.endpoints {
		for _, addr := range e.Addresses {
			names[addr.Addr] = e.Pod.String()
		}
	}
	var list []string
	for _, c := range connections {
		text := fmt.Sprintf("%s to %s", cmp.Or(names[c.Src], c.Src.String()), cmp.Or(names[c.Dst], c.Dst.String()))
		if c.Port != 0 {
			text += fmt.Sprintf(" %s port %d", c.Proto, c.Port)
		} else {
			text += fmt.Sprintf(" protocol %s", c.Proto)
		}
		if c.Restored {
			text += " (restored)"
		}
		list = append(list, text)
	}
	if more > 0 {
		list = append(list, fmt.Sprintf("and %d more", more))
	}
	return strings.Join(list, ", ")
}

// walkConnections cuts and restores connections. The rules of the first parameter, by, decide which connections are
// allowed. The parameter target has the snapshot that the kernel has or is about to get. The loop may replace that
// snapshot during the walk. If the rules of the newest snapshot give another verdict on a connection, walkConnections
// leaves the connection to the next walk.
func walkConnections(by *snapshot, target *atomic.Pointer[snapshot]) (cut.Result, error) {
	evaluator, newest, err := evaluators(by, target)
	if err != nil {
		return cut.Result{}, err
	}
	return cut.Walk(evaluator, newest)
}

func restoreConnections(
	known []conntrack.Edit, by *snapshot, target *atomic.Pointer[snapshot],
) (cut.Result, error) {
	_, newest, err := evaluators(by, target)
	if err != nil {
		return cut.Result{}, err
	}
	return cut.Restore(known, newest)
}

// evaluators returns an evaluator with the rules of the snapshot by, and a function that returns an evaluator with the
// rules of the snapshot that target has at the time of the call.
func evaluators(by *snapshot, target *atomic.Pointer[snapshot]) (cut.Evaluator, func() cut.Evaluator, error) {
	own, err := ownAddresses()
	if err != nil {
		return cut.Evaluator{}, nil, err
	}
	evaluator := cut.NewEvaluator(by.ruleset, by.links(), own)
	last, now := by, evaluator
	return evaluator, func() cut.Evaluator {
		if s := target.Load(); s != last {
			last, now = s, cut.NewEvaluator(s.ruleset, s.links(), own)
		}
		return now
	}, nil
}

func ownAddresses() ([]netip.Addr, error) {
	addrs, err := netlinksafe.AddrList(nil, netlink.FAMILY_ALL)
	if err != nil {
		return nil, fmt.Errorf("list the node's addresses: %w", err)
	}
	var own []netip.Addr
	for _, addr := range addrs {
		if ip, ok := netip.AddrFromSlice(addr.IP); ok {
			own = append(own, ip.Unmap())
		}
	}
	return own, nil
}
