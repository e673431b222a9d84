//go:build unix

package endpoint

import (
	"errors"
	"fmt"
	"io/fs"
	"os"

	"golang.org/x/sys/unix"
)

const (
	lockEx = unix.LOCK_EX
	lockSh = unix.LOCK_SH
	lockNb = unix.LOCK_NB
)

func flock(f *os.File, how int) error { return flockFd(int(f.Fd()), how) }

func flockFd(fd, how int) error {
	for {
		err := unix.Flock(fd, how)
		if !errors.Is(err, unix.EINTR) {
			return err
		}
	}
}

// tryLock locks the file without waiting, and unlocks it at once. The parameter how is lockEx or lockSh. locked is
// true if the file has a lock that excludes this one. tryLock uses no os.File, so it makes only three system calls.
func tryLock(path string, how int) (locked bool, err error) {
	fd, err := unix.Open(path, unix.O_RDONLY|unix.O_CLOEXEC, 0)
	for errors.Is(err, unix.EINTR) {
		fd, err = unix.Open(path, unix.O_RDONLY|unix.O_CLOEXEC, 0)
	}
	if err != nil {
		return false, fmt.Errorf("open endpoint record: %w", &fs.PathError{Op: "open", Path: path, Err: err})
	}
	defer func() { _ = unix.Close(fd) }()
	err = flockFd(fd, how|lockNb)
	if errors.Is(err, unix.EWOULDBLOCK) {
		return true, nil
	}
	if err != nil {
		return false, fmt.Errorf("try the lock of %s: %w", path, err)
	}
	return false, nil
}
