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
	"sync/atomic"
	"time"

	"github.com/weir-net/weir/internal/dirwatch"
	"github.com/weir-net/weir/policy"
	"github.com/weir-net/weir/policy/report"
)

// Dir is a directory of manifests, with all directories below it: the files that "kubectl apply -R -f" reads.
type Dir struct {
	Path string
	// IgnoreBroken has the first state be known though there are files of which nothing is known.
	IgnoreBroken bool
	// Node is this node's name, which kubelet puts behind those of static pods; empty if there is no kubelet.
	Node string

	files map[string]*file
	dirs  map[string]bool
	// started says that once there was no file of which nothing was known. Before, what such a file should forbid
	// isn't known.
	started bool
	report  atomic.Pointer[[]report.File]
}

// grace is how long a file that is missing or empty stays in force. To take a policy away opens; that may wait.
const graceTime = 250 * time.Millisecond

// recheck is how soon a file is looked at again that was being written. The kernel tells of the close a little before
// it counts the writer as gone (__fput in fs/file_table.c), so that event may come too early to read the file.
const recheckTime = 10 * time.Millisecond

// relist is how often the tree is listed without notice, as nobody tells when a link's target changes elsewhere, or a
// file on another machine's disk.
const relistInterval = 10 * time.Second

// Run reads the directory, and again each file that was written and closed, until ctx ends. update gets what is in
// force after each change, and what is wrong with files that don't count as they are; while the objects are nil there
// has been no good state. Run's error says that the directory can't be watched (any more).
func (d *Dir) Run(ctx context.Context, update func(*policy.Objects, error)) error {
	w, err := dirwatch.NewTree(d.Path)
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
	listing := time.NewTicker(relistInterval)
	defer listing.Stop()
	first, change := true, dirwatch.Change{Lost: true}
	for {
		changed, err := d.read(change, w.Watch)
		if err != nil {
			return err
		}
		forgotten, left := d.dropGone(time.Now())
		if first || changed || forgotten {
			update(d.merge())
		}
		first, change = false, dirwatch.Change{}
		select {
		case <-ctx.Done():
			return nil
		case err := <-ended:
			return err
		case change = <-changes:
		case <-listing.C:
			change.Lost = true
		case <-left:
		}
		for name, f := range d.files {
			if f.busy {
				change.Names = append(change.Names, name)
			}
		}
	}
}

// Check reads the directory once. The objects are nil if an agent would not start with them.
func (d *Dir) Check() (*policy.Objects, error) {
	if _, err := d.read(dirwatch.Change{Lost: true}, func(map[string]bool) error { return nil }); err != nil {
		return nil, err
	}
	return d.merge()
}

// Files says what was read last, and what was left out and why.
func (d *Dir) Files() []report.File {
	if r := d.report.Load(); r != nil {
		return *r
	}
	return nil
}

// forget drops the files that were gone for long enough, and returns when to look again; nil, never, if none is gone.
func (d *Dir) dropGone(now time.Time) (changed bool, again <-chan time.Time) {
	var next time.Duration
	for name, f := range d.files {
		left := recheckTime
		if !f.busy {
			if f.gone.IsZero() {
				continue
			}
			left = graceTime - now.Sub(f.gone)
		}
		if left <= 0 {
			if changed = true; d.isBrokenLink(name) {
				f.gone = time.Time{}
				d.setUnreadable(name, errBrokenLink)
				continue
			}
			delete(d.files, name)
		} else if next == 0 || left < next {
			next = left
		}
	}
	if next == 0 {
		return changed, nil
	}
	return changed, time.After(next)
}

// read reads what has changed. watch is told which directories there are.
func (d *Dir) read(change dirwatch.Change, watch func(map[string]bool) error) (changed bool, err error) {
	if d.files == nil {
		d.files = map[string]*file{}
	}
	all := change.Lost || slices.ContainsFunc(change.Names, d.changesTree)
	for _, name := range change.Names {
		if isManifest(name) && !d.dirs[name] {
			changed = d.readFile(name, false) || changed
		}
	}
	if !all {
		return changed, nil
	}
	t, err := walk(d.Path)
	if err != nil {
		return changed, err
	}
	// What comes into a new directory before it is watched is told by nobody: it is listed once more.
	for !maps.Equal(t.dirs, d.dirs) {
		d.dirs = t.dirs
		if err := watch(d.dirs); err != nil && !errors.Is(err, fs.ErrNotExist) {
			return changed, err
		}
		if t, err = walk(d.Path); err != nil {
			return changed, err
		}
	}
	here := map[string]bool{}
	for _, name := range t.files {
		here[name] = true
		changed = d.readFile(name, true) || changed
	}
	for name, err := range t.errs {
		here[name] = true
		changed = d.setUnreadable(name, err) || changed
	}
	for name := range d.files {
		if !here[name] {
			changed = d.readFile(name, false) || changed
		}
	}
	return changed, nil
}

// changesTree says whether more than the file of that name may have changed: a directory, or a link to one. kubelet
// changes all files of a mounted ConfigMap at once, by renaming the directory ..data that they link to.
func (d *Dir) changesTree(name string) bool {
	if !isManifest(name) || d.dirs[name] {
		return true
	}
	info, err := os.Stat(filepath.Join(d.Path, name))
	return err == nil && info.IsDir()
}

// errNowhere says of a link that there is nothing that it leads to: maybe not yet, or not now, as before a disk is
// mounted. That isn't known to be no policy.
var errBrokenLink = errors.New("it is a link that leads nowhere")

func (d *Dir) isBrokenLink(name string) bool {
	path := filepath.Join(d.Path, name)
	info, err := os.Lstat(path)
	if err != nil || info.Mode()&fs.ModeSymlink == 0 {
		return false
	}
	_, err = os.Stat(path)
	return errors.Is(err, fs.ErrNotExist)
}

// fail notes what can't be read at all. A device, a socket or a pipe holds no policy.
func (d *Dir) setUnreadable(name string, err error) (changed bool) {
	f := d.files[name]
	if f == nil {
		f = &file{}
		d.files[name] = f
	}
	was := f.unparsed
	f.update(content{unparsed: []unparsed{{err: err, mayHoldPolicy: !errors.Is(err, dirwatch.ErrNoFile)}}})
	return len(was) != 1 || was[0].err.Error() != err.Error()
}

// readFile says whether what the file says, or what is wrong with it, has changed. changedOnly leaves out a file that
// looks as it did when it was read.
func (d *Dir) readFile(name string, changedOnly bool) (changed bool) {
	path := filepath.Join(d.Path, name)
	info, err := os.Stat(path)
	f := d.files[name]
	if err == nil && f != nil && changedOnly && f.gone.IsZero() && !f.busy && f.stat == statOf(info) {
		return false
	}
	var data []byte
	switch {
	case err == nil && info.IsDir():
		err = fs.ErrNotExist
	case err == nil && !info.Mode().IsRegular():
		err = dirwatch.ErrNoFile
	case err == nil:
		data, err = dirwatch.ReadFile(path)
	}
	missing := errors.Is(err, fs.ErrNotExist) || (err == nil && len(bytes.TrimSpace(data)) == 0)
	switch {
	case missing && (f == nil || len(f.entries) == 0 || f.failedWith(errBrokenLink)) && d.isBrokenLink(name):
		return d.setUnreadable(name, errBrokenLink)
	case missing && (f == nil || f.empty()):
		delete(d.files, name)
		return f != nil && f.busy
	case f == nil:
		f = &file{}
		d.files[name] = f
	}
	was := f.busy
	if f.busy = errors.Is(err, dirwatch.ErrBeingWritten); f.busy {
		return !d.started && f.empty() && !was // what it said before holds
	}
	if missing {
		if f.gone.IsZero() {
			f.gone = time.Now()
		}
		changed = len(f.unparsed) > 0
		f.unparsed = nil
		return changed
	}
	f.gone = time.Time{}
	if err != nil {
		f.stat = stat{}
		return d.setUnreadable(name, err)
	}
	f.stat = statOf(info)
	f.update(parse(data))
	return true
}
