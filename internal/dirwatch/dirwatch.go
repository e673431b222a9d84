// Package dirwatch tells when the files in a directory, or in a tree of directories, have changed, and reads them whole
// or not at all. It speaks to inotify itself because it must know when a writer has *closed* a file: a manifest that is
// read while it is being written may lack the very policy that closes a pod, and the portable watchers only tell that a
// write has begun.
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

// ErrGone says that the directory itself was removed, moved or unmounted.
var ErrGone = errors.New("the directory is gone")

// ErrBeingWritten says that somebody has the file open for writing.
var ErrBeingWritten = errors.New("the file is being written")

// ErrNoFile says that it is a device, a socket or a named pipe, which might never give its end.
var ErrNoFile = errors.New("it is no regular file")

// Change names the files that are new, whole and closed, or gone; in a tree by their paths below its root. Lost says
// that the kernel dropped events: anything may have changed.
type Change struct {
	Names []string
	Lost  bool
}

// Watcher of one directory, or of a tree.
type Watcher struct {
	f    *os.File
	dir  string
	mask uint32

	mu   sync.Mutex
	dirs map[int32]string // the watched directories below dir, by watch; dir itself is "."
}

// New watches the files directly in dir from now on.
//
// Equivalent to: inotifywait -m -e close_write,moved_to,moved_from,delete,delete_self,move_self DIR
func New(dir string) (*Watcher, error) {
	return open(dir, unix.IN_CLOSE_WRITE|unix.IN_MOVED_TO|unix.IN_MOVED_FROM|unix.IN_DELETE|
		unix.IN_DELETE_SELF|unix.IN_MOVE_SELF|unix.IN_ONLYDIR)
}

// NewTree also tells of links and directories that are made in dir. Watch adds the directories below it.
//
// Equivalent to: inotifywait -m -e close_write,create,moved_to,moved_from,delete,delete_self,move_self DIR
func NewTree(dir string) (*Watcher, error) {
	return open(dir, unix.IN_CLOSE_WRITE|unix.IN_CREATE|unix.IN_MOVED_TO|unix.IN_MOVED_FROM|unix.IN_DELETE|
		unix.IN_DELETE_SELF|unix.IN_MOVE_SELF|unix.IN_ONLYDIR)
}

func open(dir string, mask uint32) (*Watcher, error) {
	fd, err := unix.InotifyInit1(unix.IN_CLOEXEC | unix.IN_NONBLOCK)
	if err != nil {
		return nil, fmt.Errorf("watch %s: %w", dir, os.NewSyscallError("inotify_init1", err))
	}
	w := &Watcher{f: os.NewFile(uintptr(fd), "inotify:"+dir), dir: dir, mask: mask, dirs: map[int32]string{}}
	if err := w.watch("."); err != nil {
		return nil, errors.Join(err, w.Close())
	}
	return w, nil
}

func (w *Watcher) watch(dir string) error {
	path := filepath.Join(w.dir, dir)
	wd, err := w.control(func(fd int) (int, error) { return unix.InotifyAddWatch(fd, path, w.mask) })
	if err != nil {
		return fmt.Errorf("watch %s: %w", path, os.NewSyscallError("inotify_add_watch", err))
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	if was, ok := w.dirs[int32(wd)]; !ok || was != "." { // the root stays the root, should a link lead back to it
		w.dirs[int32(wd)] = dir
	}
	return nil
}

// control calls inotify on the file's descriptor, without having reads block from then on, as Fd would.
func (w *Watcher) control(f func(fd int) (int, error)) (n int, err error) {
	raw, err := w.f.SyscallConn()
	if err != nil {
		return 0, err
	}
	outer := raw.Control(func(fd uintptr) { n, err = f(int(fd)) })
	return n, errors.Join(outer, err)
}

// Watch also watches these directories, named by their paths below the root, from now on, and no others any more.
func (w *Watcher) Watch(dirs map[string]bool) error {
	var errs []error
	w.mu.Lock()
	for wd, dir := range w.dirs {
		if dir == "." {
			continue
		}
		if !dirs[dir] {
			delete(w.dirs, wd)
			_, _ = w.control(func(fd int) (int, error) { return unix.InotifyRmWatch(fd, uint32(wd)) }) // it may be gone
		}
	}
	w.mu.Unlock()
	for dir := range dirs {
		// One that is watched is watched again: another may have taken its place.
		if err := w.watch(dir); err != nil {
			errs = append(errs, err)
		}
	}
	return errors.Join(errs...)
}

// Close ends a Next that waits.
func (w *Watcher) Close() error { return w.f.Close() }

// Next waits for changes and returns all that have come by then. After Close its error is fs.ErrClosed.
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

// decode reads struct inotify_event: watch, mask, cookie, length of the name, and the name, padded with NULs.
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
		case !known, mask&unix.IN_IGNORED != 0 && dir != ".": // it was told before why
		case gone && dir == ".":
			return c, ErrGone
		case gone:
			c.Names = append(c.Names, dir)
		case name == "", mask&unix.IN_CREATE != 0 && w.begun(dir, name):
		default:
			c.Names = append(c.Names, filepath.Join(dir, name))
		}
	}
	return c, nil
}

// begun says that what was created is a file that is yet to be written and closed. A link has no such end.
func (w *Watcher) begun(dir, name string) bool {
	info, err := os.Lstat(filepath.Join(w.dir, dir, name))
	if err != nil {
		return errors.Is(err, fs.ErrNotExist) // its end is told too
	}
	stat, ok := info.Sys().(*syscall.Stat_t)
	return info.Mode().IsRegular() && ok && stat.Nlink == 1
}

// ReadFile reads a file that nobody is writing; else its error is ErrBeingWritten. A read lease is what the kernel
// grants only while nobody has the file open for writing, and while it is held whoever opens it so waits (fcntl(2),
// "Leases"). On filesystems without leases the file is read as it is. It never waits: to open a named pipe without
// O_NONBLOCK waits until somebody writes to it.
func ReadFile(path string) (data []byte, err error) {
	f, err := os.OpenFile(path, os.O_RDONLY|unix.O_NONBLOCK|unix.O_NOCTTY, 0)
	if errors.Is(err, unix.ENXIO) { // a socket
		return nil, ErrNoFile
	}
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, f.Close()) }() // which gives the lease back
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
