package ipam

import (
	"errors"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/weir-net/weir/endpoint"
	"github.com/weir-net/weir/test/nodetest"
)

// TestAddressesThatHostLocalGave: weir doesn't assign an address that host-local gave to a pod, if the pod is running
// or is just being started.
func TestAddressesThatHostLocalGave(t *testing.T) {
	if !nodetest.Isolated(t) {
		return
	}
	nodetest.NewNS(t, "old")
	for _, a := range []string{"10.88.0.2", "10.88.0.5"} {
		nodetest.Run(t, "ip", "-n", "old", "addr", "add", a+"/24", "dev", "lo")
	}
	file := func(addr string, age time.Duration) {
		t.Helper()
		path := filepath.Join(hostLocalDir, "cbr0", addr)
		at := time.Now().Add(-age)
		err := errors.Join(os.MkdirAll(filepath.Dir(path), 0o755), os.WriteFile(path, []byte("c-"+addr+"\r\neth0"), 0o600),
			os.Chtimes(path, at, at))
		if err != nil {
			t.Fatal(err)
		}
	}
	file("10.88.0.2", 2*settleTime)        // a pod that runs
	file("10.88.0.3", 2*settleTime)        // a pod that has ended
	file("10.88.0.4", 0)                   // a pod that has not set up its address yet
	file("10.88.0.5", 10*365*24*time.Hour) // a file from before the node's start, so no pod has the address
	file("last_reserved_ip.0", 0)
	r := newRange(1, 9)
	for _, want := range []string{"10.88.0.3", "10.88.0.5", "10.88.0.6"} {
		if got := assignOne(t, "new-"+want, r); got != want {
			t.Errorf("got %s, want %s", got, want)
		}
	}
	request := func() error {
		return Assign("x", Request{
			Ranges:    append(dual()[:1:1], r),
			Addresses: []netip.Addr{netip.MustParseAddr("10.88.0.2")},
		}, func([]endpoint.Address) error { return nil })
	}
	var assigned *AssignedError
	if err := request(); !errors.As(err, &assigned) ||
		!strings.Contains(err.Error(), "host-local for container c-10.88.0.2") {
		t.Errorf("asked for an address of host-local's: %v", err)
	}
	// The pod ends. The test deletes only its address, because one of the test's threads may keep the
	// namespace.
	nodetest.Run(t, "ip", "-n", "old", "addr", "del", "10.88.0.2/24", "dev", "lo")
	if err := request(); err != nil {
		t.Error(err)
	}
	wantHolders(t, map[string]string{
		"10.88.0.3": "new-10.88.0.3", "10.88.0.5": "new-10.88.0.5", "10.88.0.6": "new-10.88.0.6", "10.88.0.2": "x",
		"fd00:10:88::2": "x",
	})
	small := newRange(4, 4)
	if !exhausted(append(dual()[:1:1], small)) {
		t.Error("host-local holds the only address, but the ranges aren't full")
	}
}

// TestUnreadableHostLocal: if host-local's files can't be listed, no address is known to be free. The error names
// host-local's directory, and isn't an ExhaustedError.
func TestUnreadableHostLocal(t *testing.T) {
	if !nodetest.Isolated(t) {
		return
	}
	err := errors.Join(os.MkdirAll(filepath.Dir(hostLocalDir), 0o755), os.WriteFile(hostLocalDir, nil, 0o600))
	if err != nil {
		t.Fatal(err)
	}
	err = Assign("x", Request{Ranges: dual()}, func([]endpoint.Address) error { return nil })
	if err == nil || errors.As(err, new(*ExhaustedError)) || !strings.Contains(err.Error(), hostLocalDir) {
		t.Errorf("the error is %v", err)
	}
	if shortage, err := Shortage(); shortage != nil || err != nil {
		t.Errorf("there is a shortage: %v, %v", shortage, err)
	}
	if err := os.Remove(hostLocalDir); err != nil {
		t.Fatal(err)
	}
	if err := Assign("x", Request{Ranges: dual()}, func([]endpoint.Address) error { return nil }); err != nil {
		t.Errorf("without the files of host-local: %v", err)
	}
}

// TestTheClockWasSet: files of host-local from before the node's start don't count, and all later files count, even if
// the clock was set since the start.
func TestTheClockWasSet(t *testing.T) {
	now := time.Date(2026, 11, 29, 12, 0, 0, 0, time.UTC)
	const up = 10 * time.Minute
	for _, tc := range []struct {
		name        string
		set         time.Duration // how far the clock was set forward since the start
		file        time.Duration // how long after the start the file was written
		beforeStart bool
	}{
		{"the clock was right", 0, time.Minute, false},
		{"the clock was right, an old file", 0, -time.Minute, true},
		{"the clock was set forward", 24 * time.Hour, time.Minute, false},
		{"the clock was set forward, an old file", 24 * time.Hour, -time.Minute, true},
		{"the clock was set back", -time.Hour, time.Minute, false},
		{"the clock was set back, an old file", -time.Hour, -2 * time.Hour, true},
	} {
		start := now.Add(-up - tc.set) // by the clock of that time
		booted := earlier(now.Add(-up), start)
		if got := start.Add(tc.file).Before(booted); got != tc.beforeStart {
			t.Errorf("%s: the file counts as from before the start: %v", tc.name, got)
		}
	}
	if booted := earlier(now, time.Time{}); booted != now {
		t.Errorf("the file system knows no time: %v", booted)
	}
}

// TestBirthOf: birthOf returns the time when a directory was made. For /run, this time decides which files of
// host-local count.
func TestBirthOf(t *testing.T) {
	dir := t.TempDir()
	before := time.Now().Add(-time.Minute)
	if at := birthOf(dir); !at.IsZero() && (at.Before(before) || at.After(time.Now().Add(time.Second))) {
		t.Errorf("a directory that was made just now is from %v", at)
	}
	if at := birthOf(filepath.Join(dir, "none")); !at.IsZero() {
		t.Errorf("a file that isn't there is from %v", at)
	}
}
