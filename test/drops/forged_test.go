package drops_test

import (
	"fmt"
	"path/filepath"
	"slices"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/weir-net/weir/test/nodetest"
)

// TestFloodOfForgedSenders: while one pod floods packets with a forged sender, weirctl drops shows another pod's denied
// packet within a second.
func TestFloodOfForgedSenders(t *testing.T) {
	if !nodetest.IsolatedWithWeir(t) {
		return
	}
	n := newNode(t)
	nodetest.RunEach(t, "ip -n "+filepath.Base(n.flood.Netns)+" addr add 10.88.0.77/32 dev eth0")
	live := n.reader()
	quiet, flood := n.sendFrom(n.quiet), n.sendFrom(n.flood)
	if err := unix.Bind(flood.fd, &unix.SockaddrInet4{Addr: [4]byte{10, 88, 0, 77}}); err != nil {
		t.Fatal(err)
	}
	live.await(n, quiet)
	began, used := time.Now(), processorTime(t, n.AgentPID())
	end := flood.flood(*rate)
	slowest := slices.Max(live.single(n, quiet))
	end()
	took := time.Since(began)
	used = processorTime(t, n.AgentPID()) - used
	each := used / time.Duration(max(flood.sent.Load(), 1))
	t.Logf("drops-forged: %d packets, %.0f a second; the slowest of %d single packets shows after %d ms; agent: %.2f µs "+
		"for each packet, %.1f %% of a core, %d MiB", flood.sent.Load(), float64(flood.sent.Load())/took.Seconds(), *rounds,
		slowest.Milliseconds(), float64(each.Nanoseconds())/1000, 100*used.Seconds()/took.Seconds(),
		memory(t, n.AgentPID()))
	if slowest > within || each > mostTime && used > took/20 {
		t.Errorf("the slowest packet after %v, %v for each packet", slowest, each)
	}
	n.Eventually("the lines stand for the packets that were sent", func() error {
		if err := quiet.send(2); err != nil { // the agent notices lost packets when a later one arrives
			return err
		}
		if shown, sent := live.count.Load(), quiet.sent.Load()+flood.sent.Load(); shown+1 < sent || shown > sent {
			return fmt.Errorf("%d packets in lines, %d were sent", shown, sent)
		}
		return nil
	})
}
