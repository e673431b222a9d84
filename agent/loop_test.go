package agent

import (
	"log/slog"
	"testing"
	"testing/synctest"

	"github.com/containernetworking/plugins/pkg/netlinksafe"

	"github.com/weir-net/weir/netfilter"
	"github.com/weir-net/weir/netfilter/iptables"
)

// TestHandleAllHandlesAllThatWait: if several events wait, handleAll handles them all, so one reconcile is enough.
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
