//go:build !linux

package nodecheck

import (
	"context"
	"runtime"
)

// Read says that nodes run Linux.
func Read(context.Context) Facts {
	return Facts{NoTrials: "this machine runs " + runtime.GOOS + ", and nodes run Linux"}
}
