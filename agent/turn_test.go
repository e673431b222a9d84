package agent

import (
	"context"
	"errors"
	"log/slog"
	"net/http"
	"net/netip"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/weir-net/weir/agent/choice"
	"github.com/weir-net/weir/conf"
	"github.com/weir-net/weir/internal/dirwatch"
	"github.com/weir-net/weir/netfilter"
	"github.com/weir-net/weir/policy"
	"github.com/weir-net/weir/policy/ruleset"
	"github.com/weir-net/weir/test/nodetest"
)

// failing is a Backend that can't write to the kernel. uses is the number of calls and trials that run now. together
// counts the calls and trials that began while another ran. rounds counts the calls of KeepClosed.
type failing struct {
	memory
	uses, together, rounds *atomic.Int64
}

func (f *failing) use() {
	if f.uses.Add(1) > 1 {
		f.together.Add(1)
	}
	time.Sleep(time.Millisecond) // the time that a real call takes
	f.uses.Add(-1)
}

func (f *failing) Reread(...netip.Addr) bool {
	f.use()
	return true
}

func (f *failing) KeepClosed(context.Context, ruleset.Ruleset) ([]conf.Family, error) {
	f.use()
	f.rounds.Add(1)
	return nil, errors.New("no room")
}

// TestTrialsAndTheLoopTakeTurns: during a lasting fault of the kernel, the agent tests again and again whether the
// backend in use works. No such test runs while the loop reads or changes the kernel.
func TestTrialsAndTheLoopTakeTurns(t *testing.T) {
	if !nodetest.Isolated(t) {
		return
	}
	a, _, r := remembering(t)
	id := r.attach("web", "10.88.0.2")
	a.takeRecords(dirwatch.Change{Lost: true})
	var uses, together, rounds, trials atomic.Int64
	b := &failing{uses: &uses, together: &together, rounds: &rounds}
	a.Resync, a.SettleChoice = time.Millisecond, time.Millisecond
	for _, name := range []conf.Backend{conf.Iptables, conf.Nftables} {
		a.Backends = append(a.Backends, BackendKind{
			Name:      name,
			KubeProxy: func() (bool, error) { return false, nil },
			Lacks: func(context.Context) ([]string, error) {
				b.use()
				trials.Add(1)
				return nil, nil
			},
		})
	}
	a.use(b, conf.Iptables)
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	done := make(chan error, 2)
	go func() { done <- a.loop(ctx) }()
	go func() {
		done <- a.watchChoice(ctx, newChooser(a.Options), choice.Choice{Backend: conf.Iptables})
	}()
	deadline := time.After(time.Minute)
	for trials.Load() < 20 || rounds.Load() < 20 {
		// While a plugin waits, the loop reads the sets that have its pod's addresses.
		a.send(ctx, enrolRequest{&enrolment{ctx: ctx, id: id, answer: make(chan answer, 1)}})
		select {
		case <-deadline:
			t.Fatalf("%d trials and %d rounds of the loop", trials.Load(), rounds.Load())
		case <-time.After(time.Millisecond):
		}
	}
	cancel()
	for range 2 {
		if err := <-done; err != nil {
			t.Error(err)
		}
	}
	if n := together.Load(); n > 0 {
		t.Errorf("%d times a trial ran while the loop used the kernel, or the reverse", n)
	}
}

// TestAChoiceThatFails: if the agent can't read whether kube-proxy has rules, it keeps its backend. It logs the error
// once, however often it tries.
func TestAChoiceThatFails(t *testing.T) {
	if !nodetest.Isolated(t) {
		return
	}
	a, b, _ := remembering(t)
	var text strings.Builder
	a.Log = slog.New(slog.NewTextHandler(&text, nil))
	a.Resync, a.SettleChoice = time.Millisecond, time.Millisecond
	asked := make(chan struct{})
	for _, name := range []conf.Backend{conf.Iptables, conf.Nftables} {
		a.Backends = append(a.Backends, BackendKind{Name: name, KubeProxy: func() (bool, error) {
			asked <- struct{}{}
			return false, errors.New("no memory")
		}})
	}
	a.use(b, conf.Iptables)
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	done := make(chan error, 1)
	go func() { done <- a.watchChoice(ctx, newChooser(a.Options), choice.Choice{Backend: conf.Iptables}) }()
	for range 5 {
		receive(t, asked)
	}
	cancel()
	for ended := false; !ended; {
		select {
		case <-asked:
		case err := <-done:
			if ended = true; err != nil {
				t.Error(err)
			}
		}
	}
	if n := strings.Count(text.String(), "no memory"); n != 1 {
		t.Errorf("%d lines with the error:\n%s", n, text.String())
	}
}

// TestNobodyWaitsForATrialOfAnotherBackend: kube-proxy uses iptables, which the node lacks. While a trial (a test
// whether the node supports iptables) hangs, the loop goes on with nftables, and a plugin gets its answer.
func TestNobodyWaitsForATrialOfAnotherBackend(t *testing.T) {
	if !nodetest.Isolated(t) {
		return
	}
	a, b, r := remembering(t)
	id := r.attach("web", "10.88.0.2")
	a.Resync, a.SettleChoice = time.Hour, time.Millisecond
	trying, end := make(chan struct{}), make(chan struct{})
	for _, name := range []conf.Backend{conf.Iptables, conf.Nftables} {
		a.Backends = append(a.Backends, BackendKind{
			Name:      name,
			KubeProxy: func() (bool, error) { return name == conf.Iptables, nil },
			Remove:    func(context.Context) error { return nil },
			Lacks: func(ctx context.Context) ([]string, error) {
				if name == conf.Iptables {
					select {
					case trying <- struct{}{}:
						<-end
					case <-ctx.Done(): // ends a second trial, which may begin after the first trial
					}
				}
				return []string{"ipset"}, nil
			},
		})
	}
	a.use(b, conf.Nftables)
	a.takeRecords(dirwatch.Change{Lost: true})
	a.takeUpdate(policy.Difference(policy.Objects{}, *healthy()), nil)
	for range 3 { // until the other backend's remains are removed
		a.reconcile(t.Context(), netfilter.All)
	}
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	done := make(chan error, 2)
	go func() { done <- a.loop(ctx) }()
	go func() {
		done <- a.watchChoice(ctx, newChooser(a.Options), choice.Choice{Backend: conf.Nftables})
	}()
	receive(t, trying)
	waits := &enrolment{ctx: ctx, id: id, deadline: time.Now().Add(time.Minute), answer: make(chan answer, 1)}
	a.send(ctx, enrolRequest{waits})
	if r := receive(t, waits.answer); r.status != http.StatusOK {
		t.Errorf("the plugin was answered %+v", r)
	}
	cancel()
	close(end)
	for range 2 {
		if err := receive(t, done); err != nil {
			t.Error(err)
		}
	}
}
