package agent

import (
	"fmt"
	"net/netip"
	"sync/atomic"

	"github.com/containernetworking/plugins/pkg/netlinksafe"
	"github.com/vishvananda/netlink"

	"github.com/weir-net/weir/netfilter/iptables"
	"github.com/weir-net/weir/policy"
	"github.com/weir-net/weir/policy/ruleset"
)

// cutting ends connections that are no longer let through, and lets those go on that are again. It walks through all
// connections for that, which takes a quarter of a second where there are 200,000, and ten milliseconds in an empty table,
// since that has as many buckets. So it does that beside the loop, which no pod's start and no policy waits for then, and
// not where nothing is to be found.
type cutting struct {
	owed     bool // connections may be open that aren't let through any more, or cut that are again
	standing int  // connections that are cut
	walking  bool
	walked   chan walked // holds one
	newest   atomic.Pointer[scene]
}

// scene is what the kernel holds, or is about to.
type scene struct {
	ruleset ruleset.Ruleset
	pods    map[netip.Addr]ruleset.Link
}

func (s *scene) judgement() (iptables.Judgement, error) {
	judge, err := ruleset.NewSimulator(s.ruleset)
	return iptables.Judgement{Judge: judge, Pods: s.pods}, err
}

type walked struct {
	iptables.Walk
	err error
}

// pods are the addresses of the node's pods, with their links.
func (a *agent) pods() map[netip.Addr]ruleset.Link {
	pods := map[netip.Addr]ruleset.Link{}
	for _, e := range a.attached() {
		link := policy.LinkOf(e)
		for _, addr := range e.Addresses {
			pods[addr.Addr] = link
		}
	}
	return pods
}

// note says what has changed in the kernel. What only opens concerns connections that are cut alone, or may be by a walk
// that is on its way.
func (c *cutting) note(r iptables.Result, verify iptables.Verify) {
	opens := r.Changed && (c.standing > 0 || c.walking)
	// Connections may have been opened while something was not there that the last sync had left.
	repaired := r.Changed && verify == iptables.All
	c.owed = c.owed || r.Closes || opens || repaired
}

// walk starts the walk that is owed, unless one is on its way: the next comes after it. The kernel holds what it goes by.
func (a *agent) walk() {
	c := &a.cutting
	if !c.owed || c.walking {
		return
	}
	c.owed, c.walking = false, true
	held := c.newest.Load()
	go func() {
		walk, err := judgeAnew(held, &c.newest)
		c.walked <- walked{walk, err}
	}()
}

// takeWalk takes what a walk came to. What was owed meanwhile is walked for at once, if the kernel holds what it should;
// else, and if the walk failed, after the next sync.
func (a *agent) takeWalk(w walked) {
	defer a.publish()
	a.cutting.walking, a.cutting.standing = false, w.Standing
	a.stats.Cut += w.Cut
	if w.Cut+w.Restored > 0 {
		a.Log.Info("connections judged anew", "cut", w.Cut, "restored", w.Restored)
	}
	a.faults.set(partConnections, w.err)
	if w.err != nil {
		a.cutting.owed = true
		return
	}
	if a.faults.now[partKernel] == nil {
		a.walk()
	}
}

// judgeAnew walks by what the kernel holds when it begins.
func judgeAnew(held *scene, newest *atomic.Pointer[scene]) (iptables.Walk, error) {
	by, err := held.judgement()
	if err != nil {
		return iptables.Walk{}, err
	}
	addrs, err := netlinksafe.AddrList(nil, netlink.FAMILY_ALL)
	if err != nil {
		return iptables.Walk{}, fmt.Errorf("list the node's addresses: %w", err)
	}
	own := map[netip.Addr]bool{}
	for _, addr := range addrs {
		if ip, ok := netip.AddrFromSlice(addr.IP); ok {
			own[ip.Unmap()] = true
		}
	}
	last, now := held, by
	return iptables.Cut(by, func() (iptables.Judgement, error) {
		var err error
		if s := newest.Load(); s != last {
			last = s
			now, err = s.judgement()
		}
		return now, err
	}, own)
}
