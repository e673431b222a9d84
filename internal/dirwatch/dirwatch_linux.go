package dirwatch

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"sync"
	"syscall"

	"golang.org/x/sys/unix"
)

// Watcher watches one directory, or a tree of directories.
type Watcher struct {
	f    *os.File
	dir  string
	mask uint32

	mu   sync.Mutex
	dirs map[int32]string // watched directories by inotify's number; a path is relative to dir, which itself is "."
}

// New watches the files directly in dir.
//
// Equivalent to: inotifywait -m -e close_write,moved_to,moved_from,delete,delete_self,move_self DIR
func New(dir string) (*Watcher, error) {
	return newWatcher(dir, unix.IN_CLOSE_WRITE|unix.IN_MOVED_TO|unix.IN_MOVED_FROM|unix.IN_DELETE|
		unix.IN_DELETE_SELF|unix.IN_MOVE_SELF|unix.IN_ONLYDIR)
}

// NewTree watches dir like New, and also reports new directories and links. To watch the directories below dir, call
// Watch.
//
// Equivalent to: inotifywait -m -e close_write,create,moved_to,moved_from,delete,delete_self,move_self DIR
func NewTree(dir string) (*Watcher, error) {
	return newWatcher(dir, unix.IN_CLOSE_WRITE|unix.IN_CREATE|unix.IN_MOVED_TO|unix.IN_MOVED_FROM|unix.IN_DELETE|
		unix.IN_DELETE_SELF|unix.IN_MOVE_SELF|unix.IN_ONLYDIR)
}

func newWatcher(dir string, mask uint32) (*Watcher, error) {
	fd, err := unix.InotifyInit1(unix.IN_CLOEXEC | unix.IN_NONBLOCK)
	if err != nil {
		return nil, failed(dir, "inotify_init1", err)
	}
	w := &Watcher{f: os.NewFile(uintptr(fd), "inotify:"+dir), dir: dir, mask: mask, dirs: map[int32]string{}}
	if err := w.watch("."); err != nil {
		return nil, errors.Join(err, w.Close())
	}
	return w, nil
}

// failed returns err with the path. If a limit of inotify is reached, the error names the limit's sysctl, because the
// kernel's errors only speak of open files and full disks.
func failed(path, call string, err error) error {
	limit := ""
	switch {
	case errors.Is(err, unix.EMFILE):
		limit = "max_user_instances (unless this process has too many open files)"
	case errors.Is(err, unix.ENOSPC):
		limit = "max_user_watches"
	}
	if err = os.NewSyscallError(call, err); limit != "" {
		err = fmt.Errorf("%w: other programs use all that inotify allows; raise the sysctl fs.inotify.%s", err, limit)
	}
	return fmt.Errorf("watch %s: %w", path, err)
}

func (w *Watcher) watch(dir string) error {
	path := filepath.Join(w.dir, dir)
	wd, err := w.control(func(fd int) (int, error) { return unix.InotifyAddWatch(fd, path, w.mask) })
	if err != nil {
		return failed(path, "inotify_add_watch", err)
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	// A link below the root may lead back to the root. The root must keep the path ".".
	if was, ok := w.dirs[int32(wd)]; !ok || was != "." {
		w.dirs[int32(wd)] = dir
	}
	return nil
}

func (w *Watcher) control(f func(fd int) (int, error)) (n int, err error) {
	raw, err := w.f.SyscallConn()
	if err != nil {
		return 0, err
	}
	outer := raw.Control(func(fd uintptr) { n, err = f(int(fd)) })
	return n, errors.Join(outer, err)
}

// Watch sets which directories below the root are watched, as paths relative to the root. If a directory can't be
// watched, Watch returns an error, but watches the other directories.
func (w *Watcher) Watch(dirs map[string]bool) error {
	var errs []error
	w.mu.Lock()
	for wd, dir := range w.dirs {
		if dir == "." {
			continue
		}
		if !dirs[dir] {
			delete(w.dirs, wd)
			// An error means that the directory is gone: the kernel has then ended the watch.
			_, _ = w.control(func(fd int) (int, error) { return unix.InotifyRmWatch(fd, uint32(wd)) })
		}
	}
	w.mu.Unlock()
	for dir := range dirs {
		// This also renews the watch on known paths: a path may now belong to another directory.
		if err := w.watch(dir); err != nil {
			errs = append(errs, err)
		}
	}
	return errors.Join(errs...)
}

// Close stops watching. A goroutine that waits in Next gets fs.ErrClosed.
func (w *Watcher) Close() error { return w.f.Close() }

// Next waits for events, and returns the changes, perhaps none. It returns fs.ErrClosed after Close, and ErrGone if the
// root is gone.
func (w *Watcher) Next() (Change, error) {
	var buf [64 << 10]byte
	n, err := w.f.Read(buf[:])
	if errors.Is(err, fs.ErrClosed) {
		return Change{}, fs.ErrClosed
	}
	if err != nil {
		return Change{}, fmt.Errorf("watch %s: %w", w.dir, err)
	}
	return w.decode(buf[:n])
}

func (w *Watcher) decode(b []byte) (Change, error) {
	var c Change
	for len(b) >= unix.SizeofInotifyEvent {
		wd := int32(binary.NativeEndian.Uint32(b))
		mask := binary.NativeEndian.Uint32(b[4:])
		size := unix.SizeofInotifyEvent + int(binary.NativeEndian.Uint32(b[12:]))
		if size > len(b) {
			break
		}
		name := string(bytes.TrimRight(b[unix.SizeofInotifyEvent:size], "\x00"))
		b = b[size:]
		w.mu.Lock()
		dir, known := w.dirs[wd]
		w.mu.Unlock()
		gone := mask&(unix.IN_DELETE_SELF|unix.IN_MOVE_SELF|unix.IN_IGNORED|unix.IN_UNMOUNT) != 0
		switch {
		case mask&unix.IN_Q_OVERFLOW != 0:
			c.Lost = true
		// Ignore events of a directory that isn't watched any more.
		case !known, mask&unix.IN_IGNORED != 0 && dir != ".":
		case gone && dir == ".":
			return c, ErrGone
		case gone:
			c.Names = append(c.Names, dir)
		case name == "", mask&unix.IN_CREATE != 0 && w.isUnfinished(dir, name):
		default:
			c.Names = append(c.Names, filepath.Join(dir, name))
		}
	}
	return c, nil
}

// isUnfinished reports whether the kernel will report another event for a file that was just created. For a regular
// file with one link, an event follows when the writer closes the file. For a file that is already deleted, the event
// of the deletion follows. For a hard link, no event follows.
func (w *Watcher) isUnfinished(dir, name string) bool {
	info, err := os.Lstat(filepath.Join(w.dir, dir, name))
	if err != nil {
		return errors.Is(err, fs.ErrNotExist) // an event will report the deletion
	}
	stat, ok := info.Sys().(*syscall.Stat_t)
	return info.Mode().IsRegular() && ok && stat.Nlink == 1
}

// ReadFile reads a file without waiting. It returns ErrBeingWritten if a process has the file open for writing, and
// ErrNoFile if the path is no regular file. It finds writers by asking the kernel for a read lease (fcntl(2),
// "Leases"). On filesystems without leases it can't find writers.
func ReadFile(path string) (data []byte, err error) {
	f, err := os.OpenFile(path, os.O_RDONLY|unix.O_NONBLOCK|unix.O_NOCTTY, 0)
	if errors.Is(err, unix.ENXIO) { // the path is a socket
		return nil, ErrNoFile
	}
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, f.Close()) }() // closing also ends the lease
	if info, err := f.Stat(); err != nil {
		return nil, err
	} else if !info.Mode().IsRegular() {
		return nil, ErrNoFile
	}
	if _, err := unix.FcntlInt(f.Fd(), unix.F_SETLEASE, unix.F_RDLCK); errors.Is(err, unix.EAGAIN) {
		return nil, fmt.Errorf("read %s: %w", path, ErrBeingWritten)
	}
	return io.ReadAll(f)
}
