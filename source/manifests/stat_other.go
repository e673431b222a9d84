//go:build !linux

package manifests

import (
	"os"
	"time"
)

// stat has fewer fields than the type in stat_linux.go, because only agents read a file again, and agents run on Linux.
type stat struct {
	size  int64
	mtime time.Time
}

func statOf(info os.FileInfo) stat { return stat{info.Size(), info.ModTime()} }
