package dirwatch

import (
	"encoding/binary"
	"errors"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"golang.org/x/sys/unix"
)

func watch(t *testing.T) (*Watcher, string) {
	t.Helper()
	dir := filepath.Join(t.TempDir(), "watched")
	if err := os.Mkdir(dir, 0o700); err != nil {
		t.Fatal(err)
	}
	w, err := New(dir)
	if err != nil {
		t.Fatal(err)
	}
	late := time.AfterFunc(time.Minute, func() { _ = w.Close() })
	t.Cleanup(func() {
		if late.Stop() {
			_ = w.Close()
		}
	})
	return w, dir
}

func write(t *testing.T, path string) {
	t.Helper()
	if err := os.WriteFile(path, []byte("x"), 0o600); err != nil {
		t.Fatal(err)
	}
}

func wantNames(t *testing.T, w *Watcher, dir string, want ...string) {
	t.Helper()
	write(t, filepath.Join(dir, "end"))
	var got []string
	for !slices.Contains(got, "end") {
		c, err := w.Next()
		if err != nil || c.Lost {
			t.Fatalf("%+v, %v; so far %q", c, err, got)
		}
		got = append(got, c.Names...)
	}
	if diff := cmp.Diff(append(want, "end"), got); diff != "" {
		t.Error(diff)
	}
}

func TestAFileIsReportedWhenItIsClosed(t *testing.T) {
	w, dir := watch(t)
	f, err := os.Create(filepath.Join(dir, "a"))
	if err != nil {
		t.Fatal(err)
	}
	for range 3 {
		if _, err := f.WriteString("half of it"); err != nil {
			t.Fatal(err)
		}
	}
	wantNames(t, w, dir)
	if err := f.Close(); err != nil {
		t.Fatal(err)
	}
	wantNames(t, w, dir, "a")
	if f, err = os.OpenFile(f.Name(), os.O_WRONLY|os.O_TRUNC, 0); err != nil {
		t.Fatal(err)
	}
	wantNames(t, w, dir)
	if err := f.Close(); err != nil {
		t.Fatal(err)
	}
	wantNames(t, w, dir, "a")
	if _, err := os.ReadFile(f.Name()); err != nil {
		t.Fatal(err)
	}
	wantNames(t, w, dir) // reading a file causes no event
}

func TestRenamesAndDeletes(t *testing.T) {
	w, dir := watch(t)
	elsewhere := t.TempDir()
	write(t, elsewhere+"/new")
	for _, step := range []struct {
		do   func() error
		want []string
	}{
		{func() error { return os.Rename(elsewhere+"/new", dir+"/a") }, []string{"a"}},
		{func() error { return os.Rename(dir+"/a", dir+"/b") }, []string{"a", "b"}},
		{func() error { return os.Rename(dir+"/b", elsewhere+"/b") }, []string{"b"}},
		{func() error { return os.WriteFile(dir+"/c", nil, 0o600) }, []string{"c"}},
		{func() error { return os.Remove(dir + "/c") }, []string{"c"}},
		{func() error { return os.MkdirAll(dir+"/d/e", 0o700) }, nil},
		// New watches only files directly in the directory.
		{func() error { return os.WriteFile(dir+"/d/f", nil, 0o600) }, nil},
	} {
		if err := step.do(); err != nil {
			t.Fatal(err)
		}
		wantNames(t, w, dir, step.want...)
	}
}

func TestTheDirectoryGoes(t *testing.T) {
	for name, takeAway := range map[string]func(dir string) error{
		"removed": os.RemoveAll,
		"moved":   func(dir string) error { return os.Rename(dir, dir+".old") },
	} {
		t.Run(name, func(t *testing.T) {
			w, dir := watch(t)
			write(t, filepath.Join(dir, "a"))
			if err := takeAway(dir); err != nil {
				t.Fatal(err)
			}
			for {
				if _, err := w.Next(); errors.Is(err, ErrGone) {
					return
				} else if err != nil {
					t.Fatalf("%v, want ErrGone", err)
				}
			}
		})
	}
}

func TestNewNeedsADirectory(t *testing.T) {
	dir := t.TempDir()
	write(t, dir+"/file")
	for path, want := range map[string]error{dir + "/none": fs.ErrNotExist, dir + "/file": unix.ENOTDIR} {
		if _, err := New(path); !errors.Is(err, want) || !strings.Contains(err.Error(), path) {
			t.Errorf("%v, want %v of %s", err, want, path)
		}
	}
}

func TestCloseEndsNext(t *testing.T) {
	w, _ := watch(t)
	ended := make(chan error)
	go func() {
		_, err := w.Next()
		ended <- err
	}()
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	if err := <-ended; !errors.Is(err, fs.ErrClosed) {
		t.Errorf("Next when it was closed: %v", err)
	}
	if _, err := w.Next(); !errors.Is(err, fs.ErrClosed) {
		t.Errorf("Next after that: %v", err)
	}
}

func TestTree(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "tree")
	if err := os.MkdirAll(dir+"/a/b", 0o700); err != nil {
		t.Fatal(err)
	}
	w, err := NewTree(dir)
	if err != nil {
		t.Fatal(err)
	}
	late := time.AfterFunc(time.Minute, func() { _ = w.Close() })
	defer late.Stop()
	if err := w.Watch(map[string]bool{"a": true, "a/b": true}); err != nil {
		t.Fatal(err)
	}
	wantNames(t, w, dir)
	for _, step := range []struct {
		do   func() error
		want []string
	}{
		{func() error { return os.WriteFile(dir+"/a/b/c", nil, 0o600) }, []string{"a/b/c"}},
		{func() error { return os.Symlink("b/c", dir+"/a/link") }, []string{"a/link"}},
		{func() error { return os.Link(dir+"/a/b/c", dir+"/hard") }, []string{"hard"}},
		{func() error { return os.Mkdir(dir+"/new", 0o700) }, []string{"new"}},
		{func() error { return os.WriteFile(dir+"/new/x", nil, 0o600) }, nil}, // the new directory isn't watched yet
		{func() error { return w.Watch(map[string]bool{"a": true, "new": true}) }, nil},
		{func() error { return os.WriteFile(dir+"/new/x", nil, 0o600) }, []string{"new/x"}},
		{func() error { return os.WriteFile(dir+"/a/b/c", nil, 0o600) }, nil}, // the directory is no longer watched
		{func() error { return os.RemoveAll(dir + "/new") }, []string{"new/x", "new", "new"}},
		{func() error { return os.Rename(dir+"/a", dir+"/d") }, []string{"a", "d", "a"}},
	} {
		if err := step.do(); err != nil {
			t.Fatal(err)
		}
		wantNames(t, w, dir, step.want...)
	}
	if err := os.RemoveAll(dir); err != nil {
		t.Fatal(err)
	}
	for err == nil {
		_, err = w.Next()
	}
	if !errors.Is(err, ErrGone) {
		t.Errorf("%v, want ErrGone", err)
	}
}

// TestLost: if the kernel's queue of events overflows, Next reports the loss. It still reports later changes.
func TestLost(t *testing.T) {
	data, err := os.ReadFile("/proc/sys/fs/inotify/max_queued_events")
	if err != nil {
		t.Fatal(err)
	}
	room, err := strconv.Atoi(strings.TrimSpace(string(data)))
	if err != nil {
		t.Fatal(err)
	}
	w, dir := watch(t)
	a, b := filepath.Join(dir, "a"), filepath.Join(dir, "b")
	write(t, a)
	for range room/2 + 1 { // each rename causes two events
		if err := os.Rename(a, b); err != nil {
			t.Fatal(err)
		}
		a, b = b, a
	}
	for {
		c, err := w.Next()
		if err != nil {
			t.Fatal(err)
		}
		if c.Lost {
			break
		}
	}
	wantNames(t, w, dir) // events after the loss are reported
}

func event(mask uint32, name string) []byte {
	b := make([]byte, unix.SizeofInotifyEvent)
	binary.NativeEndian.PutUint32(b[4:], mask)
	if name == "" {
		return b
	}
	padded := make([]byte, (len(name)/unix.SizeofInotifyEvent+1)*unix.SizeofInotifyEvent)
	copy(padded, name)
	binary.NativeEndian.PutUint32(b[12:], uint32(len(padded)))
	return append(b, padded...)
}

func onRoot() *Watcher { return &Watcher{dirs: map[int32]string{0: "."}} }

func TestDecode(t *testing.T) {
	long := strings.Repeat("n", 255)
	for _, tc := range []struct {
		name string
		b    []byte
		want Change
		err  error
	}{
		{"nothing", nil, Change{}, nil},
		{
			"some", slices.Concat(event(unix.IN_CLOSE_WRITE, "a"), event(unix.IN_DELETE, long),
				event(unix.IN_MOVED_TO, "sixteen-letters.")),
			Change{Names: []string{"a", long, "sixteen-letters."}},
			nil,
		},
		{
			"lost", slices.Concat(event(unix.IN_CLOSE_WRITE, "a"), event(unix.IN_Q_OVERFLOW, "")),
			Change{Names: []string{"a"}, Lost: true},
			nil,
		},
		{
			"removed", slices.Concat(event(unix.IN_DELETE, "a"), event(unix.IN_DELETE_SELF, ""), event(unix.IN_IGNORED, "")),
			Change{Names: []string{"a"}},
			ErrGone,
		},
		{"moved", event(unix.IN_MOVE_SELF, ""), Change{}, ErrGone},
		{"unmounted", event(unix.IN_UNMOUNT, ""), Change{}, ErrGone},
		{
			"cut off", append(event(unix.IN_DELETE, "a"), event(unix.IN_DELETE, "b")[:20]...),
			Change{Names: []string{"a"}},
			nil,
		},
	} {
		t.Run(tc.name, func(t *testing.T) {
			got, err := onRoot().decode(tc.b)
			if !errors.Is(err, tc.err) {
				t.Errorf("%v, want %v", err, tc.err)
			}
			if diff := cmp.Diff(tc.want, got); diff != "" {
				t.Error(diff)
			}
		})
	}
}

func FuzzDecode(f *testing.F) {
	f.Add([]byte(nil))
	f.Add(event(unix.IN_CLOSE_WRITE, "a"))
	f.Add(slices.Concat(event(unix.IN_MOVED_FROM, "a"), event(unix.IN_MOVED_TO, "b"), event(unix.IN_Q_OVERFLOW, "")))
	f.Add(slices.Concat(event(unix.IN_DELETE_SELF, ""), event(unix.IN_IGNORED, "")))
	f.Add(event(unix.IN_DELETE, "cut off")[:17])
	f.Add(slices.Repeat([]byte{0xff}, 2*unix.SizeofInotifyEvent)) // a name longer than the buffer
	f.Fuzz(func(t *testing.T, b []byte) {
		c, err := onRoot().decode(b)
		if err != nil && !errors.Is(err, ErrGone) {
			t.Error(err)
		}
		if slices.Contains(c.Names, "") || len(c.Names) > len(b)/unix.SizeofInotifyEvent {
			t.Errorf("%d bytes gave %q", len(b), c.Names)
		}
	})
}

// TestLimitsOfInotify: if the user may have no more inotify instances or watches, the error names the sysctl.
func TestLimitsOfInotify(t *testing.T) {
	if want := os.Getenv("WEIR_INOTIFY_LIMIT"); want != "" {
		if _, err := New("/"); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("the error is %v, and lacks %s", err, want)
		}
		return
	}
	for limit, want := range map[string]string{
		"max_inotify_instances": "fs.inotify.max_user_instances", "max_inotify_watches": "fs.inotify.max_user_watches",
	} {
		// The limits in /proc/sys/user are those of the new user namespace, and not of the machine.
		cmd := exec.CommandContext(t.Context(), "unshare", "--user", "--map-root-user", "sh", "-c",
			"echo 0 >/proc/sys/user/"+limit+" && exec \"$0\" -test.run='^"+t.Name()+"$'", os.Args[0])
		cmd.Env = append(os.Environ(), "WEIR_INOTIFY_LIMIT="+want)
		if out, err := cmd.CombinedOutput(); err != nil {
			t.Errorf("%s: %v\n%s", limit, err, out)
		}
	}
}
