//go:build !unix

package endpoint

import (
	"errors"
	"os"
)

// Windows has no flock. weirctl on Windows contains this package, but never locks a record.
const (
	lockEx = 1 << iota
	lockSh
	lockNb
)

func flock(*os.File, int) error { return errors.ErrUnsupported }

func tryLock(string, int) (bool, error) { return false, errors.ErrUnsupported }
