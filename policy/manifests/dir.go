package manifests

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/weir-net/weir/internal/dirwatch"
	"github.com/weir-net/weir/policy"
)

// Dir is a directory of manifests: the files directly in it whose names end in .yaml, .yml or .json and don't begin
// with a dot.
type Dir struct {
	Path  string
	files map[string]*file
	// started says that once all files were good. Before, nothing is known of what a broken file should forbid.
	started bool
}

// file is what one file says. While it is broken or being written, what it said before stays in force.
type file struct {
	good policy.Objects
	err  error
	// gone is when the file was found missing or empty. Editors save by moving the old file away before they write the
	// new one, so what it said stays in force for a while.
	gone time.Time
	// busy says that somebody had it open for writing when it was to be read.
	busy bool
}

// grace is how long a file that is missing or empty stays in force. To take a policy away opens; that may wait.
const grace = 250 * time.Millisecond

// recheck is how soon a file is looked at again that was being written. The kernel tells of the close a little before it
// counts the writer as gone (__fput in fs/file_table.c), so that event may come too early to read the file.
const recheck = 10 * time.Millisecond

// Run reads the directory, and again each file that was written and closed, until ctx ends. update gets what is in
// force after each change, and what is wrong with files that don't count as they are; while the objects are nil there
// has been no good state. Run's error says that the directory can't be watched (any more).
func (d *Dir) Run(ctx context.Context, update func(*policy.Objects, error)) error {
	w, err := dirwatch.New(d.Path)
	if err != nil {
		return err
	}
	defer func() { _ = w.Close() }()
	changes, ended := make(chan dirwatch.Change), make(chan error, 1)
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	go func() {
		for {
			change, err := w.Next()
			if err != nil {
				ended <- fmt.Errorf("directory of manifests %s: %w", d.Path, err)
				return
			}
			select {
			case changes <- change:
			case <-ctx.Done():
				return
			}
		}
	}()
	first, change := true, dirwatch.Change{Lost: true}
	for {
		changed, err := d.read(change)
		if err != nil {
			return err
		}
		forgotten, left := d.forget(time.Now())
		if first || changed || forgotten {
			update(d.merged())
		}
		first, change = false, dirwatch.Change{}
		select {
		case <-ctx.Done():
			return nil
		case err := <-ended:
			return err
		case change = <-changes:
		case <-left:
		}
		for name, f := range d.files {
			if f.busy {
				change.Names = append(change.Names, name)
			}
		}
	}
}

// forget drops the files that were gone for long enough, and returns when to look again; nil, never, if none is gone.
func (d *Dir) forget(now time.Time) (changed bool, again <-chan time.Time) {
	var next time.Duration
	for name, f := range d.files {
		left := recheck
		if !f.busy {
			if f.gone.IsZero() {
				continue
			}
			left = grace - now.Sub(f.gone)
		}
		if left <= 0 {
			delete(d.files, name)
			changed = true
		} else if next == 0 || left < next {
			next = left
		}
	}
	if next == 0 {
		return changed, nil
	}
	return changed, time.After(next)
}

func (d *Dir) read(change dirwatch.Change) (changed bool, err error) {
	if d.files == nil {
		d.files = map[string]*file{}
	}
	names := change.Names
	// kubelet changes all files of a mounted ConfigMap at once, by renaming the directory ..data that they link to.
	all := change.Lost || slices.ContainsFunc(names, func(n string) bool { return strings.HasPrefix(n, "..") })
	if all {
		entries, err := os.ReadDir(d.Path)
		if err != nil {
			return false, fmt.Errorf("read the directory of manifests: %w", err)
		}
		names = slices.Collect(maps.Keys(d.files))
		for _, e := range entries {
			names = append(names, e.Name())
		}
	}
	for _, name := range names {
		if !strings.HasPrefix(name, ".") && slices.Contains([]string{".yaml", ".yml", ".json"}, filepath.Ext(name)) {
			changed = d.readFile(name) || changed
		}
	}
	return changed, nil
}

// readFile says whether what the file says, or what is wrong with it, has changed.
func (d *Dir) readFile(name string) (changed bool) {
	path := filepath.Join(d.Path, name)
	if info, err := os.Stat(path); err == nil && info.IsDir() {
		return false
	}
	data, err := dirwatch.ReadFile(path)
	f := d.files[name]
	switch {
	case errors.Is(err, fs.ErrNotExist) && f == nil:
		return false
	case f == nil:
		f = &file{}
		d.files[name] = f
	}
	f.busy = errors.Is(err, dirwatch.ErrBeingWritten)
	var objects policy.Objects
	if err == nil {
		objects, err = Parse(name, data)
	} else if !errors.Is(err, fs.ErrNotExist) {
		err = fmt.Errorf("%s: %w", name, err)
	}
	switch {
	case f.busy && (d.started || f.err != nil):
		return false // what it said before holds, and nothing is wrong with that
	case errors.Is(err, fs.ErrNotExist) && f.good.Empty():
		delete(d.files, name)
	case errors.Is(err, fs.ErrNotExist), err == nil && len(bytes.TrimSpace(data)) == 0:
		if f.gone.IsZero() {
			f.gone = time.Now()
		}
		changed = f.err != nil
		f.err = nil
		return changed
	case err != nil:
		f.err, f.gone = err, time.Time{}
	default:
		*f = file{good: objects}
	}
	return true
}

// merged puts the files' objects together. An object that two files have is an error, and that of the file whose name
// comes first counts, so that it doesn't depend on which was changed last.
func (d *Dir) merged() (*policy.Objects, error) {
	var all policy.Objects
	var errs []error
	owner := map[string]string{}
	first := func(file, object string) bool {
		if other, ok := owner[object]; ok {
			errs = append(errs, fmt.Errorf("%s: %s is in %s already", file, object, other))
			return false
		}
		owner[object] = file
		return true
	}
	for _, name := range slices.Sorted(maps.Keys(d.files)) {
		f := d.files[name]
		if f.err != nil {
			errs = append(errs, f.err)
		}
		for _, n := range f.good.Namespaces {
			if first(name, "Namespace "+n.Name) {
				all.Namespaces = append(all.Namespaces, n)
			}
		}
		for _, p := range f.good.Pods {
			if first(name, "Pod "+p.Namespace+"/"+p.Name) {
				all.Pods = append(all.Pods, p)
			}
		}
		for _, n := range f.good.Nodes {
			if first(name, "Node "+n.Name) {
				all.Nodes = append(all.Nodes, n)
			}
		}
		for _, p := range f.good.Policies {
			if first(name, "NetworkPolicy "+p.Namespace+"/"+p.Name) {
				all.Policies = append(all.Policies, p)
			}
		}
	}
	d.started = d.started || len(errs) == 0
	if !d.started {
		return nil, errors.Join(errs...)
	}
	return &all, errors.Join(errs...)
}
