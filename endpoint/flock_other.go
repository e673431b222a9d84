//go:build !unix

package endpoint

import (
	"errors"
	"os"
)

// Without Unix there is no flock. The package only has to compile, as a part of weirctl.
const (
	lockEx = 1 << iota
	lockSh
	lockNb
)

func flock(*os.File, int) error { return errors.ErrUnsupported }

func tryLock(string, int) (bool, error) { return false, errors.ErrUnsupported }
