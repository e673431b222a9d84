package agent

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/http"
	"net/netip"
	"runtime"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/containernetworking/plugins/pkg/netlinksafe"
	"golang.org/x/sys/unix"
	networkingv1 "k8s.io/api/networking/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/util/intstr"

	"github.com/weir-net/weir/agent/choice"
	"github.com/weir-net/weir/conf"
	"github.com/weir-net/weir/endpoint"
	"github.com/weir-net/weir/internal/dirwatch"
	"github.com/weir-net/weir/netfilter"
	"github.com/weir-net/weir/policy"
	"github.com/weir-net/weir/policy/ruleset"
	"github.com/weir-net/weir/test/nodetest"
)

// memory is a Backend that records its calls and changes nothing. Each call of Apply returns the next error in fails.
// The next Result has the errors in late as its Late: errors of programs that failed after they had made their changes.
type memory struct {
	calls       []string
	fails       []error
	late        []error
	last        ruleset.Ruleset
	pods6       bool
	interrupted bool
}

var _ Backend = (*memory)(nil)

func (m *memory) call(name string) { m.calls = append(m.calls, name) }

func (m *memory) Tool() string                                          { return "memory" }
func (m *memory) Sets(ruleset.Ruleset) []netfilter.KernelSet            { return nil }
func (m *memory) TellsOfChanges() bool                                  { return false }
func (m *memory) HasPods(conf.Family) bool                              { return m.pods6 }
func (m *memory) Unread() bool                                          { return false }
func (m *memory) Reread(...netip.Addr) bool                             { return false }
func (m *memory) Knows(uint32) bool                                     { return true }
func (m *memory) Generation() (uint32, error)                           { return 1, nil }
func (m *memory) Close()                                                {}
func (m *memory) Stands(context.Context, ruleset.Ruleset) (bool, error) { return true, nil }
func (m *memory) CleanOtherFlavour(context.Context) error               { m.call("CleanOtherFlavour"); return nil }

func (m *memory) Read(context.Context) error { m.call("Read"); return nil }

func (m *memory) Refresh(_ context.Context, pause func() bool) (bool, error) {
	m.call("part")
	if m.interrupted {
		for m.interrupted = false; !pause(); {
			runtime.Gosched()
		}
		return false, nil
	}
	m.call("part")
	return true, nil
}

func (m *memory) Members() (map[ruleset.Direction]map[netip.Addr]bool, error) {
	return map[ruleset.Direction]map[netip.Addr]bool{}, nil
}

func (m *memory) Watch(ctx context.Context, _ func(uint32, bool)) error {
	<-ctx.Done()
	return nil
}

func (m *memory) Inspect(_ context.Context, want ruleset.Ruleset, _ []ruleset.Packet) (netfilter.Inspection, error) {
	return netfilter.Inspection{Ruleset: want}, nil
}

func (m *memory) PutFirst(context.Context, ruleset.Ruleset) error {
	m.call("PutFirst")
	return nil
}

func (m *memory) KeepClosed(context.Context, ruleset.Ruleset) ([]conf.Family, error) {
	m.call("KeepClosed")
	return nil, nil
}

func (m *memory) Apply(
	_ context.Context, want ruleset.Ruleset, _ netfilter.Verify,
) (r netfilter.Result, err error) {
	m.call("Apply")
	m.last = want
	if len(m.fails) > 0 {
		err, m.fails = m.fails[0], m.fails[1:]
	}
	r.Late, m.late = m.late, nil
	return r, err
}

func remembering(t *testing.T) (*agent, *memory, *running) {
	t.Helper()
	links, err := netlinksafe.NewHandle(unix.NETLINK_ROUTE)
	if err != nil {
		t.Fatal(err)
	}
	m := &memory{}
	return newAgent(Options{Source: newCluster(), Log: slog.New(slog.DiscardHandler)}, m, links), m, &running{T: t}
}

// TestRemainsOfTheOtherBackend: an agent that starts without policies removes the remains of the other backend a second
// after its first round with policies. It doesn't wait for a resync: until the removal, the plugin denies and releases
// pods in both backends. No plugin waits for the removal. If the removal fails, the agent tries again at a resync.
func TestRemainsOfTheOtherBackend(t *testing.T) {
	if !nodetest.Isolated(t) {
		return
	}
	for _, fails := range []error{nil, errors.New("busy")} {
		a, m, r := remembering(t)
		a.Backends = []BackendKind{{Name: conf.Nftables}, {Name: conf.Iptables, Remove: func(context.Context) error {
			m.call("Remove")
			return fails
		}}}
		err := errors.Join(endpoint.WriteBackend(""), a.begin(conf.Nftables, choice.Choice{Backend: conf.Nftables}))
		if err != nil {
			t.Fatal(err)
		}
		reconcile := func(verify netfilter.Verify, next time.Duration, want ...string) {
			t.Helper()
			m.calls = nil
			if got := a.reconcile(t.Context(), verify); got != next || !slices.Equal(m.calls, want) {
				t.Errorf("the agent called %q, and its next round comes in %s, want %q and %s", m.calls, got, want, next)
			}
		}
		second := func() { a.moving.cleanAt = a.moving.cleanAt.Add(-retry) }
		removal := []string{"Read", "Apply", "CleanOtherFlavour", "Remove"}

		reconcile(netfilter.All, 0, "KeepClosed") // the agent has no policies yet
		id := r.attach("web", "10.88.0.2")
		a.takeRecords(dirwatch.Change{Lost: true})
		a.takeUpdate(policy.Difference(policy.Objects{}, *healthy()), nil)
		reconcile(netfilter.Trust, retry, "Apply")
		reconcile(netfilter.Trust, retry, "Apply") // an event within the second
		second()
		plugin := &enrolment{ctx: t.Context(), id: id, deadline: time.Now().Add(time.Minute), answer: make(chan answer, 1)}
		a.takeEnrolment(plugin)
		reconcile(netfilter.Trust, retry, "Apply")
		if len(plugin.answer) == 0 {
			t.Error("a plugin waits for the removal")
		}
		if fails != nil {
			reconcile(netfilter.Trust, retry, removal...)
			reconcile(netfilter.Trust, retry, "Apply")
			fails = nil
			reconcile(netfilter.All, 0, removal...)
		} else {
			reconcile(netfilter.Trust, 0, removal...)
		}
		if name, err := endpoint.ReadBackend(); err != nil || name != conf.Nftables {
			t.Errorf("the plugin is told %q (%v)", name, err)
		}
		reconcile(netfilter.Trust, 0, "Apply")
		reconcile(netfilter.All, 0, "Read", "Apply")
	}
}

// TestReconcileAndItsBackend: the agent calls its backend's methods in the right order, and answers plugins only after
// Apply has succeeded.
func TestReconcileAndItsBackend(t *testing.T) {
	if !nodetest.Isolated(t) {
		return
	}
	a, m, r := remembering(t)
	id := r.attach("web", "10.88.0.2")
	enrol := func() *enrolment {
		e := &enrolment{ctx: t.Context(), id: id, deadline: time.Now().Add(time.Minute), answer: make(chan answer, 1)}
		a.takeEnrolment(e)
		return e
	}
	reconcile := func(verify netfilter.Verify, want ...string) {
		t.Helper()
		m.calls = nil
		a.reconcile(t.Context(), verify)
		if !slices.Equal(m.calls, want) {
			t.Errorf("the agent called %q, want %q", m.calls, want)
		}
	}
	reconcile(netfilter.All, "KeepClosed")
	reconcile(netfilter.Trust)
	a.takeRecords(dirwatch.Change{Lost: true})
	a.takeUpdate(policy.Difference(policy.Objects{}, *healthy()), nil)

	waits := enrol()
	m.fails = []error{errors.New("no room")}
	reconcile(netfilter.Trust, "Apply")
	if len(waits.answer) > 0 || a.status.Load().ready {
		t.Error("the kernel lacks what it should have, and a plugin was answered, or the agent is ready")
	}
	reconcile(netfilter.Trust, "Read", "Apply", "CleanOtherFlavour") // after a failure, the agent reads everything
	if r := receive(t, waits.answer); r.status != http.StatusOK || r.Ingress != "shop/web" {
		t.Errorf("the plugin was answered %+v", r)
	}
	reconcile(netfilter.Trust, "Apply")

	failures := a.stats.Failures
	m.late = []error{errors.New("killed")}
	reconcile(netfilter.Trust, "Apply")
	if a.stats.Failures != failures+1 || !a.status.Load().ready {
		t.Errorf("after a late error: %d failures, before: %d", a.stats.Failures, failures)
	}

	refusal := ruleset.Refused{ruleset.Refusal{Set: "weir-x"}: "no such type"}
	m.fails = []error{&netfilter.RefusedError{Refused: refusal}}
	reconcile(netfilter.Trust, "Apply", "Apply")
	if len(a.kernel.refused) != 1 || !a.status.Load().ready {
		t.Error("the ruleset was not compiled without what the kernel refuses")
	}
	m.fails = []error{&netfilter.RefusedError{Refused: refusal}}
	reconcile(netfilter.Trust, "Apply")
	if err := a.faults.now[partKernel]; err == nil || !strings.Contains(err.Error(), "no such type") {
		t.Errorf("the fault of the kernel is %v", err)
	}
	if a.snapshots.enforced.Load() == a.snapshots.target.Load() {
		t.Error("a snapshot that the kernel refuses is taken for enforced")
	}

	m.fails = []error{nil, &netfilter.UnknownError{Why: []error{errors.New("table nat can't be read")}}}
	reconcile(netfilter.Trust, "Read", "Apply")
	waits = enrol()
	reconcile(netfilter.Trust, "Apply")
	if len(waits.answer) > 0 {
		t.Error("a table is unknown, and a plugin was answered")
	}
	reconcile(netfilter.Trust, "Apply")
	if r := receive(t, waits.answer); r.status != http.StatusOK {
		t.Errorf("the plugin was answered %+v", r)
	}

	// A plugin that asks during a resync is answered before the resync goes on.
	waits = &enrolment{ctx: t.Context(), id: id, deadline: time.Now().Add(time.Minute), answer: make(chan answer, 1)}
	m.interrupted, m.calls = true, nil
	go a.send(t.Context(), enrolRequest{waits})
	a.refresh(t.Context())
	if want := []string{"part", "Apply", "part", "part"}; !slices.Equal(m.calls, want) || len(waits.answer) != 1 {
		t.Errorf("during a resync the agent called %q and gave %d answers", m.calls, len(waits.answer))
	}
	reconcile(netfilter.All, "Apply")
	reconcile(netfilter.All, "Read", "Apply")
}

// TestLargePoliciesTakeSeveralRounds: if a policy with large sets comes after the first ruleset, each round applies
// only a part of these sets.
func TestLargePoliciesTakeSeveralRounds(t *testing.T) {
	if !nodetest.Isolated(t) {
		return
	}
	a, m, r := remembering(t)
	r.attach("web", "10.88.0.2")
	a.takeRecords(dirwatch.Change{Lost: true})
	const many, networks = 5, 1000
	large := func(name string) *networkingv1.NetworkPolicy {
		np := allow(name, &metav1.LabelSelector{})
		for i := range many {
			port := intstr.FromInt(1 + i)
			rule := networkingv1.NetworkPolicyIngressRule{Ports: []networkingv1.NetworkPolicyPort{{Port: &port}}}
			for n := range networks {
				rule.From = append(rule.From, networkingv1.NetworkPolicyPeer{IPBlock: &networkingv1.IPBlock{
					CIDR: fmt.Sprintf("172.%d.%d.%d/32", len(name)+i, n>>8, n&255),
				}})
			}
			np.Spec.Ingress = append(np.Spec.Ingress, rule)
		}
		return np
	}
	made := func() (n int) {
		for _, s := range m.last.Sets {
			if s.Entries.Len() == networks {
				n++
			}
		}
		return n
	}
	was, now := *healthy(), *healthy()
	was.Policies = append(was.Policies, large("first"))
	a.takeUpdate(policy.Difference(policy.Objects{}, was), nil)
	if a.reconcile(t.Context(), netfilter.All); made() != many {
		t.Errorf("the first ruleset has %d of %d sets", made(), many)
	}
	now.Policies = append(slices.Clone(was.Policies), large("first and second"))
	a.takeUpdate(policy.Difference(was, now), nil)
	rounds := 0
	// A round has limited time. On a slow machine it makes fewer entries, so the test allows 1000 rounds.
	for ; a.cluster.engine.Changed() && rounds < 1000; rounds++ {
		if u := a.cluster.engine.NextUnparsed(); u != nil {
			u.Parse()
			a.takeParsed(u)
		}
		next := a.reconcile(t.Context(), netfilter.Trust)
		if more := a.cluster.engine.HasSlice(); more != (next > 0 && next <= mostRest) {
			t.Errorf("after round %d the next is due in %v; something is left: %v", rounds, next, more)
		}
	}
	if rounds < 2 || made() != 2*many {
		t.Errorf("after %d rounds there are %d of %d sets", rounds, made(), 2*many)
	}
}

// TestAChoiceThatGoesBack: if the choice goes back to the backend in use after a failed move, the fault of the failed
// move ends.
func TestAChoiceThatGoesBack(t *testing.T) {
	if !nodetest.Isolated(t) {
		return
	}
	a, _, _ := remembering(t)
	a.moving.inUse, a.moving.failed = conf.Iptables, errors.New("no room")
	a.moving.chosen.Backend = conf.Iptables
	a.faults.set(partBackend, a.moving.failed)
	a.moveIfChosen(t.Context())
	if a.faults.now[partBackend] != nil {
		t.Errorf("the fault is still %v", a.faults.now[partBackend])
	}
}

// TestAMoveBeginsWithoutRemains: if an earlier agent was killed during a move, the next agent first removes the remains
// of the chosen backend, and then moves. If the removal fails, the agent still moves.
func TestAMoveBeginsWithoutRemains(t *testing.T) {
	if !nodetest.Isolated(t) {
		return
	}
	for _, removal := range []error{nil, errors.New("busy")} {
		a, _, _ := remembering(t)
		var done []string
		kind := func(name conf.Backend) BackendKind {
			return BackendKind{
				Name: name,
				New: func(context.Context) (Backend, error) {
					done = append(done, "move to "+string(name))
					return &memory{}, nil
				},
				Remove: func(context.Context) error {
					done = append(done, "remove "+string(name))
					return removal
				},
			}
		}
		a.Backends = []BackendKind{kind(conf.Iptables), kind(conf.Nftables)}
		err := errors.Join(endpoint.WriteBackend(""), a.begin(conf.Nftables, choice.Choice{Backend: conf.Iptables}))
		if err != nil {
			t.Fatal(err)
		}
		a.takeRecords(dirwatch.Change{Lost: true})
		a.takeUpdate(policy.Difference(policy.Objects{}, *healthy()), nil)
		next := a.reconcile(t.Context(), netfilter.Trust)
		name, err := endpoint.ReadBackend()
		if err != nil {
			t.Fatal(err)
		}
		if !slices.Equal(done, []string{"remove iptables"}) || a.moving.inUse != conf.Nftables {
			t.Errorf("in the first round the agent did %q, and uses %s", done, a.moving.inUse)
		}
		if removal == nil && (name != conf.Nftables || next == 0 || next > time.Millisecond) {
			t.Errorf("after the removal the plugin is told %q, and the next round comes in %v", name, next)
		}
		done = nil
		a.reconcile(t.Context(), netfilter.Trust)
		if len(done) == 0 || done[0] != "move to iptables" || a.moving.inUse != conf.Iptables {
			t.Errorf("after the removal (%v) the agent did %q, and uses %s", removal, done, a.moving.inUse)
		}
	}
}

// TestLeftoversRefusePods: if the other backend's rules can't be removed while the plugin denies pods in both
// backends, no pod is enrolled.
func TestLeftoversRefusePods(t *testing.T) {
	if !nodetest.Isolated(t) {
		return
	}
	a, _, _ := remembering(t)
	a.faults.set(partLeftovers, errors.New("busy"))
	if a.unknown() != nil {
		t.Error("leftovers refuse pods though the plugin denies them in one backend only")
	}
	if a.moving.both = true; a.unknown() == nil {
		t.Error("pods are enrolled that the other backend's rules drop")
	}
}

// TestStraysOfIPv6KeepItsRules: while the kernel has IPv6 addresses of pods, the ruleset has rules for IPv6, even if no
// record has an IPv6 address. For example, the record of a chained attachment may be lost.
func TestStraysOfIPv6KeepItsRules(t *testing.T) {
	if !nodetest.Isolated(t) {
		return
	}
	a, m, _ := remembering(t)
	a.takeRecords(dirwatch.Change{Lost: true})
	a.takeUpdate(policy.Difference(policy.Objects{}, *healthy()), nil)
	for _, has := range []bool{false, true, true, false} {
		m.pods6 = has
		if a.reconcile(t.Context(), netfilter.All); m.last.Has(conf.IPv6) != has {
			t.Errorf("the kernel has IPv6 pods: %v, and the ruleset has rules for IPv6: %v", has, m.last.Has(conf.IPv6))
		}
	}
}

// TestBegin: a file tells the plugin the name of the agent's backend. If the file has the right name, begin leaves the
// name there. If the file has another name, or no backend works, begin removes the name. Without a name, the plugin
// denies new pods in both backends.
func TestBegin(t *testing.T) {
	if !nodetest.Isolated(t) {
		return
	}
	for _, tc := range []struct{ before, name, after conf.Backend }{
		{"", conf.Iptables, ""},
		{conf.Iptables, conf.Iptables, conf.Iptables},
		{conf.Iptables, conf.Nftables, ""},
		{conf.Iptables, "", ""},
		{conf.Nftables, "", ""},
		{"", "", ""},
	} {
		a, _, _ := remembering(t)
		err := errors.Join(endpoint.WriteBackend(tc.before), a.begin(tc.name, choice.Choice{Backend: tc.name}))
		after, readErr := endpoint.ReadBackend()
		if err = errors.Join(err, readErr); err != nil || after != tc.after || a.moving.both != (tc.before != tc.name) {
			t.Errorf("from %q with %q: %q, both: %v, %v; want %q", tc.before, tc.name, after, a.moving.both, err, tc.after)
		}
	}
}
