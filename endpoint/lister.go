package endpoint

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"slices"
	"strings"
	"time"
)

// Lister lists the records and remembers them. It reads a file again if the file has changed, or if the record is
// broken. It also does so if the file's last change was less than a second old at the previous reading (see settled). A
// Lister isn't safe for concurrent use.
type Lister struct {
	last map[string]listed // the records of the last List, by ID
	all  []Endpoint        // the last result of List
}

type listed struct {
	file   fs.FileInfo
	record Endpoint
}

// settled is how old a file's modification time must be to identify a version of the file. A file system's clock may
// be coarse, so two changes in quick succession may leave the same time.
const settled = time.Second

// List does the same as the function List. Callers must not change the result, because List returns it again while no
// file changes.
func (l *Lister) List() ([]Endpoint, error) {
	entries, err := os.ReadDir(recordsDir)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("list endpoint records: %w", err)
	}
	ids := make([]string, 0, len(entries))
	for _, entry := range entries {
		if id, ok := strings.CutSuffix(entry.Name(), suffix); ok {
			ids = append(ids, id)
		}
	}
	slices.Sort(ids)
	if l.unchanged(ids) {
		return l.all, nil
	}
	now := make(map[string]listed, len(ids))
	all := make([]Endpoint, 0, len(ids))
	broken := BrokenRecords{}
	for _, id := range ids {
		r, err := l.load(id)
		switch {
		case errors.Is(err, fs.ErrNotExist): // deleted since the directory was listed
		case err != nil:
			broken[id] = err
		default:
			all = append(all, r.record)
			if r.file != nil {
				now[id] = r
			}
		}
	}
	l.last, l.all = now, all
	if len(broken) > 0 {
		return all, broken
	}
	return all, nil
}

// unchanged reports whether the last result of List is still right: it has exactly the records with these IDs, and
// none of their files has changed.
func (l *Lister) unchanged(ids []string) bool {
	if len(ids) != len(l.last) || len(ids) != len(l.all) {
		return false
	}
	return !slices.ContainsFunc(ids, func(id string) bool {
		was, ok := l.last[id]
		if !ok {
			return true
		}
		file, err := os.Lstat(path(id))
		return err != nil || !was.is(file)
	})
}

// is returns true if the record was read from this file, and the file has not changed since.
func (l listed) is(file fs.FileInfo) bool {
	return os.SameFile(l.file, file) && l.file.Size() == file.Size() && l.file.ModTime().Equal(file.ModTime())
}

// load returns the record of the attachment id. listed.file is nil if the next List must read the record again.
func (l *Lister) load(id string) (listed, error) {
	file, err := os.Lstat(path(id)) // read before the record, so that List notices a later change
	if err != nil {
		return listed{}, fmt.Errorf("read endpoint record: %w", err)
	}
	if was, ok := l.last[id]; ok && was.is(file) {
		return was, nil
	}
	e, err := Load(id)
	if err != nil {
		return listed{}, err
	}
	if age := time.Since(file.ModTime()); !file.Mode().IsRegular() || age < settled {
		file = nil
	}
	return listed{file, *e}, nil
}
