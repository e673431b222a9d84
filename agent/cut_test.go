package agent

import (
	"errors"
	"fmt"
	"net/netip"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/weir-net/weir/conf"
	"github.com/weir-net/weir/endpoint"
	"github.com/weir-net/weir/netfilter"
	"github.com/weir-net/weir/netfilter/conntrack"
	"github.com/weir-net/weir/netfilter/cut"
	"github.com/weir-net/weir/policy"
	"github.com/weir-net/weir/policy/ruleset"
	"github.com/weir-net/weir/test/nodetest"
)

// TestConnectionsAreWalkedWhereSomethingIsToBeFound: the agent starts a walk through all connections only after a
// change because of which a connection may have to be cut or restored.
func TestConnectionsAreWalkedWhereSomethingIsToBeFound(t *testing.T) {
	if !nodetest.Isolated(t) {
		return
	}
	remote := func(name, address, app string) policy.Pod {
		p := pod(name, address)
		p.Labels = map[string]string{"app": app}
		return p
	}
	state := func(clientApp, otherApp string) *policy.Objects {
		o := healthy()
		o.Pods = []policy.Pod{
			pod("web", ""), pod("db", ""), remote("client", "10.88.1.5", clientApp),
			remote("other", "10.88.1.6", otherApp),
		}
		return o
	}
	port := 4000
	connect := func(from string) {
		port++
		nodetest.Run(t, "conntrack", "-I", "-p", "udp", "-s", from, "-d", "10.88.0.2", "--sport", fmt.Sprint(port),
			"--dport", "53", "-u", "SEEN_REPLY,ASSURED", "-t", "600")
	}
	s := step(t, state("none", "none"))
	wantCut := func(when string, want int) {
		t.Helper()
		got := 0
		for c, err := range conntrack.All() {
			if err != nil {
				t.Fatal(err)
			}
			if c.Cut {
				got++
			}
		}
		if got != want {
			t.Errorf("%s: %d connections are cut, want %d", when, got, want)
		}
	}
	tell := func(o *policy.Objects) {
		t.Helper()
		s.know(o)
		s.hear(netfilter.Trust)
	}
	s.attach("web", "10.88.0.2")
	// The agent marks cut connections with a label. This rule makes the kernel keep room for labels in the entries of
	// new connections.
	nodetest.Run(t, "iptables", "-t", "raw", "-A", "PREROUTING", "-m", "connlabel", "--label", "1")
	connect("10.88.1.5")
	s.hear(netfilter.All)
	wantCut("what was there when the agent started", 1)
	tell(state("client", "none"))
	wantCut("the one that was cut may go on", 0)
	connect("10.88.1.9") // no policy allows it, so a walk would cut it
	tell(state("client", "client"))
	wantCut("nothing is cut, and another comes to be let through", 0)
	s.hear(netfilter.All)
	wantCut("nothing has changed", 0)
	id := s.attach("db", "10.88.0.3")
	s.hear(netfilter.Trust)
	wantCut("a pod has come", 0)
	if err := endpoint.Remove(id); err != nil {
		t.Fatal(err)
	}
	s.hear(netfilter.Trust)
	wantCut("a pod has ended", 0)
	nodetest.Run(t, "ipset", "flush", conf.PodsSet)
	s.hear(netfilter.All)
	wantCut("what another program had removed is there again", 1)
	tell(state("none", "client"))
	wantCut("one is no longer let through", 2)
	connect("10.88.1.5")
	tell(state("none", "none"))
	wantCut("none is let through", 3)
	connect("10.88.1.5") // the agent is killed before it sees this connection
	s = step(t, state("none", "none"))
	s.hear(netfilter.All)
	wantCut("an agent has started", 4)
}

// TestAWalkIsOvertaken: if the rules change during a walk through all connections, the walk leaves alone the
// connections on which the old and the new rules disagree.
func TestAWalkIsOvertaken(t *testing.T) {
	if !nodetest.Isolated(t) {
		return
	}
	s := stepWeb(t)
	nodetest.Run(t, "iptables", "-t", "raw", "-A", "PREROUTING", "-m", "connlabel", "--label", "1")
	nodetest.Run(t, "conntrack", "-I", "-p", "udp", "-s", "10.88.1.5", "-d", "10.88.0.2", "--sport", "4000", "--dport",
		"53", "-u", "SEEN_REPLY,ASSURED", "-t", "600")
	opens := s.snapshots.target.Load()
	closed := healthy()
	closed.Policies = nil
	for _, p := range healthy().Policies {
		p.Spec.Ingress = nil
		closed.Policies = append(closed.Policies, p)
	}
	s.know(closed)
	closes := s.compile()
	for i, tc := range []struct {
		held, newest *snapshot
		want         cut.Result
	}{
		{closes, opens, cut.Result{}},
		{opens, closes, cut.Result{}},
		{closes, closes, cut.Result{Cut: 1, Standing: 1}},
		{opens, closes, cut.Result{Standing: 1}},
		{closes, opens, cut.Result{Standing: 1}},
		{opens, opens, cut.Result{Restored: 1}},
	} {
		s.snapshots.target.Store(tc.newest)
		got, err := walkConnections(tc.held, &s.snapshots.target)
		if len(got.Known) != got.Standing {
			t.Errorf("walk %d: %d cut connections are known, and %d stand", i, len(got.Known), got.Standing)
		}
		if got.Examples, got.Known = nil, nil; !cmp.Equal(got, tc.want) || err != nil {
			t.Errorf("walk %d: %+v, %v; want %+v", i, got, err, tc.want)
		}
	}
	s.faults.set(partKernel, errors.New("it wouldn't"))
	s.cutting.due = true
	s.takeWalk(walkResult{})
	if !s.cutting.due || s.cutting.walking {
		t.Error("a walk goes by rules that the kernel doesn't have")
	}
}

// TestChangesShareAWalk: all changes during a walk through all connections, or during the pause after it, make only
// one more walk due. A few walks may follow one another without a pause.
func TestChangesShareAWalk(t *testing.T) {
	if !nodetest.Isolated(t) {
		return
	}
	s := stepWeb(t)
	s.cutting.shortest = time.Minute
	change := func() {
		s.cutting.afterApply(netfilter.Result{Changed: true, Closes: true}, netfilter.Trust, false)
		s.walk()
	}
	want := func(when string, walking, due bool) {
		t.Helper()
		if s.cutting.walking != walking || s.cutting.due != due {
			t.Errorf("%s: a walk runs: %v, another is due: %v", when, s.cutting.walking, s.cutting.due)
		}
	}
	wantPause := func(when string, want time.Duration) {
		t.Helper()
		if left := time.Until(s.cutting.next); left < want-30*time.Second || left > want {
			t.Errorf("%s: the next walk begins in %v, want %v", when, left, want)
		}
	}
	end := func() {
		s.cutting.next = time.Now()
		s.cutting.pause.Reset(0)
		receive(s.T, s.cutting.pause.C)
		s.endPause()
	}
	change()
	want("the first change", true, false)
	for range 10 {
		change()
	}
	want("ten changes while a walk runs", true, true)
	s.takeWalk(receive(s.T, s.cutting.results))
	want("the walk has ended", true, false)
	for range earlyPeriods - 1 {
		change()
		s.takeWalk(receive(s.T, s.cutting.results))
		want("a few walks have ended", true, false)
	}
	change()
	s.takeWalk(receive(s.T, s.cutting.results))
	want("more walks have ended", false, true)
	change()
	want("a change within the pause", false, true)
	wantPause("after five walks", time.Minute)
	end()
	want("the pause has ended", true, false)
	w := receive(s.T, s.cutting.results)
	w.took = time.Hour
	s.takeWalk(w)
	wantPause("after six walks", 5*time.Minute)
	s.cutting.next = time.Time{}
	change()
	s.takeWalk(receive(s.T, s.cutting.results))
	wantPause("after a walk that took an hour", 2*time.Hour+2*time.Minute)
	change()
	s.faults.set(partKernel, errors.New("it wouldn't"))
	end()
	want("the kernel has a fault", false, true)
}

// TestHeldPackets: while another program holds packets (NFQUEUE), a walk through all connections may miss the
// connections of these packets. So more walks follow: one soon, and one at each resync, until a walk begins while no
// packet is held.
func TestHeldPackets(t *testing.T) {
	if !nodetest.Isolated(t) {
		return
	}
	s := stepWeb(t)
	s.cutting.due = false
	for i, tc := range []struct {
		held, restore, soon, resync bool
	}{
		{false, false, false, false},
		{true, false, true, true},
		{true, false, false, true},
		{false, true, false, true}, // only known connections were restored
		{false, false, false, false},
		{true, false, true, true},
	} {
		s.cutting.next, s.cutting.paid = time.Now().Add(time.Hour), time.Now().Add(time.Hour) // so that no walk begins
		s.takeWalk(walkResult{held: tc.held, restore: tc.restore})
		if s.cutting.due != tc.soon {
			t.Errorf("walk %d: another is due: %v, want %v", i, s.cutting.due, tc.soon)
		}
		s.cutting.due = false
		s.prepareResync(t.Context())
		if s.cutting.due != tc.resync {
			t.Errorf("walk %d: another is due at the resync: %v, want %v", i, s.cutting.due, tc.resync)
		}
		s.cutting.due = false
	}
}

// TestKnownConnectionsAreRestoredAtOnce: after a change that may allow cut connections again, the agent at once looks
// at the cut connections that it knows. It looks at all connections only if more are cut than it can remember.
func TestKnownConnectionsAreRestoredAtOnce(t *testing.T) {
	if !nodetest.Isolated(t) {
		return
	}
	s := stepWeb(t)
	c := &s.cutting
	c.shortest = time.Minute
	end := func() walkResult {
		t.Helper()
		w := receive(s.T, c.results)
		return w
	}
	closes := netfilter.Result{Changed: true, Closes: true}
	opens := netfilter.Result{Changed: true}
	change := func(r netfilter.Result) {
		c.afterApply(r, netfilter.Trust, false)
		s.walk()
	}
	stand := func(known int) { // pretends that a walk left two cut connections
		w := walkResult{Result: cut.Result{Standing: 2, Known: make([]conntrack.Edit, known)}, began: time.Now()}
		s.takeWalk(w)
	}
	want := func(when string, walking, restoring, due bool) {
		t.Helper()
		if c.walking != walking || c.restoring != restoring || c.due != due {
			t.Errorf("%s: a walk runs: %v, only to restore: %v, another is due: %v", when, c.walking, c.restoring, c.due)
		}
	}
	c.due = false
	stand(2)
	c.next, c.paid = time.Now().Add(time.Hour), time.Now().Add(time.Hour)
	change(opens)
	want("a change allows more", true, true, false)
	change(opens)
	want("another change allows more meanwhile", true, true, false)
	if !end().restore {
		t.Error("all connections were walked")
	}
	s.takeWalk(walkResult{restore: true, Result: cut.Result{Standing: 2, Known: make([]conntrack.Edit, 2)}})
	want("known connections were restored a moment ago", false, false, false)
	if !c.restore {
		t.Error("the second change is forgotten")
	}
	c.restored = time.Time{}
	s.endPause()
	want("the pause has ended", true, true, false)
	change(closes)
	want("a change forbids more meanwhile", true, true, true)
	end()
	stand(1)
	want("a walk is due, and it is too early", false, false, true)
	change(opens)
	c.due, c.restore = false, false
	change(opens)
	want("not all cut connections are known", false, false, true)
	c.next = time.Time{}
	s.endPause()
	want("the walk", true, false, false)
	end()
}

// TestAWalkForPodsThatAreGoneWaits: if a walk through all connections is due only because pods have ended, it begins
// no earlier than lazyPeriods times shortestPeriod after the beginning of the last walk.
func TestAWalkForPodsThatAreGoneWaits(t *testing.T) {
	if !nodetest.Isolated(t) {
		return
	}
	s := stepWeb(t)
	s.cutting.shortest = time.Minute
	change := func(gone bool) {
		s.cutting.afterApply(netfilter.Result{Changed: true, Closes: true}, netfilter.Trust, gone)
		s.walk()
	}
	want := func(when string, walking, due bool) {
		t.Helper()
		if s.cutting.walking != walking || s.cutting.due != due {
			t.Errorf("%s: a walk runs: %v, another is due: %v", when, s.cutting.walking, s.cutting.due)
		}
	}
	s.cutting.due, s.cutting.last = false, time.Time{}
	change(true)
	want("a pod elsewhere has ended", true, false)
	s.takeWalk(receive(s.T, s.cutting.results))
	change(true)
	want("another one has ended", false, true)
	s.cutting.last = time.Now().Add(-lazyPeriods * time.Minute)
	s.walk()
	want("enough time has passed", true, false)
	change(true)
	s.takeWalk(receive(s.T, s.cutting.results))
	want("a pod has ended during the walk", false, true)
	s.cutting.next = time.Time{}
	change(false)
	want("a policy has changed", true, false)
	change(false)
	change(true)
	s.cutting.next = time.Time{}
	s.takeWalk(receive(s.T, s.cutting.results))
	if s.cutting.lazy {
		t.Error("a pod that ended makes a change of a policy wait")
	}
}

func TestConnectionsAreListed(t *testing.T) {
	if !nodetest.Isolated(t) {
		return
	}
	s := stepWeb(t)
	web, other := netip.MustParseAddr("10.88.0.2"), netip.MustParseAddr("10.88.1.5")
	got := s.listed([]cut.Example{
		{Src: other, Dst: web, Proto: ruleset.TCP, Port: 80}, {Src: web, Dst: other, Proto: "1", Restored: true},
	}, 3)
	want := "10.88.1.5 to shop/web tcp port 80, shop/web to 10.88.1.5 protocol 1 (restored), and 3 more"
	if got != want {
		t.Errorf("got %q, want %q", got, want)
	}
}
