package agent

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"sync"
	"time"

	"github.com/weir-net/weir/agent/choice"
	"github.com/weir-net/weir/conf"
	"github.com/weir-net/weir/endpoint"
	"github.com/weir-net/weir/internal/kubeproxy"
	"github.com/weir-net/weir/netfilter"
	"github.com/weir-net/weir/policy"
	"github.com/weir-net/weir/policy/ruleset"
)

// chooser chooses the node's backend, again and again. From one choice to the next, it remembers where it saw rules of
// kube-proxy, and which backends it tried.
type chooser struct {
	Options
	seen choice.Seen
	// appeared is the backend to which kube-proxy has moved last, by choice.Appeared. If this backend is unknown,
	// appeared is empty.
	appeared conf.Backend
	trials   map[conf.Backend]trial // the last trial of each backend: a test whether the node supports the backend
	// turn returns the lock that must be locked during a trial of the backend; nil if the trial needs no lock.
	turn func(conf.Backend) sync.Locker
}

type trial struct {
	lacks []string
	when  time.Time
}

func newChooser(o Options) *chooser {
	return &chooser{
		Options: o, trials: map[conf.Backend]trial{},
		turn: func(conf.Backend) sync.Locker { return nil }, // trials need no lock before the loop runs
	}
}

// choose returns the backend that suits the node. previous is the last choice that the loop knows. At the agent's
// start, previous is the backend that the node used before. It is empty if there is no such backend. broken means that
// the kernel can't be read or changed, so backends that worked at their last trial are tried again after SettleChoice.
func (c *chooser) choose(ctx context.Context, previous conf.Backend, broken bool) (choice.Choice, error) {
	if c.Backend != "" {
		return choice.Choice{Backend: c.Backend, Reason: "the flag --backend demands it"}, nil
	}
	if len(c.Backends) == 1 {
		return choice.Choice{Backend: c.Backends[0].Name}, nil
	}
	before, now := c.seen, choice.Seen{}
	for _, k := range c.Backends {
		there, err := k.KubeProxy()
		if err != nil {
			return choice.Choice{}, fmt.Errorf("look for the rules of kube-proxy: %w", err)
		}
		if k.Name == conf.Nftables {
			now.Nftables = there
		} else {
			now.Iptables = there
		}
	}
	c.appeared = choice.Appeared(before, now, c.appeared)
	if now.Nftables && now.Iptables {
		if now.Newest = modeOfKubeProxy(ctx); now.Newest == "" {
			now.Newest = c.appeared
		}
	}
	c.seen = now
	changed := before.Nftables != now.Nftables || before.Iptables != now.Iptables || before.Newest != now.Newest
	for name, t := range c.trials {
		// During a trial of the backend in use, the loop waits, and afterwards it has to read the kernel again. So the
		// backend in use isn't tried while it works.
		works := name == previous && !broken && len(t.lacks) == 0
		if changed && !works || time.Since(t.when) > c.SettleChoice && (broken || len(t.lacks) > 0) {
			delete(c.trials, name)
		}
	}
	now.Lacks = func(b conf.Backend) []string {
		t, ok := c.trials[b]
		if !ok {
			t = trial{c.try(ctx, b, b == previous && !broken), time.Now()}
			c.trials[b] = t
		}
		return t.lacks
	}
	return choice.Choose(now, previous), nil
}

// tryWithin limits the time of a trial, because the loop may wait for the trial, and a program that the trial starts
// may hang.
const tryWithin = 10 * time.Second

// try returns the features that the backend needs and the node lacks. worked is true if the backend was the previous
// choice, and no fault of the kernel is known. If worked is true and the trial takes too long, try returns nil, as for
// a backend that works: the trial may only be waiting for another program that has the lock of xtables.
func (c *chooser) try(ctx context.Context, b conf.Backend, worked bool) []string {
	if turn := c.turn(b); turn != nil {
		turn.Lock()
		defer turn.Unlock()
	}
	ctx, cancel := context.WithTimeout(ctx, tryWithin)
	defer cancel()
	lacks, err := c.kind(b).Lacks(ctx)
	if err != nil {
		c.Log.Warn("a trial of a backend has left a thread in another network namespace; the thread has ended",
			"backend", b, "error", err)
	}
	if worked && ctx.Err() != nil {
		return nil
	}
	return lacks
}

// turnOf returns the lock for a trial of the backend, or nil if the trial may run beside the loop. If the agent may not
// make a network namespace, a trial makes its sets and rules in the node's own namespace. A loop that uses or removes
// the backend would remove these sets and rules, so such a trial needs the lock. Any other trial runs beside the loop,
// so no pod and no policy waits for it.
func (a *agent) turnOf(b, chosen conf.Backend) sync.Locker {
	s := a.status.Load()
	if b == chosen || string(b) == s.inUse || s.cleaning && s.inUse != "" {
		return &a.turn
	}
	return nil
}

// modeOfKubeProxy asks kube-proxy for its mode, and returns the backend that this mode uses. If kube-proxy doesn't
// answer or names an unknown mode, modeOfKubeProxy returns "".
func modeOfKubeProxy(ctx context.Context) conf.Backend {
	switch kubeproxy.Mode(ctx) {
	case "nftables":
		return conf.Nftables
	case "iptables", "ipvs":
		return conf.Iptables
	}
	return ""
}

// first returns the choice at the agent's start, and the backend to start with. Usually this is the chosen backend. But
// if the agent doesn't know that the node used the chosen backend before, and the kernel has complete rules only of the
// backend that wasn't chosen, the agent starts with that backend and moves later. A move harms no connection.
func (c *chooser) first(ctx context.Context) (name conf.Backend, b Backend, chosen choice.Choice, err error) {
	before, err := endpoint.ReadBackend()
	if err != nil {
		return "", nil, chosen, err
	}
	if chosen, err = c.choose(ctx, before, false); err != nil {
		return "", nil, chosen, err
	}
	if chosen.Backend == "" && len(c.Backends) > 1 {
		return "", neither{reason: chosen.Reason}, chosen, nil
	}
	b, err = c.kind(chosen.Backend).New(ctx)
	if err != nil || chosen.Backend == before || len(c.Backends) < 2 || stands(ctx, b) {
		return chosen.Backend, b, chosen, err
	}
	other := choice.Other(chosen.Backend)
	if standing, err := c.kind(other).New(ctx); err == nil {
		if stands(ctx, standing) {
			b.Close()
			return other, standing, chosen, nil
		}
		standing.Close()
	}
	return chosen.Backend, b, chosen, nil
}

func stands(ctx context.Context, b Backend) bool {
	s := policy.State{}
	records, _ := endpoint.List() // with an error, List still returns the records that can be read
	for _, e := range records {
		s.Endpoints = append(s.Endpoints, policyEndpoint(e))
	}
	yes, err := b.Stands(ctx, policy.Compile(s))
	return yes && err == nil
}

// looks is the least number of times that the chooser looks at the node within the time SettleChoice.
const looks = 4

// watchChoice chooses again and again. If it chooses another backend than the one that it last told the loop, it tells
// the loop once the choice has stayed the same for the duration SettleChoice. It tells the loop at once if no backend
// has worked so far, or if only the reason has changed.
func (a *agent) watchChoice(ctx context.Context, c *chooser, told choice.Choice) error {
	if a.Backend != "" || len(a.Backends) < 2 {
		<-ctx.Done()
		return nil
	}
	c.turn = func(b conf.Backend) sync.Locker { return a.turnOf(b, told.Backend) }
	ticker := time.NewTicker(min(a.Resync, max(a.SettleChoice/looks, time.Millisecond)))
	defer ticker.Stop()
	// last is a backend that has become the choice, and since is when that happened. since is zero while the loop
	// knows the choice.
	var since time.Time
	var last conf.Backend
	failed := fmt.Sprint(nil) // the text of the last error, so an error that lasts is logged once
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-ticker.C:
		}
		now, err := c.choose(ctx, told.Backend, a.status.Load().faults[partKernel] != nil)
		if ctx.Err() != nil {
			return nil
		}
		if text := fmt.Sprint(err); text != failed {
			if failed = text; err != nil {
				a.Log.Warn("the agent can't find out which backend suits the node; it changes nothing, and tries again",
					"error", err)
			}
		}
		switch {
		case err != nil || now == told || now.Backend == "" && told.Backend != "":
			since = time.Time{}
			continue
		case now.Backend == told.Backend || told.Backend == "":
		case since.IsZero() || now.Backend != last:
			since, last = time.Now(), now.Backend
			continue
		case time.Since(since) < a.SettleChoice:
			continue
		}
		since, told = time.Time{}, now
		a.send(ctx, backendChosen{now})
	}
}

// neither is the Backend of a node on which no backend works. Apply and most other methods return the reason as an
// error.
type neither struct{ reason string }

func (n neither) err() error {
	return errors.New("policies can't be enforced on this node: " + n.reason + ". To get them: install the kernel's " +
		"additional modules (kernel-modules-extra, linux-modules-extra-$(uname -r)), and restart the agent if its image " +
		"lacks a program; the agent tries again each minute")
}

func (neither) Tool() string                               { return "" }
func (neither) Sets(ruleset.Ruleset) []netfilter.KernelSet { return nil }
func (neither) TellsOfChanges() bool                       { return false }
func (neither) Unread() bool                               { return true }
func (neither) HasPods(conf.Family) bool                   { return false }
func (neither) Reread(...netip.Addr) bool                  { return false }
func (neither) Knows(uint32) bool                          { return true }
func (neither) Close()                                     {}
func (neither) CleanOtherFlavour(context.Context) error    { return nil }
func (n neither) Generation() (uint32, error)              { return 0, n.err() }
func (n neither) Read(context.Context) error               { return n.err() }

func (n neither) Refresh(context.Context, func() bool) (bool, error) { return false, n.err() }
func (n neither) PutFirst(context.Context, ruleset.Ruleset) error    { return nil }

func (n neither) Members() (map[ruleset.Direction]map[netip.Addr]bool, error) { return nil, n.err() }

func (n neither) Apply(context.Context, ruleset.Ruleset, netfilter.Verify) (netfilter.Result, error) {
	return netfilter.Result{}, n.err()
}

func (n neither) KeepClosed(context.Context, ruleset.Ruleset) ([]conf.Family, error) {
	return nil, n.err()
}

func (n neither) Stands(context.Context, ruleset.Ruleset) (bool, error) { return false, n.err() }

func (n neither) Inspect(context.Context, ruleset.Ruleset, []ruleset.Packet) (netfilter.Inspection, error) {
	return netfilter.Inspection{}, n.err()
}

func (neither) Watch(ctx context.Context, _ func(uint32, bool)) error {
	<-ctx.Done()
	return nil
}
