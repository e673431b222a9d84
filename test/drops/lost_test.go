package drops_test

import (
	"fmt"
	"strings"
	"syscall"
	"testing"

	"github.com/weir-net/weir/conf"
	"github.com/weir-net/weir/netfilter/nflog"
	"github.com/weir-net/weir/test/nodetest"
)

// TestLost: if the agent is stopped (SIGSTOP) during a flood and continues later, the counts that it reports add up to
// the number of all logged packets.
func TestLost(t *testing.T) {
	if !nodetest.IsolatedWithWeir(t) {
		return
	}
	n := newNode(t)
	n.Serve(n.db.Netns, "tcp", ":5432")
	n.Reach(n.quiet, n.db.IP+":5432", false)
	live := n.reader()
	agent := n.AgentPID()
	if err := syscall.Kill(agent, syscall.SIGSTOP); err != nil {
		t.Fatal(err)
	}
	flood := n.sendFrom(n.flood)
	const most = 2_000_000
	end := flood.flood(1e6)
	n.Eventually("the kernel drops copies of packets", func() error {
		if drops := socketDrops(n); drops == 0 && flood.sent.Load() < most {
			return fmt.Errorf("after %d packets it keeps all copies", flood.sent.Load())
		}
		return nil
	})
	if _, err := nodetest.Get(t, n.quiet.Netns, n.db.IP+":5432"); err == nil {
		t.Error("the quiet pod reaches db")
	}
	end()
	if err := syscall.Kill(agent, syscall.SIGCONT); err != nil {
		t.Fatal(err)
	}
	n.Eventually("the loss shows with the next packet", func() error {
		if err := flood.send(1); err != nil {
			return err
		}
		if live.lost.Load() == 0 {
			return fmt.Errorf("no line about it")
		}
		return nil
	})
	n.agree(live, flood)
	t.Logf("%d packets, %d lost, %d missed", live.count.Load(), live.lost.Load(), live.missed.Load())
}

// socketDrops returns how many messages the kernel has dropped because sockets of netfilter were full.
//
// Equivalent to: awk '$2 == 12 { sum += $9 } END { print sum }' /proc/net/netlink
func socketDrops(n *node) (drops int) {
	n.Helper()
	for line := range strings.Lines(nodetest.Run(n, "cat", "/proc/net/netlink")) {
		if f := strings.Fields(line); len(f) > 8 && f[1] == "12" { // NETLINK_NETFILTER
			k := 0
			if _, err := fmt.Sscan(f[8], &k); err == nil {
				drops += k
			}
		}
	}
	return drops
}

// TestTaken: if another program reads the log group, the agent says why it can't read dropped packets.
func TestTaken(t *testing.T) {
	if !nodetest.IsolatedWithWeir(t) {
		return
	}
	other, err := nflog.Open(conf.LogGroup)
	if err != nil {
		t.Fatal(err)
	}
	n := newNode(t, "--drops=true")
	n.Serve(n.db.Netns, "tcp", ":5432")
	n.Reach(n.quiet, n.db.IP+":5432", false)
	n.Eventually("weirctl says why it shows nothing", func() error {
		text, err := n.Ctl("drops")
		if err == nil || !strings.Contains(err.Error(), "another program reads the log group") {
			return fmt.Errorf("%w\n%s", err, text)
		}
		return nil
	})
	const unread = "NOT READ:"
	if text, _ := n.Ctl("status"); !strings.Contains(text, unread) || !strings.Contains(text, "another program reads") {
		t.Errorf("the status doesn't say that no drops are read:\n%s", text)
	}
	if err := other.Close(); err != nil {
		t.Fatal(err)
	}
	n.Eventually("the agent reads the group", func() error {
		_, err := n.Ctl("drops")
		return err
	})
	if text, _ := n.Ctl("status"); strings.Contains(text, unread) {
		t.Errorf("the status says that no drops are read:\n%s", text)
	}
	n.Eventually("a drop shows", func() error {
		n.Reach(n.quiet, n.db.IP+":5432", false)
		text, err := n.Ctl("drops")
		if !strings.Contains(text, "shop/quiet") {
			return fmt.Errorf("%w\n%s", err, text)
		}
		return nil
	})
}
