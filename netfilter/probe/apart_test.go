package probe

import (
	"errors"
	"fmt"
	"os"
	"sync"
	"testing"
	"time"

	"github.com/vishvananda/netns"
	"golang.org/x/sys/unix"

	"github.com/weir-net/weir/test/nodetest"
)

// TestApart: Apart calls the function once, in another network namespace. Afterwards every goroutine is in the node's
// own namespace.
func TestApart(t *testing.T) {
	if !nodetest.Isolated(t) {
		return
	}
	own, runs := namespace(t), 0
	if err := Apart(func() {
		if runs++; namespace(t) == own {
			t.Error("it ran in the node's namespace")
		}
	}); err != nil || runs != 1 {
		t.Errorf("%d runs: %v", runs, err)
	}
	everywhere(t, own)
}

// TestThreadThatCannotGoBack: a thread that can't leave the new namespace ends, and no goroutine uses it again.
func TestThreadThatCannotGoBack(t *testing.T) {
	if !nodetest.Isolated(t) {
		return
	}
	own, refused, thread := namespace(t), errors.New("no right"), 0
	err := inScratch(func() { thread = unix.Gettid() }, func(netns.NsHandle) error { return refused })
	if !errors.As(err, new(*StuckError)) || !errors.Is(err, refused) {
		t.Errorf("error %v", err)
	}
	everywhere(t, own)
	if thread == os.Getpid() {
		return // Go can't end a process's first thread, and lets it wait for ever
	}
	for began := time.Now(); ; time.Sleep(time.Millisecond) {
		if _, err := os.Stat(fmt.Sprintf("/proc/self/task/%d", thread)); errors.Is(err, os.ErrNotExist) {
			break
		}
		if time.Since(began) > time.Minute {
			t.Fatalf("thread %d goes on", thread)
		}
	}
}

// TestNoFileForTheNamespace: if the process has no free file descriptor for the new namespace, no goroutine stays in
// that namespace.
func TestNoFileForTheNamespace(t *testing.T) {
	if !nodetest.Isolated(t) {
		return
	}
	own := namespace(t)
	free, err := unix.Open("/dev/null", unix.O_RDONLY|unix.O_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	_ = unix.Close(free)
	var before unix.Rlimit
	if err := unix.Getrlimit(unix.RLIMIT_NOFILE, &before); err != nil {
		t.Fatal(err)
	}
	few := before
	few.Cur = uint64(free) + 1 // room for one more file: the present namespace
	if err := unix.Setrlimit(unix.RLIMIT_NOFILE, &few); err != nil {
		t.Fatal(err)
	}
	err = InScratch(func() {})
	if restored := unix.Setrlimit(unix.RLIMIT_NOFILE, &before); restored != nil {
		t.Fatal(restored)
	}
	everywhere(t, own)
	if err != nil {
		t.Error(err)
	}
}

// everywhere checks that the caller, and many goroutines that run at the same time on all of Go's threads, are in the
// network namespace with the name own.
func everywhere(t *testing.T, own string) {
	t.Helper()
	if here := namespace(t); here != own {
		t.Errorf("the caller is in %s now, and was in %s", here, own)
	}
	const goroutines = 32
	var started, ended sync.WaitGroup
	started.Add(goroutines)
	for range goroutines {
		ended.Go(func() {
			started.Done()
			started.Wait()
			if here := namespace(t); here != own {
				t.Errorf("a goroutine is in %s, and the node's is %s", here, own)
			}
		})
	}
	ended.Wait()
}

func namespace(t *testing.T) string {
	t.Helper()
	link, err := os.Readlink("/proc/thread-self/ns/net")
	if err != nil {
		t.Error(err)
	}
	return link
}
