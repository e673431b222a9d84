// Package dirwatch reports when files in a directory, or in a tree of directories, have changed, and reads whole files.
// It uses inotify because inotify tells when a writer has closed a file: half a manifest may lack the policy that
// isolates a pod.
//
// Only Linux has inotify. On other systems nothing can be watched, and ReadFile may read a file that is being written.
//
// Invariants:
//   - A written file is reported when its writer closes it.
//   - If the kernel drops events, Change.Lost is true. If the directory is gone, Next returns ErrGone.
//   - ReadFile never waits. On filesystems with leases, it reads no file that a process has open for writing.
package dirwatch

import "errors"

// ErrGone means that the watched directory was removed, moved or unmounted.
var ErrGone = errors.New("the directory is gone")

// ErrBeingWritten means that a process has the file open for writing.
var ErrBeingWritten = errors.New("the file is being written")

// ErrNoFile means that the path leads to a device, a socket, a named pipe or a directory.
var ErrNoFile = errors.New("it is no regular file")

// Change has the names of files that were closed after writing, and of files and directories that were made, moved or
// removed. In a tree, names are paths below the root. If Lost is true, the kernel has dropped events, and any file may
// have changed.
type Change struct {
	Names []string
	Lost  bool
}
