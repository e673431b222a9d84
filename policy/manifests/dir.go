package manifests

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"

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

// file is what one file says. While it is broken, what it said before stays in force.
type file struct {
	good policy.Objects
	err  error
}

// Run reads the directory, and again each file that was written and closed, until ctx ends. update gets what is in
// force after each change, and what is wrong with files that don't count as they are; while the objects are nil there
// has been no good state. Run's error says that the directory can't be watched (any more).
func (d *Dir) Run(ctx context.Context, update func(*policy.Objects, error)) error {
	w, err := dirwatch.New(d.Path)
	if err != nil {
		return err
	}
	stop := context.AfterFunc(ctx, func() { _ = w.Close() })
	defer func() {
		if stop() {
			_ = w.Close()
		}
	}()
	change := dirwatch.Change{Lost: true}
	for {
		if err := d.read(change); err != nil {
			return err
		}
		update(d.merged())
		change, err = w.Next()
		if ctx.Err() != nil {
			return nil
		}
		if err != nil {
			return fmt.Errorf("directory of manifests %s: %w", d.Path, err)
		}
	}
}

func (d *Dir) read(change dirwatch.Change) error {
	if d.files == nil {
		d.files = map[string]*file{}
	}
	names := change.Names
	if change.Lost {
		entries, err := os.ReadDir(d.Path)
		if err != nil {
			return fmt.Errorf("read the directory of manifests: %w", err)
		}
		names = slices.Collect(maps.Keys(d.files))
		for _, e := range entries {
			names = append(names, e.Name())
		}
	}
	for _, name := range names {
		if !strings.HasPrefix(name, ".") && slices.Contains([]string{".yaml", ".yml", ".json"}, filepath.Ext(name)) {
			d.readFile(name)
		}
	}
	return nil
}

func (d *Dir) readFile(name string) {
	data, err := os.ReadFile(filepath.Join(d.Path, name))
	if errors.Is(err, fs.ErrNotExist) {
		delete(d.files, name)
		return
	}
	f := d.files[name]
	if f == nil {
		f = &file{}
		d.files[name] = f
	}
	if err != nil {
		f.err = fmt.Errorf("%s: %w", name, err)
		return
	}
	objects, err := Parse(name, data)
	if f.err = err; err == nil {
		f.good = objects
	}
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
