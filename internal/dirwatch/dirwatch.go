// Package dirwatch tells when the files directly in a directory have changed, and reads them whole or not at all. It
// speaks to inotify itself because it must know when a writer has *closed* a file: a manifest that is read while it is
// being written may lack the very policy that closes a pod, and the portable watchers only tell that a write has begun.
package dirwatch

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"

	"golang.org/x/sys/unix"
)

// ErrGone says that the directory itself was removed, moved or unmounted.
var ErrGone = errors.New("the directory is gone")

// ErrBeingWritten says that somebody has the file open for writing.
var ErrBeingWritten = errors.New("the file is being written")

// Change names the files that are new, whole and closed, or gone. Lost says that the kernel dropped events: anything
// may have changed.
type Change struct {
	Names []string
	Lost  bool
}

// Watcher of one directory.
type Watcher struct {
	f   *os.File
	dir string
}

// New watches dir from now on.
//
// Equivalent to: inotifywait -m -e close_write,moved_to,moved_from,delete,delete_self,move_self DIR
func New(dir string) (*Watcher, error) {
	fd, err := unix.InotifyInit1(unix.IN_CLOEXEC | unix.IN_NONBLOCK)
	if err != nil {
		return nil, fmt.Errorf("watch %s: %w", dir, os.NewSyscallError("inotify_init1", err))
	}
	w := &Watcher{os.NewFile(uintptr(fd), "inotify:"+dir), dir}
	const mask = unix.IN_CLOSE_WRITE | unix.IN_MOVED_TO | unix.IN_MOVED_FROM | unix.IN_DELETE |
		unix.IN_DELETE_SELF | unix.IN_MOVE_SELF | unix.IN_ONLYDIR
	if _, err := unix.InotifyAddWatch(fd, dir, mask); err != nil {
		return nil, errors.Join(fmt.Errorf("watch %s: %w", dir, os.NewSyscallError("inotify_add_watch", err)), w.Close())
	}
	return w, nil
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
	return decode(buf[:n])
}

// decode reads struct inotify_event: watch, mask, cookie, length of the name, and the name, padded with NULs.
func decode(b []byte) (Change, error) {
	var c Change
	for len(b) >= unix.SizeofInotifyEvent {
		mask := binary.NativeEndian.Uint32(b[4:])
		size := unix.SizeofInotifyEvent + int(binary.NativeEndian.Uint32(b[12:]))
		if size > len(b) {
			break
		}
		name := string(bytes.TrimRight(b[unix.SizeofInotifyEvent:size], "\x00"))
		b = b[size:]
		switch {
		case mask&unix.IN_Q_OVERFLOW != 0:
			c.Lost = true
		case mask&(unix.IN_DELETE_SELF|unix.IN_MOVE_SELF|unix.IN_IGNORED|unix.IN_UNMOUNT) != 0:
			return c, ErrGone
		case name != "":
			c.Names = append(c.Names, name)
		}
	}
	return c, nil
}

// ReadFile reads a file that nobody is writing; else its error is ErrBeingWritten. A read lease is what the kernel grants
// only while nobody has the file open for writing, and while it is held whoever opens it so waits (fcntl(2), "Leases").
// On filesystems without leases the file is read as it is.
func ReadFile(path string) (data []byte, err error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, f.Close()) }() // which gives the lease back
	if _, err := unix.FcntlInt(f.Fd(), unix.F_SETLEASE, unix.F_RDLCK); errors.Is(err, unix.EAGAIN) {
		return nil, fmt.Errorf("read %s: %w", path, ErrBeingWritten)
	}
	return io.ReadAll(f)
}
