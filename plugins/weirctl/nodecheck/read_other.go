//go:build !linux

package nodecheck

import (
	"context"
	"runtime"
)

// Read returns facts without trials, because only nodes run Linux.
func Read(context.Context) Facts {
	return Facts{NoTrials: "this machine runs " + runtime.GOOS + ", and nodes run Linux"}
}
