package endpoint

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/weir-net/weir/conf"
	"github.com/weir-net/weir/test/nodetest"
)

// TestBackend: ReadBackend returns the name that WriteBackend wrote, even while another process has the node's lock.
// Any other content of the file gives the unknown backend.
func TestBackend(t *testing.T) {
	if !nodetest.Isolated(t) {
		return
	}
	read := func(want conf.Backend) {
		t.Helper()
		if got, err := ReadBackend(); got != want || err != nil {
			t.Errorf("read %q, %v; want %q", got, err, want)
		}
	}
	read("")
	for _, b := range []conf.Backend{conf.Iptables, conf.Nftables, conf.Iptables, "", conf.Nftables} {
		if err := WriteBackend(b); err != nil {
			t.Fatal(err)
		}
		unlock, err := Lock()
		if err != nil {
			t.Fatal(err)
		}
		read(b)
		unlock()
		read(b)
	}
	for _, wrong := range []string{"nftablesX", "iptabl", "\x00", "a long text that is no backend's name"} {
		if err := os.WriteFile(filepath.Join(Dir, "lock"), []byte(wrong), 0o600); err != nil {
			t.Fatal(err)
		}
		read("")
	}
}

// TestWriteBackendWaitsForASecond: if a process never unlocks the node's lock, WriteBackend fails. It succeeds when the
// lock is free again.
func TestWriteBackendWaitsForASecond(t *testing.T) {
	if !nodetest.Isolated(t) {
		return
	}
	unlock := mustLock(t)
	done := make(chan error, 1)
	go func() { done <- WriteBackend(conf.Nftables) }()
	select {
	case err := <-done:
		if err == nil || !strings.Contains(err.Error(), Dir+"/lock") {
			t.Errorf("%v; want an error that names the lock", err)
		}
	case <-time.After(20 * writeWithin):
		t.Fatal("it waits for ever")
	}
	unlock()
	if err := WriteBackend(conf.Nftables); err != nil {
		t.Error(err)
	}
	if b, err := ReadBackend(); b != conf.Nftables || err != nil {
		t.Errorf("%q, %v", b, err)
	}
}
