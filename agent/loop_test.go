package agent

import (
	"log/slog"
	"net/netip"
	"slices"
	"testing"
	"testing/synctest"
	"time"

	"github.com/containernetworking/plugins/pkg/netlinksafe"

	"github.com/weir-net/weir/endpoint"
	"github.com/weir-net/weir/internal/dirwatch"
	"github.com/weir-net/weir/netfilter"
	"github.com/weir-net/weir/netfilter/iptables"
	"github.com/weir-net/weir/policy"
	"github.com/weir-net/weir/policy/ruleset"
	"github.com/weir-net/weir/test/nodetest"
)

func TestHandleAllHandlesAllThatWait(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		a := newAgent(Options{Log: slog.New(slog.DiscardHandler)}, &iptables.Driver{}, netlinksafe.Handle{})
		for range 9 {
			go a.send(t.Context(), straysEvicted{})
		}
		go a.send(t.Context(), enrolRequest{&enrolment{ctx: t.Context(), id: "c:eth0"}})
		synctest.Wait()
		rest := a.handleAll(<-a.events)
		if want := (work{true, netfilter.Rules}); a.stats.Repairs != 9 || len(a.enrolments.waiting) != 1 || rest != want {
			t.Errorf("of 10 events, %d and %d were handled, which leaves %+v to do",
				a.stats.Repairs, len(a.enrolments.waiting), rest)
		}
		go a.send(t.Context(), straysEvicted{})
		synctest.Wait()
		if rest := a.handleAll(<-a.events); rest != (work{}) {
			t.Errorf("an event that changes nothing in the kernel leaves %+v to do", rest)
		}
	})
}

// TestARecordThatEndsDuringAResync: during a resync, a pod ends, and the message about its record doesn't come. If the
// agent then applies its ruleset because of another event, it puts the pod's address into no set.
func TestARecordThatEndsDuringAResync(t *testing.T) {
	if !nodetest.Isolated(t) {
		return
	}
	a, m, r := remembering(t)
	id, ended, address := r.attach("web", "10.88.0.2"), r.attach("client", "10.88.0.3"), netip.MustParseAddr("10.88.0.3")
	a.takeRecords(dirwatch.Change{Lost: true})
	a.takeUpdate(policy.Difference(policy.Objects{}, *healthy()), nil)
	a.reconcile(t.Context(), netfilter.All)
	has := func(s ruleset.Set) bool { return s.Entries.HasAddress(address) }
	if !slices.ContainsFunc(m.last.Sets, has) {
		t.Fatal("no set has the pod's address before")
	}
	m.interrupted = true
	if _, err := endpoint.MarkEnding(ended); err != nil {
		t.Fatal(err)
	}
	go a.send(t.Context(), enrolRequest{
		&enrolment{ctx: t.Context(), id: id, deadline: time.Now().Add(time.Minute), answer: make(chan answer, 1)},
	})
	a.refresh(t.Context())
	if slices.ContainsFunc(m.last.Sets, has) {
		t.Error("the agent puts the address of a pod that has ended into a set")
	}
}
