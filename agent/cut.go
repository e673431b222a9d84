package agent

import (
	"fmt"
	"net/netip"
	"sync/atomic"

	"github.com/containernetworking/plugins/pkg/netlinksafe"
	"github.com/vishvananda/netlink"

	"github.com/weir-net/weir/netfilter"
	"github.com/weir-net/weir/netfilter/cut"
	"github.com/weir-net/weir/policy"
	"github.com/weir-net/weir/policy/ruleset"
)

// cutting cuts connections that the rules no longer allow, and restores cut connections that the rules allow again.
// For that it walks through all connections. A walk takes a quarter of a second with 200,000 connections. With no
// connection it takes ten milliseconds, because the kernel goes through every bucket of its table. A walk runs beside
// the loop, so no pod's start and no policy waits for it. It runs only when it may find something. Invariants:
//   - At most one walk runs. While a walk runs, walking is true, and the walk will send its result to results.
//   - If due is false and no walk runs, all connections are as the rules require: none must be cut or restored.
type cutting struct {
	due      bool
	standing int // how many connections were cut when the last walk ended
	walking  bool
	results  chan walkResult // has room for one
}

// walkResult is the result of a walk.
type walkResult struct {
	cut.Result
	err error
}

// newCutting returns a cutting with a walk due: the rules may have changed while no agent ran.
func newCutting() cutting { return cutting{due: true, results: make(chan walkResult, 1)} }

// evaluator returns an evaluator that uses the snapshot's ruleset.
func (s *snapshot) evaluator() (cut.Evaluator, error) {
	simulator, err := ruleset.NewSimulator(s.ruleset)
	return cut.Evaluator{Simulator: simulator, Links: s.links()}, err
}

// links returns the links of the node's pods, by the pods' addresses.
func (s *snapshot) links() map[netip.Addr]ruleset.Link {
	all := map[netip.Addr]ruleset.Link{}
	for _, e := range s.state.Endpoints {
		link := policy.LinkOf(e)
		for _, addr := range e.Addresses {
			all[addr.Addr] = link
		}
	}
	return all
}

// note makes a walk due if the change of the kernel requires one: the change may deny established connections, or it
// repaired sets or rules. A change that only allows more requires a walk if connections are cut, or if a walk is
// running, which may cut some.
func (c *cutting) note(r netfilter.Result, verify netfilter.Verify) {
	opens := r.Changed && (c.standing > 0 || c.walking)
	// While the repaired sets or rules were missing, connections may have begun.
	repaired := r.Changed && verify == netfilter.All
	c.due = c.due || r.Closes || opens || repaired
}

// walk starts a walk if one is due and none is running. It is called when the kernel has the target's rules.
func (a *agent) walk() {
	c := &a.cutting
	if !c.due || c.walking {
		return
	}
	c.due, c.walking = false, true
	by := a.snapshots.target.Load()
	go func() {
		walk, err := walkConnections(by, &a.snapshots.target)
		c.results <- walkResult{walk, err}
	}()
}

// takeWalk takes the result of a walk. If another walk has become due meanwhile, takeWalk starts it, unless the kernel
// has a fault or the walk failed: then the next reconcile starts it. takeWalk returns true if an earlier walk failed
// and this one succeeded. The loop must then reconcile now, because no pod was enrolled since the failure.
func (a *agent) takeWalk(w walkResult) (reconcile bool) {
	defer a.publishStatus()
	a.cutting.walking, a.cutting.standing = false, w.Standing
	a.stats.Cut += w.Cut
	if w.Cut+w.Restored > 0 {
		a.Log.Info("connections evaluated anew", "cut", w.Cut, "restored", w.Restored)
	}
	unknown := a.faults.now[partConnections] != nil
	a.faults.set(partConnections, w.err)
	if w.err != nil {
		a.cutting.due = true
		return false
	}
	if a.faults.now[partKernel] == nil {
		a.walk()
	}
	return unknown
}

// walkConnections evaluates all connections with the snapshot's ruleset, which the kernel has at the beginning. It
// doesn't change a connection on which a newer target has another verdict: another walk is due for that target.
func walkConnections(by *snapshot, target *atomic.Pointer[snapshot]) (cut.Result, error) {
	evaluator, err := by.evaluator()
	if err != nil {
		return cut.Result{}, err
	}
	own, err := ownAddresses()
	if err != nil {
		return cut.Result{}, err
	}
	last, now := by, evaluator
	return cut.Walk(evaluator, func() (cut.Evaluator, error) {
		var err error
		if s := target.Load(); s != last {
			last = s
			now, err = s.evaluator()
		}
		return now, err
	}, own)
}

// ownAddresses returns the node's addresses.
func ownAddresses() (map[netip.Addr]bool, error) {
	addrs, err := netlinksafe.AddrList(nil, netlink.FAMILY_ALL)
	if err != nil {
		return nil, fmt.Errorf("list the node's addresses: %w", err)
	}
	own := map[netip.Addr]bool{}
	for _, addr := range addrs {
		if ip, ok := netip.AddrFromSlice(addr.IP); ok {
			own[ip.Unmap()] = true
		}
	}
	return own, nil
}
