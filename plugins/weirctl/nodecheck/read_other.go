//go:build !linux

package nodecheck

import (
	"context"
	"runtime"
)

// Read only says why nothing was tried: without Linux there is no node to check.
func Read(context.Context) Facts {
	return Facts{NoTrials: "this machine runs " + runtime.GOOS + ", and nodes run Linux"}
}
