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

	"github.com/weir-net/weir/agentapi"
	"github.com/weir-net/weir/internal/dirwatch"
	"github.com/weir-net/weir/policy"
)

// Dir is a directory of manifests, with all directories below it: the files that "kubectl apply -R -f" reads.
type Dir struct {
	Path string
	// IgnoreBroken makes Dir return a first state even if some files, of which nothing is known, may have a policy. Dir
	// still waits while such a file is being written.
	IgnoreBroken bool
	// Node is this node's name. Kubelet appends it to the names of static pods. Empty: there is no kubelet.
	Node string

	files map[string]*file
	dirs  map[string]bool
	// started is true once the content of all files was known at the same time. Before that, a file that can't be read may
	// have a policy that isn't in force.
	started bool
	report  atomic.Pointer[[]agentapi.File]
}

// graceTime is how long the objects of a file that is missing or empty stay in force. Removing a policy allows more
// traffic, so a delay does no harm.
const graceTime = 250 * time.Millisecond

// recheckTime is how soon a file that was being written is read again. The kernel reports the close a little before it
// counts the writer as gone (__fput in fs/file_table.c), so the file can't always be read at that event.
const recheckTime = 10 * time.Millisecond

// relistInterval is how often the tree is listed without an event. Some changes cause no event: changes of a link's
// target outside of the tree, and changes of a file on another machine's disk.
const relistInterval = 10 * time.Second

// Run reads the directory, and then each file that is written and closed, until ctx ends. It calls update after each
// change with the objects in force, and with an error for files that can't be read as they are written. The objects are
// nil while there has been no good state. Run returns an error if the directory can't be watched.
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

// Check reads the directory once. The objects are nil if an agent could not start with them.
func (d *Dir) Check() (*policy.Objects, error) {
	if _, err := d.read(dirwatch.Change{Lost: true}, func(map[string]bool) error { return nil }); err != nil {
		return nil, err
	}
	return d.merge()
}

// Files returns the result of the last read: each file with its objects, and the objects left out with the reasons.
func (d *Dir) Files() []agentapi.File {
	if r := d.report.Load(); r != nil {
		return *r
	}
	return nil
}

// dropGone drops the files that have been missing for graceTime, and returns a channel that says when to look again:
// nil if no file is missing.
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
			changed = true
			if d.isBrokenLink(name) {
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

// read reads the files that have changed, and reports whether an object or an error has changed. It calls watch with
// the directories that exist.
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
	// Files that come into a new directory before it is watched cause no event, so list the tree once more.
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

// changesTree reports whether the name may be more than a file: a directory, or a link to one. kubelet changes all
// files of a mounted ConfigMap at once, by renaming the directory ..data, to which they link.
func (d *Dir) changesTree(name string) bool {
	if !isManifest(name) || d.dirs[name] {
		return true
	}
	info, err := os.Stat(filepath.Join(d.Path, name))
	return err == nil && info.IsDir()
}

// errBrokenLink means that a link's target doesn't exist, perhaps not yet, such as before a disk is mounted. The target
// may be a policy.
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

// setUnreadable records that the file can't be read at all, and reports whether this error is new. A device, a socket
// or a pipe holds no policy.
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

// readFile reads the file, and reports whether its objects or errors have changed. With changedOnly it skips a file
// that looks as it did when it was last read.
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
		return !d.started && f.empty() && !was // its earlier objects stay in force
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
