package endpoint

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"slices"
	"strings"
)

// MarkEnding marks the attachment as ending, and returns its record. From this call on the agent adds the endpoint to
// no set. It returns fs.ErrNotExist if there is no record, and ErrBroken if the record can't be understood.
func MarkEnding(id string) (*Endpoint, error) {
	if err := os.Rename(path(id), endingPath(id)); err != nil {
		// On a read-only file system, the error of Rename doesn't say whether there is a record.
		if _, unread := os.Lstat(path(id)); !errors.Is(unread, fs.ErrNotExist) {
			return nil, fmt.Errorf("mark endpoint record %s as ending: %w", id, err)
		}
	}
	return load(endingPath(id), id)
}

// Remove deletes the record. It returns nil if there is no record.
func Remove(id string) error {
	for _, p := range []string{path(id), endingPath(id)} {
		if err := os.Remove(p); err != nil && !errors.Is(err, fs.ErrNotExist) {
			return fmt.Errorf("remove endpoint record %s: %w", id, err)
		}
	}
	return nil
}

// Exists reports whether the attachment has a record, ending or not. If it can't find out, it returns true.
func Exists(id string) bool {
	for _, p := range []string{path(id), endingPath(id)} {
		if _, err := os.Lstat(p); !errors.Is(err, fs.ErrNotExist) {
			return true
		}
	}
	return false
}

// LoadAny reads the attachment's record, and reports whether the record is ending. It returns fs.ErrNotExist if
// there is no record, and ErrBroken if the record can't be understood.
func LoadAny(id string) (e *Endpoint, ending bool, err error) {
	e, err = load(path(id), id)
	if !errors.Is(err, fs.ErrNotExist) {
		return e, false, err
	}
	e, err = load(endingPath(id), id)
	return e, true, err
}

// IDs returns the IDs of all records in order, including ending and broken records.
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

// BusyLock is a lock on an attachment's record. It tells other processes that this process makes or ends the
// attachment. The kernel removes the lock when the process ends.
type BusyLock struct {
	file *os.File // nil if the lock was not possible
}

// LockBusy locks the record. Busy reports true until the lock is closed or the process ends. If LockBusy can't
// open or lock the record, the BusyLock has no effect.
//
// Equivalent to: flock --nonblock RECORD COMMAND
func LockBusy(id string) BusyLock {
	f, err := openRecord(id)
	if err != nil {
		return BusyLock{}
	}
	if err := flock(f, lockEx|lockNb); err != nil {
		_ = f.Close()
		return BusyLock{}
	}
	return BusyLock{f}
}

// Locked returns false if LockBusy couldn't open or lock the record.
func (l BusyLock) Locked() bool { return l.file != nil }

// Wait turns the lock into a shared lock, before the process waits for the node's lock. From then on, another process
// that has the node's lock may end the attachment instead of this process.
//
// Equivalent to: flock --shared RECORD COMMAND
func (l BusyLock) Wait() {
	if l.file != nil {
		_ = flock(l.file, lockSh) // if this fails, the lock stays exclusive, and no other process ends the attachment
	}
}

func (l BusyLock) Close() error {
	if l.file == nil {
		return nil
	}
	return l.file.Close()
}

// Unattended returns the IDs of ending attachments whose processes wait for the node's lock, or were killed. A
// process that has the node's lock may end these attachments.
func Unattended() ([]string, error) {
	files, err := os.ReadDir(recordsDir)
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return nil, fmt.Errorf("list endpoint records: %w", err)
	}
	var ids []string
	for _, f := range files {
		id, ok := strings.CutSuffix(f.Name(), endingSuffix)
		if !ok || CheckID(id) != nil {
			continue
		}
		if busy, err := Busy(id); err == nil && !busy {
			ids = append(ids, id)
		}
	}
	return ids, nil
}

// OthersEnding reports whether any attachment other than id is ending. It returns false if the directory can't be
// read.
func OthersEnding(id string) bool {
	files, _ := os.ReadDir(recordsDir)
	return slices.ContainsFunc(files, func(f os.DirEntry) bool {
		return strings.HasSuffix(f.Name(), endingSuffix) && f.Name() != id+endingSuffix
	})
}

// Busy reports whether a process is making or ending the attachment. A process that has called BusyLock.Wait doesn't
// count.
//
// Equivalent to: ! flock --nonblock --shared RECORD true
func Busy(id string) (bool, error) {
	locked, err := tryLock(path(id), lockSh)
	if errors.Is(err, fs.ErrNotExist) {
		locked, err = tryLock(endingPath(id), lockSh)
	}
	return locked, ignoreNotExist(err)
}

// Abandoned returns true if the attachment is ending, and no process is ending it: the process that began is gone.
//
// Equivalent to: flock --nonblock ENDING-RECORD true
func Abandoned(id string) (bool, error) {
	locked, err := tryLock(endingPath(id), lockEx)
	if errors.Is(err, fs.ErrNotExist) {
		return false, nil
	}
	return !locked && err == nil, err
}

func ignoreNotExist(err error) error {
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	return err
}

func openRecord(id string) (*os.File, error) {
	f, err := os.Open(path(id))
	if errors.Is(err, fs.ErrNotExist) {
		f, err = os.Open(endingPath(id))
	}
	return f, err
}
