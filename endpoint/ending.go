package endpoint

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"slices"
	"strings"

	"golang.org/x/sys/unix"
)

// Ending says that the attachment is being deleted, and returns its record: from here the agent puts it into nothing
// any more. Called again after a crash it returns the record again, until Remove. The error is fs.ErrNotExist if there
// is none.
func MarkEnding(id string) (*Endpoint, error) {
	if err := os.Rename(path(id), endingPath(id)); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return nil, fmt.Errorf("mark endpoint record %s as ending: %w", id, err)
	}
	return load(endingPath(id), id)
}

// Remove deletes the record; that there is none is no error.
func Remove(id string) error {
	for _, p := range []string{path(id), endingPath(id)} {
		if err := os.Remove(p); err != nil && !errors.Is(err, fs.ErrNotExist) {
			return fmt.Errorf("remove endpoint record %s: %w", id, err)
		}
	}
	return nil
}

// Exists says whether there is a record with that ID, be it of an attachment that is being deleted.
func Exists(id string) bool {
	for _, p := range []string{path(id), endingPath(id)} {
		if _, err := os.Lstat(p); !errors.Is(err, fs.ErrNotExist) {
			return true
		}
	}
	return false
}

// Find reads the record with that ID, be it of an attachment that is being deleted. The error is fs.ErrNotExist if there
// is none, and ErrBroken if it can't be understood.
func LoadAny(id string) (e *Endpoint, ending bool, err error) {
	e, err = load(path(id), id)
	if !errors.Is(err, fs.ErrNotExist) {
		return e, false, err
	}
	e, err = load(endingPath(id), id)
	return e, true, err
}

// IDs are those of all records, in order: also of the broken ones, and of attachments that are being deleted.
func IDs() ([]string, error) {
	files, err := os.ReadDir(recordsDir)
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return nil, fmt.Errorf("list endpoint records: %w", err)
	}
	var ids []string
	for _, f := range files {
		for _, s := range []string{suffix, endingSuffix} {
			if id, ok := strings.CutSuffix(f.Name(), s); ok && CheckID(id) == nil {
				ids = append(ids, id)
			}
		}
	}
	slices.Sort(ids)
	return slices.Compact(ids), nil
}

// Hold says that a process ends the attachment: until that process closes what Hold returns, or ends, Busy is true. A
// record that is gone, or that another process holds, is not held twice: closing does nothing then.
//
// Equivalent to: flock --nonblock RECORD
func MarkBusy(id string) io.Closer {
	f, err := open(id)
	if err != nil {
		return io.NopCloser(nil)
	}
	if err := flock(f, unix.LOCK_EX|unix.LOCK_NB); err != nil {
		_ = f.Close()
		return io.NopCloser(nil)
	}
	return f
}

// Busy says whether a process is making or ending the attachment.
//
// Equivalent to: ! flock --nonblock --shared RECORD true
func Busy(id string) (bool, error) {
	f, err := open(id)
	if errors.Is(err, fs.ErrNotExist) {
		return false, nil
	}
	if err != nil {
		return false, fmt.Errorf("open endpoint record %s: %w", id, err)
	}
	defer func() { _ = f.Close() }()
	return locked(f)
}

// open opens the record, also that of an attachment that is being deleted. Renaming a record keeps its lock.
func open(id string) (*os.File, error) {
	f, err := os.Open(path(id))
	if errors.Is(err, fs.ErrNotExist) {
		f, err = os.Open(endingPath(id))
	}
	return f, err
}

func locked(f *os.File) (bool, error) {
	err := flock(f, unix.LOCK_SH|unix.LOCK_NB)
	if errors.Is(err, unix.EWOULDBLOCK) {
		return true, nil
	}
	if err != nil {
		return false, fmt.Errorf("try the lock of %s: %w", f.Name(), err)
	}
	return false, nil
}
