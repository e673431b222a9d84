package drops_test

import (
	"fmt"
	"path/filepath"
	"slices"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/weir-net/weir/test/nodetest"
)

// TestFloodOfForgedSenders: while one pod sends a flood of packets with a forged sender, "weirctl drops" shows each
// denied packet of another pod within a second.
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
	c := n.cost()
	end := flood.flood(*rate)
	singles := live.single(n, quiet)
	end()
	c.end()
	sent := flood.sent.Load()
	t.Logf("drops-forged: %d packets, %.0f a second; the slowest of %d single packets shows after %d ms; agent: %s", sent,
		float64(sent)/c.took.Seconds(), *rounds, slices.Max(singles).Milliseconds(), c.text(sent))
	if late(singles) > 0 || c.tooMuch(sent) {
		t.Errorf("%d of %d single packets were late; agent: %s", late(singles), *rounds, c.text(sent))
	}
	n.stands(live, quiet, func(shown uint64) error {
		if sent := quiet.sent.Load() + flood.sent.Load(); shown+1 < sent || shown > sent {
			return fmt.Errorf("%d were sent", sent)
		}
		return nil
	})
}
