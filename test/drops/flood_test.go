// Package drops_test floods a node with packets, and checks the output of "weirctl drops" and "weirctl flows".
package drops_test

import (
	"flag"
	"fmt"
	"slices"
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

// cost is the processor time of the agent (agent), and of this process, which sends the flood (own).
type cost struct {
	node             *node
	began            time.Time
	took, agent, own time.Duration
}

// cost begins to measure the processor time of the agent and of this process. The method end ends the measurement. The
// same agent must run until then.
func (n *node) cost() *cost {
	n.Helper()
	return &cost{node: n, began: time.Now(), agent: processorTime(n, n.AgentPID()), own: nodetest.CPU(n)}
}

func (c *cost) end() {
	c.node.Helper()
	c.took, c.own = time.Since(c.began), nodetest.CPU(c.node)-c.own
	c.agent = processorTime(c.node, c.node.AgentPID()) - c.agent
}

// tooMuch reports whether the agent's processor time exceeds both limits: mostTime for each packet of the flood, and
// 5 % of a core.
func (c *cost) tooMuch(packets uint64) bool {
	return c.agent > mostTime*time.Duration(packets) && c.agent > c.took/20
}

func (c *cost) text(packets uint64) string {
	return fmt.Sprintf("%.2f µs for each packet, %.1f %% of a core, %.1f %% of the flood's time, %d MiB",
		1e6*c.agent.Seconds()/float64(packets), 100*c.agent.Seconds()/c.took.Seconds(), 100*c.agent.Seconds()/c.own.Seconds(),
		memory(c.node, c.node.AgentPID()))
}

func late(singles []time.Duration) (late int) {
	for _, took := range singles {
		if took > within {
			late++
		}
	}
	return late
}

// TestFlood: while one pod sends 50,000 denied packets per second, "weirctl drops" shows each single packet of
// another pod within a second.
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
	sent, c := n.logged(), n.cost()
	end := flood.flood(*rate)
	n.Eventually("the flood has begun", func() error {
		if n.logged() < sent+uint64(*rate)/100 {
			return fmt.Errorf("not yet")
		}
		return nil
	})
	singles := live.single(n, quiet)
	end()
	c.end()
	denied := n.logged() - sent
	t.Logf("drops-flood: %d denied packets, %.0f a second; %d of %d single packets within a second, the slowest after "+
		"%d ms; agent: %s; %d lost, %d missed",
		denied, float64(denied)/c.took.Seconds(), *rounds-late(singles), *rounds, slices.Max(singles).Milliseconds(),
		c.text(denied), live.lost.Load(), live.missed.Load())
	if late(singles) > 0 {
		t.Errorf("%d of %d single packets were late", late(singles), *rounds)
	}
	if c.tooMuch(denied) {
		t.Errorf("the agent takes too much time for a denied packet: %s", c.text(denied))
	}
	if got := memory(t, n.AgentPID()); got > mostMemory {
		t.Errorf("the agent has %d MiB, at most %d", got, mostMemory)
	}
	n.agree(live, quiet)
	if _, err := n.Ctl("status"); err != nil {
		t.Error(err)
	}
}
