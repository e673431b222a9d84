package endpoint

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"slices"
	"strings"
)

// MarkEnding marks the attachment as being deleted, and returns its record. From this call on the agent adds the
// endpoint to no set. The caller needs no lock. Until Remove, each further call, such as one after a crash, returns the
// record again. MarkEnding returns fs.ErrNotExist if there is no record, and ErrBroken if the record can't be
// understood.
func MarkEnding(id string) (*Endpoint, error) {
	if err := os.Rename(path(id), endingPath(id)); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return nil, fmt.Errorf("mark endpoint record %s as ending: %w", id, err)
	}
	return load(endingPath(id), id)
}

// Remove deletes the record. It returns nil if there is none.
func Remove(id string) error {
	for _, p := range []string{path(id), endingPath(id)} {
		if err := os.Remove(p); err != nil && !errors.Is(err, fs.ErrNotExist) {
			return fmt.Errorf("remove endpoint record %s: %w", id, err)
		}
	}
	return nil
}

// Exists reports whether the attachment has a record, ending or not. It also reports true if the kernel doesn't say
// whether there is one.
func Exists(id string) bool {
	for _, p := range []string{path(id), endingPath(id)} {
		if _, err := os.Lstat(p); !errors.Is(err, fs.ErrNotExist) {
			return true
		}
	}
	return false
}

// LoadAny reads the attachment's record, and reports whether the record is ending. It returns fs.ErrNotExist if there
// is no record, and ErrBroken if the record can't be understood.
func LoadAny(id string) (e *Endpoint, ending bool, err error) {
	e, err = load(path(id), id)
	if !errors.Is(err, fs.ErrNotExist) {
		return e, false, err
	}
	e, err = load(endingPath(id), id)
	return e, true, err
}

// IDs returns the IDs of all records in order, with those of ending and broken records.
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

// MarkBusy locks the record, so that Busy reports true until the lock is closed or the process ends. If the record
// can't be opened, or another process has locked it, MarkBusy does nothing and returns a Closer without effect.
//
// Equivalent to: flock --nonblock RECORD COMMAND
func MarkBusy(id string) io.Closer {
	f, err := openRecord(id)
	if err != nil {
		return io.NopCloser(nil)
	}
	if err := flock(f, lockEx|lockNb); err != nil {
		_ = f.Close()
		return io.NopCloser(nil)
	}
	return f
}

// Busy reports whether a process is making or ending the attachment: whether the record is locked. It reports false if
// there is no record.
//
// Equivalent to: ! flock --nonblock --shared RECORD true
func Busy(id string) (bool, error) {
	f, err := openRecord(id)
	if errors.Is(err, fs.ErrNotExist) {
		return false, nil
	}
	if err != nil {
		return false, fmt.Errorf("open endpoint record %s: %w", id, err)
	}
	defer func() { _ = f.Close() }()
	return isLocked(f)
}

// openRecord opens the attachment's record, ending or not. A record that is renamed stays locked.
func openRecord(id string) (*os.File, error) {
	f, err := os.Open(path(id))
	if errors.Is(err, fs.ErrNotExist) {
		f, err = os.Open(endingPath(id))
	}
	return f, err
}

// isLocked reports whether another process has locked the file. If not, f has a shared lock until it is closed.
func isLocked(f *os.File) (bool, error) {
	err := flock(f, lockSh|lockNb)
	if errors.Is(err, errLocked) {
		return true, nil
	}
	if err != nil {
		return false, fmt.Errorf("try the lock of %s: %w", f.Name(), err)
	}
	return false, nil
}
