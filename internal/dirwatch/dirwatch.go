// Package dirwatch reports when files in a directory, or in a tree of directories, have changed, and reads whole files.
// It uses inotify directly because it must know when a writer has *closed* a file: half a manifest may lack the policy
// that isolates a pod.
//
// Only Linux has inotify. On other systems nothing can be watched, and ReadFile reads a file even while it is being
// written.
//
// Invariants:
//   - A written file is reported when its writer closes it.
//   - If the kernel drops events, Change.Lost says so. A directory that is gone is an error (ErrGone).
//   - ReadFile never waits. It reads no file that a process has open for writing, unless the filesystem has no leases.
package dirwatch

import "errors"

// ErrGone means that the directory itself was removed, moved or unmounted.
var ErrGone = errors.New("the directory is gone")

// ErrBeingWritten means that a process has the file open for writing.
var ErrBeingWritten = errors.New("the file is being written")

// ErrNoFile means that the path is that of a device, a socket, a named pipe or a directory.
var ErrNoFile = errors.New("it is no regular file")

// Change has the names of files that were written and closed, and names that have come or gone. In a tree,
// names are paths below the root. Lost means that the kernel dropped events: any file may have changed.
type Change struct {
	Names []string
	Lost  bool
}
