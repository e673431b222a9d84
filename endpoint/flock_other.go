//go:build !unix

package endpoint

import (
	"errors"
	"os"
)

// How flock would lock a file. Only Unix has flock, and only nodes have endpoint records.
const (
	lockEx = 1 << iota
	lockSh
	lockNb
)

var errLocked = errors.New("the file is locked")

func flock(*os.File, int) error { return errors.ErrUnsupported }
