package endpoint

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"slices"
	"strings"

	"golang.org/x/sys/unix"
)

// Ending says that the attachment is being deleted, and returns its record: from here the agent puts it into nothing
// any more. Called again after a crash it returns the record again, until Remove. The error is fs.ErrNotExist if there
// is none.
func Ending(id string) (*Endpoint, error) {
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
func Find(id string) (e *Endpoint, ending bool, err error) {
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

// Busy says whether who began the attachment is still at it.
//
// Equivalent to: ! flock --nonblock --shared RECORD true
func Busy(id string) (bool, error) {
	f, err := os.Open(path(id))
	if errors.Is(err, fs.ErrNotExist) {
		return false, nil
	}
	if err != nil {
		return false, fmt.Errorf("open endpoint record %s: %w", id, err)
	}
	defer func() { _ = f.Close() }()
	return locked(f)
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
