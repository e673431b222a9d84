//go:build !linux

package manifests

import (
	"os"
	"time"
)

// stat identifies roughly one state of a file on disk. Only agents read a file twice, and agents run on Linux.
type stat struct {
	size  int64
	mtime time.Time
}

func statOf(info os.FileInfo) stat { return stat{info.Size(), info.ModTime()} }
