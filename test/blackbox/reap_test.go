package blackbox

import (
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/weir-net/weir/test/nodetest"
)

// TestADeletionOnItsWayIsLeftToIt: while DEL of an attachment runs, the agent doesn't clean up this attachment.
func TestADeletionOnItsWayIsLeftToIt(t *testing.T) {
	if !nodetest.IsolatedWithWeir(t) {
		return
	}
	n := nodetest.NewNode(t, nil)
	n.Manifest("pods.yaml", pods("x", "a", "b", "c"))
	n.StartAgent()
	a, b, c := n.AddPod("x", "a"), n.AddPod("x", "b"), n.AddPod("x", "c")

	lock, err := os.OpenFile("/run/weir/lock", os.O_CREATE|os.O_RDWR, 0o600)
	if err != nil {
		t.Fatal(err)
	}
	if err := unix.Flock(int(lock.Fd()), unix.LOCK_EX); err != nil {
		t.Fatal(err)
	}
	deleted := make(chan error, 1)
	go func() {
		_, err := n.CNI("del", a.Netns, nodetest.Args(a.Namespace, a.Name, ""))
		deleted <- err
	}()
	links := func() int {
		return strings.Count(nodetest.Run(t, "ip", "-o", "link", "show"), " weirp")
	}
	n.Eventually("DEL has taken the pod's link away, and waits for the node's lock", func() error {
		if got := links(); got != 2 {
			return fmt.Errorf("%d pods have links", got)
		}
		return nil
	})
	plugin := processOf(t, filepath.Join(n.Bin, "weir"))
	if err := unix.Kill(plugin, unix.SIGSTOP); err != nil {
		t.Fatal(err)
	}
	n.Eventually("DEL is stopped, and doesn't get the lock", func() error {
		states, err := nodetest.Try("sh", "-c", fmt.Sprintf("sed 's/.*) \\(.\\) .*/\\1/' /proc/%d/task/*/stat", plugin))
		if err != nil {
			return err // a thread of the plugin has just ended
		}
		if strings.Trim(states, "T\n") != "" {
			return fmt.Errorf("its threads are in the states %q", states)
		}
		return nil
	})
	if err := lock.Close(); err != nil {
		t.Fatal(err)
	}
	for i, p := range []*nodetest.Pod{b, c} { // once p is cleaned up, the agent has also looked at pod a
		nodetest.DelNS(t, p.Netns)
		n.Eventually("the agent takes away pod "+p.Name, func() error {
			if got := addresses(t); strings.Contains(got, p.IP) || links() != 1-i {
				return fmt.Errorf("held are %s", got)
			}
			return nil
		})
	}
	// The agent releases a pod's address before it removes the pod's record, so wait for the records.
	n.Eventually("only the record of the attachment whose DEL goes on is left", func() error {
		if ending, _ := filepath.Glob("/run/weir/endpoints/*.ending"); len(ending) != 1 {
			return fmt.Errorf("the records of attachments that end are %v", ending)
		}
		return nil
	})
	if err := unix.Kill(plugin, unix.SIGCONT); err != nil {
		t.Fatal(err)
	}
	if err := <-deleted; err != nil {
		t.Error(err)
	}
	if got := addresses(t); got != "" {
		t.Errorf("after all DELs, addresses are held: %s", got)
	}
	if strings.Contains(n.AgentLog(), "pod=x/a") {
		t.Errorf("the agent says that it has taken away the pod whose DEL succeeded")
	}
}

func addresses(t *testing.T) string {
	t.Helper()
	return strings.TrimSpace(nodetest.Run(t, "sh", "-c", "ls /run/weir/addresses 2>/dev/null || :"))
}

func processOf(t *testing.T, program string) int {
	t.Helper()
	program, err := filepath.EvalSymlinks(program)
	if err != nil {
		t.Fatal(err)
	}
	links, err := filepath.Glob("/proc/[0-9]*/exe")
	if err != nil {
		t.Fatal(err)
	}
	for _, l := range links {
		if to, err := os.Readlink(l); err == nil && to == program {
			pid, err := strconv.Atoi(filepath.Base(filepath.Dir(l)))
			if err != nil {
				t.Fatal(err)
			}
			return pid
		}
	}
	t.Fatalf("no process runs %s", program)
	return 0
}

func pods(namespace string, names ...string) string {
	text := fmt.Sprintf("apiVersion: v1\nkind: Namespace\nmetadata: {name: %s}\n", namespace)
	for _, name := range names {
		text += fmt.Sprintf("---\napiVersion: v1\nkind: Pod\nmetadata: {namespace: %s, name: %s, labels: {app: %s}}\n",
			namespace, name, name)
	}
	return text
}
