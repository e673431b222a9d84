package main

import (
	"errors"
	"fmt"
	"os"
	"slices"
	"testing"
	"time"

	"github.com/containernetworking/cni/pkg/types"
	"golang.org/x/sys/unix"

	"github.com/weir-net/weir/agentapi"
	"github.com/weir-net/weir/attachment"
	"github.com/weir-net/weir/endpoint"
	"github.com/weir-net/weir/test/nodetest"
)

// TestStatus: if enforcement is strict, STATUS fails without a recent heartbeat of an agent. Otherwise STATUS succeeds,
// even if no address is free.
func TestStatus(t *testing.T) {
	if !nodetest.IsolatedWithWeir(t) {
		return
	}
	n := nodetest.NewNode(t, nil)
	n.Manifest("cluster.yaml", cluster)
	small := `"ranges": [{"subnet": "10.88.0.0/24", "rangeEnd": "10.88.0.2"}, {"subnet": "fd00:10:88::/64"}]`
	conf := func(enforcement string) string {
		return `{"cniVersion": "1.1.0", "name": "weir", "type": "weir", "enforcement": "` + enforcement + `", ` + small + "}"
	}
	want := func(when, enforcement string, code uint) {
		t.Helper()
		if got := invoke(t, n, map[string]string{"CNI_COMMAND": "STATUS", "CNI_PATH": n.Bin},
			conf(enforcement)); got.Code != code {
			t.Errorf("%s: exit code %d: %s; want code %d", when, got.exit, got.stdout, code)
		}
	}
	want("no agent yet", "strict", types.ErrPluginNotAvailable)
	want("no agent yet", "closed", 0) // pods start without an agent, and stay closed until an agent runs
	want("no agent yet", "off", 0)
	n.StartAgent()
	want("with an agent", "strict", 0)
	n.KillAgent()
	want("just without an agent", "strict", 0)
	beatAgo(t, agentapi.BeatLasts+time.Second)
	want("long without an agent", "strict", types.ErrPluginNotAvailable)
	n.StartAgent()
	want("with an agent again", "strict", 0)
	beatAgo(t, agentapi.BeatLasts)
	n.Eventually("the agent renews its heartbeat", func() error {
		if since, ever, err := agentapi.SinceBeat(); err != nil || !ever || since >= agentapi.BeatLasts {
			return fmt.Errorf("it is %s old (ever: %t): %w", since, ever, err)
		}
		return nil
	})

	one, two := nodetest.NewNS(t, "one"), nodetest.NewNS(t, "two")
	must := func(code uint, got answer) {
		t.Helper()
		if got.Code != code {
			t.Errorf("exit code %d: %s; want code %d", got.exit, got.stdout, code)
		}
	}
	must(0, invoke(t, n, container(n, "ADD", "c1", one), conf("off")))
	must(types.ErrTryAgainLater, invoke(t, n, container(n, "ADD", "c2", two), conf("off")))
	want("with no IPv4 address left", "off", 0) // if STATUS failed, kubelet would have the running pods evicted
	must(0, invoke(t, n, container(n, "DEL", "c1", one), conf("off")))
	must(0, invoke(t, n, container(n, "ADD", "c2", two), conf("off")))
}

func beatAgo(t *testing.T, ago time.Duration) {
	t.Helper()
	var now unix.Timespec
	err := unix.ClockGettime(unix.CLOCK_BOOTTIME, &now)
	if err == nil {
		err = os.WriteFile("/run/weir/heartbeat", fmt.Appendf(nil, "%020d", now.Nano()-ago.Nanoseconds()), 0o600)
	}
	if err != nil {
		t.Fatal(err)
	}
}

// TestHeartbeat: a heartbeat counts for a minute, whatever happens to the node's clock. Earlier versions of weir wrote
// an empty file; such a heartbeat counts from the file's modification time.
func TestHeartbeat(t *testing.T) {
	if !nodetest.Isolated(t) {
		return
	}
	const file = "/run/weir/heartbeat"
	check := func(counts bool, when string) {
		t.Helper()
		if err := attachment.CheckAgent(); (err == nil) != counts {
			t.Errorf("%s: %v", when, err)
		}
	}
	must := func(errs ...error) {
		t.Helper()
		if err := errors.Join(errs...); err != nil {
			t.Fatal(err)
		}
	}
	check(false, "none")
	must(os.MkdirAll(endpoint.Dir, 0o700), os.WriteFile(file, nil, 0o600))
	check(true, "of an earlier version")
	long := time.Now().Add(-agentapi.BeatLasts - time.Second)
	must(os.Chtimes(file, long, long))
	check(false, "an old one of an earlier version")
	must(agentapi.Beat())
	check(true, "a new one")
	for _, clock := range []time.Duration{-time.Hour, time.Hour} { // as if the clock had been set after the heartbeat
		at := time.Now().Add(clock)
		must(os.Chtimes(file, at, at))
		check(true, "a new one, and then the clock was set")
		beatAgo(t, agentapi.BeatLasts+time.Second)
		must(os.Chtimes(file, at, at))
		check(false, "an old one, and then the clock was set")
		must(agentapi.Beat())
	}
	beatAgo(t, -time.Minute)
	check(false, "one of an earlier boot")
}

// TestStatusIsCheap: at least half of the calls of STATUS take less than a millisecond. containerd calls STATUS every
// five seconds.
func TestStatusIsCheap(t *testing.T) {
	if !nodetest.Isolated(t) {
		return
	}
	if err := errors.Join(os.MkdirAll(endpoint.Dir, 0o700), agentapi.Beat()); err != nil {
		t.Fatal(err)
	}
	stdin := []byte(`{"cniVersion": "1.1.0", "name": "weir", "type": "weir", "ranges": [{"subnet": "10.88.0.0/16"}, ` +
		`{"subnet": "fd00:10:88::/64"}]}`)
	var took []time.Duration
	for range 101 {
		began := time.Now()
		if err := status(&call{StdinData: stdin}); err != nil {
			t.Fatal(err)
		}
		took = append(took, time.Since(began))
	}
	slices.Sort(took)
	if median := took[50]; median > time.Millisecond {
		t.Errorf("it takes %s, want less than a millisecond", median)
	}
	t.Logf("median %s", took[50])
}

// TestTheAgentReaps: if a pod's network namespace is gone, the agent removes the attachment, even if no agent ran when
// the namespace went. The agent must do this, because containerd never calls GC.
func TestTheAgentReaps(t *testing.T) {
	if !nodetest.IsolatedWithWeir(t) {
		return
	}
	n := newNode(t, dualStack)
	stays := n.AddPod("ns-1", "http-echo")
	before := leftovers(t)
	gone := n.AddPod("ns-1", "busybox")
	nodetest.DelNS(t, gone.Netns) // as if the pod's last process had ended, or a runtime had lost the namespace
	nothing := func() error {
		if diff := leftBehind(t, before); diff != "" {
			return errors.New("before and after: " + diff)
		}
		return nil
	}
	n.Eventually("nothing of the pod is left", nothing)
	if _, err := n.CNI("del", gone.Netns, nodetest.Args("ns-1", "busybox", "")); err != nil {
		t.Errorf("a DEL that comes after all: %v", err)
	}
	other := n.AddPod("ns-2", "other", "CNI_IFNAME=net1")
	n.KillAgent()
	nodetest.DelNS(t, other.Netns)
	n.StartAgent()
	n.Eventually("nothing is left of a pod that went while there was no agent", nothing)
	n.Serve(stays.Netns, "tcp", ":80")
	n.ReachFrom(nodetest.Self, stays.IP+":80", true)
}
