//go:build unix

package endpoint

import (
	"errors"
	"os"

	"golang.org/x/sys/unix"
)

// How flock locks a file, and its error for a file that another process has locked (flock(2)).
const (
	lockEx    = unix.LOCK_EX
	lockSh    = unix.LOCK_SH
	lockNb    = unix.LOCK_NB
	errLocked = unix.EWOULDBLOCK
)

func flock(f *os.File, how int) error {
	for {
		err := unix.Flock(int(f.Fd()), how)
		if !errors.Is(err, unix.EINTR) {
			return err
		}
	}
}
