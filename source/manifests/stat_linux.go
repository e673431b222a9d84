package manifests

import (
	"os"
	"syscall"
)

// stat identifies a version of a file: if two stats of a file are equal, the file has not changed in between.
type stat struct {
	dev, ino     uint64
	size         int64
	mtime, ctime syscall.Timespec
}

func statOf(info os.FileInfo) stat {
	s, ok := info.Sys().(*syscall.Stat_t)
	if !ok {
		return stat{}
	}
	return stat{s.Dev, s.Ino, s.Size, s.Mtim, s.Ctim}
}
