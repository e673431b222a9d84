// Package drops_test floods a node with packets, and checks the output of weirctl drops and weirctl flows.
package drops_test

import (
	"flag"
	"fmt"
	"syscall"
	"testing"
	"time"

	"github.com/weir-net/weir/test/nodetest"
)

var (
	rate   = flag.Int("rate", 50_000, "denied packets a second of the flood")
	rounds = flag.Int("rounds", 20, "single packets of the quiet pod during the flood")
)

const (
	within = time.Second
	// mostTime limits the agent's processor time for one denied packet. At 50,000 packets per second, this is 5 % of a
	// core.
	mostTime = time.Microsecond
	// mostMemory limits the agent's memory, in MiB.
	mostMemory = 120
)

// TestFlood: while one pod sends 50,000 denied packets per second, weirctl drops shows a single packet of another pod
// within a second.
func TestFlood(t *testing.T) {
	if !nodetest.IsolatedWithWeir(t) {
		return
	}
	n := newNode(t)
	live := n.reader()
	for range 3 {
		n.reader().signal(syscall.SIGSTOP)
	}
	quiet, flood := n.sendFrom(n.quiet), n.sendFrom(n.flood)
	live.await(n, quiet)
	began, used, sent := time.Now(), processorTime(t, n.AgentPID()), n.logged()
	end := flood.flood(*rate)
	n.Eventually("the flood has begun", func() error {
		if n.logged() < sent+uint64(*rate)/100 {
			return fmt.Errorf("not yet")
		}
		return nil
	})
	slowest, late := time.Duration(0), 0
	for _, took := range live.single(n, quiet) {
		slowest = max(slowest, took)
		if took > within {
			late++
		}
	}
	end()
	took := time.Since(began)
	used = processorTime(t, n.AgentPID()) - used
	denied := n.logged() - sent
	each := used / time.Duration(denied)
	t.Logf("drops-flood: %d denied packets, %.0f a second; %d of %d single packets within a second, the slowest after "+
		"%d ms; agent: %.2f µs for each denied packet, %.1f %% of a core, %d MiB; %d lost, %d missed",
		denied, float64(denied)/took.Seconds(), *rounds-late, *rounds, slowest.Milliseconds(),
		float64(each.Nanoseconds())/1000, 100*used.Seconds()/took.Seconds(), memory(t, n.AgentPID()),
		live.lost.Load(), live.missed.Load())
	if late > 0 {
		t.Errorf("%d of %d single packets were late", late, *rounds)
	}
	if each > mostTime && used > took/20 { // in a slow flood, a packet may take more, up to 5 % of a core in all
		t.Errorf("%v of the agent's time for a denied packet, at most %v", each, mostTime)
	}
	if got := memory(t, n.AgentPID()); got > mostMemory {
		t.Errorf("the agent has %d MiB, at most %d", got, mostMemory)
	}
	n.agree(live, quiet)
	if _, err := n.Ctl("status"); err != nil {
		t.Error(err)
	}
}
