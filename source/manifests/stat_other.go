//go:build !linux

package manifests

import (
	"os"
	"time"
)

// stat is a rough version of stat_linux.go's: only agents read a file again, and agents run on Linux.
type stat struct {
	size  int64
	mtime time.Time
}

func statOf(info os.FileInfo) stat { return stat{info.Size(), info.ModTime()} }
