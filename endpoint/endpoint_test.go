package endpoint

import (
	"bufio"
	"errors"
	"fmt"
	"io/fs"
	"net/netip"
	"os"
	"os/exec"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"
	"golang.org/x/sys/unix"

	"github.com/weir-net/weir/conf"
	"github.com/weir-net/weir/test/nodetest"
)

var byValue = cmpopts.EquateComparable(netip.Addr{}, netip.Prefix{})

func newEndpoint(containerID string) Endpoint {
	return Endpoint{
		ContainerID: containerID,
		IfName:      "eth0",
		Network:     "weir",
		Netns:       "/run/netns/" + containerID,
		Pod:         Pod{"ns-1", containerID, "uid-" + containerID},
		Addresses: []Address{{
			Addr:    netip.MustParseAddr("10.88.0.2"),
			Subnet:  netip.MustParsePrefix("10.88.0.0/24"),
			Gateway: netip.MustParseAddr("10.88.0.1"),
		}},
		MAC:         "0a:58:0a:58:00:02",
		HostIf:      "weirp0",
		Enforcement: conf.Strict,
		Created:     time.Date(2026, 1, 2, 3, 4, 5, 6, time.UTC),
	}
}

func wantList(t *testing.T, want ...Endpoint) {
	t.Helper()
	got, err := List()
	if err != nil {
		t.Error(err)
	}
	if diff := cmp.Diff(want, got, byValue); diff != "" {
		t.Errorf("list: %s", diff)
	}
}

func TestRecords(t *testing.T) {
	if !nodetest.Isolated(t) {
		return
	}
	must := func(err error) {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
	}
	must(Remove("a:eth0")) // this succeeds even before the directory exists
	wantList(t)
	b, a := newEndpoint("b"), newEndpoint("a")
	must(b.Save())
	must(a.Save())
	wantList(t, a, b)

	a.Addresses, a.Pod.UID = nil, ""
	must(a.Save())
	got, err := Load("a:eth0")
	must(err)
	if diff := cmp.Diff(&a, got, byValue); diff != "" {
		t.Errorf("saved again: %s", diff)
	}
	entries, err := os.ReadDir(recordsDir)
	must(err)
	for _, e := range entries {
		info, err := e.Info()
		must(err)
		if info.Mode() != 0o600 {
			t.Errorf("%s has mode %s: it says who is who, and is root's alone", e.Name(), info.Mode())
		}
	}
	if len(entries) != 2 {
		t.Errorf("files: %v", entries)
	}

	for range 2 {
		must(Remove(a.ID()))
	}
	wantList(t, b)
	if _, err := Load(a.ID()); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("load what was removed: %v", err)
	}
}

func TestABrokenRecordHidesNoOther(t *testing.T) {
	if !nodetest.Isolated(t) {
		return
	}
	dir, err := WatchDir()
	if err != nil {
		t.Fatal(err)
	}
	a, c := newEndpoint("a"), newEndpoint("c")
	for _, e := range []Endpoint{a, c} {
		if err := e.Save(); err != nil {
			t.Fatal(err)
		}
	}
	// A crash in Save leaves the first of these files. Other programs may leave files like the other two.
	for _, name := range []string{tempFile, dir + "/a:eth0.json.tmp", dir + "/notes"} {
		if err := os.WriteFile(name, []byte(`{"contain`), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	wantList(t, a, c)
	if err := a.Save(); err != nil {
		t.Errorf("over what a crash left: %v", err)
	}
	wantList(t, a, c)

	for name, text := range map[string]string{
		"b:eth0": `{"contain`, "e:eth0": "",
		"f:eth0": `{"addresses": [{"address": "10.88.0.300"}]}`,
	} {
		if err := os.WriteFile(path(name), []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	record, err := os.ReadFile(path("a:eth0"))
	if err == nil {
		err = os.WriteFile(path("h:eth0"), record, 0o600) // the file's name has another ID than the record
	}
	if err != nil {
		t.Fatal(err)
	}
	if err := os.Symlink("nowhere", path("g:eth0")); err != nil { // like a record that DEL removes during List
		t.Fatal(err)
	}
	got, err := List()
	if diff := cmp.Diff([]Endpoint{a, c}, got, byValue); diff != "" {
		t.Errorf("beside the broken ones: %s", diff)
	}
	for _, id := range []string{"b:eth0", "e:eth0", "f:eth0", "h:eth0"} {
		if err == nil || !strings.Contains(err.Error(), path(id)) {
			t.Errorf("%v: doesn't name %s", err, path(id))
		}
	}
	if err != nil && strings.Contains(err.Error(), "g:eth0") {
		t.Errorf("%v: a record that isn't there is no broken one", err)
	}
}

// TestEnding: after MarkEnding, Load and List don't return the record, but Exists returns true until Remove. A record
// that can't be read also exists.
func TestEnding(t *testing.T) {
	if !nodetest.Isolated(t) {
		return
	}
	wantNone := func() {
		t.Helper()
		if _, err := MarkEnding("a:eth0"); !errors.Is(err, fs.ErrNotExist) || Exists("a:eth0") {
			t.Errorf("%v, exists: %v; want that there is no record", err, Exists("a:eth0"))
		}
	}
	wantNone()
	a, b := newEndpoint("a"), newEndpoint("b")
	for _, e := range []Endpoint{a, b} {
		if err := e.Save(); err != nil || !Exists(e.ID()) {
			t.Fatalf("save: %v, exists: %v", err, Exists(e.ID()))
		}
	}
	for range 2 { // the second call stands for a DEL that follows a crashed DEL
		got, err := MarkEnding("a:eth0")
		if err != nil {
			t.Fatal(err)
		}
		if diff := cmp.Diff(&a, got, byValue); diff != "" {
			t.Error(diff)
		}
		wantList(t, b)
		if _, err := Load("a:eth0"); !errors.Is(err, fs.ErrNotExist) || !Exists("a:eth0") {
			t.Errorf("load what is ending: %v, exists: %v", err, Exists("a:eth0"))
		}
	}
	for range 2 {
		if err := Remove("a:eth0"); err != nil {
			t.Fatal(err)
		}
		wantNone()
	}
	if err := os.WriteFile(path("a:eth0"), []byte("{"), 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := MarkEnding("a:eth0"); err == nil || errors.Is(err, fs.ErrNotExist) {
		t.Errorf("end what can't be read: %v", err)
	}
	if !Exists("a:eth0") {
		t.Error("a record that can't be read is still one")
	}
	wantList(t, b)
}

func TestCheckID(t *testing.T) {
	for id, want := range map[string]bool{
		"c1:eth0":                          true,
		ID("c1", "eth0.10"):                true,
		"c.1_2-3:net1":                     true,
		"c1:..":                            true, // an odd name, but a file in the records' directory
		"":                                 false,
		":":                                false,
		"c1":                               false,
		"c1:":                              false,
		":eth0":                            false,
		"../lock:eth0":                     false,
		"..:eth0":                          false,
		".hidden:eth0":                     false,
		"/etc/passwd:eth0":                 false,
		"c1:../../x":                       false,
		"c1:a/b":                           false,
		`c1\x:eth0`:                        false,
		"c1:eth0\x00":                      false,
		strings.Repeat("c", 243) + ":eth0": true,
		strings.Repeat("c", 244) + ":eth0": false,
	} {
		if err := CheckID(id); (err == nil) != want ||
			err != nil && !strings.Contains(err.Error(), fmt.Sprintf("%.80q", id)) {
			t.Errorf("%q: %v, want it to be an ID: %v", id, err, want)
		}
	}
}

func TestIDOfFile(t *testing.T) {
	for name, want := range map[string]string{
		"c1:eth0.json":          "c1:eth0",
		"c1:eth0.json.json":     "c1:eth0.json",
		"c1:eth0":               "",
		"c1:eth0.json.tmp":      "",
		"c1.json":               "",
		":eth0.json":            "",
		".json":                 "",
		"":                      "",
		"../x:eth0.json":        "",
		".c1:eth0.json":         "",
		path("c1:eth0"):         "",
		"c1:eth0.json\x00.json": "",
	} {
		if id, ok := IDOfFile(name); ok != (want != "") || ok && id != want {
			t.Errorf("%q: %q, %v; want %q", name, id, ok, want)
		}
	}
}

func mustLock(t *testing.T) (unlock func()) {
	t.Helper()
	unlock, err := Lock()
	if err != nil {
		t.Fatal(err)
	}
	return unlock
}

func TestLockExcludes(t *testing.T) {
	if !nodetest.Isolated(t) {
		return
	}
	var inside atomic.Int32
	var wg sync.WaitGroup
	for range 20 {
		wg.Go(func() {
			for range 20 {
				unlock, err := Lock()
				if err != nil {
					t.Error(err)
					return
				}
				if n := inside.Add(1); n != 1 {
					t.Errorf("%d hold the lock", n)
				}
				inside.Add(-1)
				unlock()
			}
		})
	}
	wg.Wait()

	unlock := mustLock(t)
	if out, err := exec.Command("flock", "-n", Dir+"/lock", "true").CombinedOutput(); err == nil {
		t.Errorf("another process has the lock too: %s", out)
	}
	unlock()
	nodetest.Run(t, "flock", "-n", Dir+"/lock", "true")
}

func TestLockEndsWithItsProcess(t *testing.T) {
	if !nodetest.Isolated(t) {
		return
	}
	mustLock(t)()
	// With -o, the command that flock runs doesn't inherit the lock.
	cmd := exec.Command("flock", "-o", Dir+"/lock", "sh", "-c", "echo locked; exec sleep infinity")
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	if line, err := bufio.NewReader(out).ReadString('\n'); line != "locked\n" {
		t.Fatalf("flock said %q, %v", line, err)
	}
	f, err := os.Open(Dir + "/lock")
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = f.Close() }()
	if err := unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB); !errors.Is(err, unix.EWOULDBLOCK) {
		t.Fatalf("the lock is held, but: %v", err)
	}
	got := make(chan error)
	go func() {
		unlock, err := Lock()
		if err == nil {
			unlock()
		}
		got <- err
	}()
	select {
	case err := <-got:
		t.Fatalf("Lock didn't wait: %v", err)
	default:
	}
	if err := cmd.Process.Kill(); err != nil {
		t.Fatal(err)
	}
	_ = cmd.Wait()
	if err := <-got; err != nil {
		t.Error(err)
	}
}

// TestLockOfARemovedFile: if the lock's file is removed while Lock waits, Lock locks the new file, as later callers do.
func TestLockOfARemovedFile(t *testing.T) {
	if !nodetest.Isolated(t) {
		return
	}
	tries := 0
	unlock, err := lock(func(f *os.File) error {
		if tries++; tries == 1 {
			if err := os.Remove(f.Name()); err != nil {
				t.Fatal(err)
			}
		}
		return flock(f, lockEx)
	})
	if err != nil {
		t.Fatal(err)
	}
	defer unlock()
	if locked, err := tryLock(Dir+"/lock", lockEx); !locked || err != nil || tries != 2 {
		t.Errorf("after %d tries: another process finds the file locked: %v, %v", tries, locked, err)
	}
}
