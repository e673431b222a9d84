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

// Dir is a source that reads all manifests in the directory Path and in the directories below it.
type Dir struct {
	Path string
	// With IgnoreBroken, Dir starts even if files can't be parsed, and waits only for files that are being written.
	// Without IgnoreBroken, Dir returns no objects until it has parsed each file that may have a policy.
	IgnoreBroken bool
	// Node is the name of this node. Kubelet appends this name to the names of static pods. If Node is empty, Dir adds no
	// static pods.
	Node string

	files map[string]*file
	dirs  map[string]bool
	// started is true once merge has returned objects. From then on, merge always returns objects.
	started bool
	last    policy.Objects
	report  atomic.Pointer[[]agentapi.File]
	view    atomic.Pointer[view]
}

// graceTime is how long the objects of a missing or empty file stay in force. Editors remove or empty the old file
// before they write the new one.
const graceTime = 250 * time.Millisecond

// recheckTime is how often Dir tries to read a file that a process has open for writing. Another try is needed, because
// the kernel reports the close before it releases the file (__fput in fs/file_table.c).
const recheckTime = 10 * time.Millisecond

// relistInterval is how often Dir lists all files, even without an event. Some changes cause no event: changes of a
// link's target outside of the directory, and changes that another machine makes.
const relistInterval = 10 * time.Second

// Run reads all files, and then each file that changes, until ctx ends. It calls the function update once at the start
// and after each change. The error that it passes to that function names the files and parts that can't be read. The
// delta is nil as long as Dir can't start (see IgnoreBroken). Run returns an error if it can't list or watch the
// directory.
func (d *Dir) Run(ctx context.Context, update func(*policy.Delta, error)) error {
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
	first, change, now := true, dirwatch.Change{Lost: true}, time.Now()
	for {
		changed, err := d.read(change, w.Watch)
		if err != nil {
			return err
		}
		forgotten, left := d.dropGone(now)
		if first || changed || forgotten {
			update(d.delta())
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
		now = time.Now()
		for name, f := range d.files {
			if f.busy || !f.gone.IsZero() {
				change.Names = append(change.Names, name)
			}
			if !f.gone.IsZero() && now.Sub(f.gone) >= graceTime {
				change.Lost = true // the file's objects may be in another file now, whose event isn't handled yet
			}
		}
	}
}

func (d *Dir) delta() (*policy.Delta, error) {
	now, err := d.merge()
	if now == nil {
		return nil, err
	}
	delta := policy.Difference(d.last, *now)
	d.last = *now
	return delta, err
}

// Check reads the directory once, and returns the objects and the error of Run's first update. The objects are nil if
// an agent couldn't start with them.
func (d *Dir) Check() (*policy.Objects, error) {
	if _, err := d.read(dirwatch.Change{Lost: true}, func(map[string]bool) error { return nil }); err != nil {
		return nil, err
	}
	return d.merge()
}

// Files returns each file with the state of each of its objects, at the last update. Before the first update it returns
// nil. Any goroutine may call it.
func (d *Dir) Files() []agentapi.File {
	if r := d.report.Load(); r != nil {
		return *r
	}
	return nil
}

// dropGone removes files that have been missing or empty for graceTime, and their objects. The caller must have read
// these files after the time in the parameter now: a file may have come back, although its event hasn't been handled
// yet. dropGone doesn't remove a broken link, but marks the link as unreadable. When the returned channel has a
// message, the caller must call dropGone again. The channel is nil if no call is needed.
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
	// The kernel reports no event for files that were made in a new directory before it was watched. So the loop lists
	// the tree again until there is no new directory.
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

func (d *Dir) changesTree(name string) bool {
	if !isManifest(name) || d.dirs[name] {
		return true
	}
	info, err := os.Stat(filepath.Join(d.Path, name))
	return err == nil && info.IsDir()
}

// errBrokenLink means that a symbolic link's target doesn't exist. The target may appear later and have a policy, so
// the link counts as a file that may have one.
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

// setUnreadable records that the whole file can't be read. The last good versions of its objects stay in force.
func (d *Dir) setUnreadable(name string, err error) (changed bool) {
	f := d.files[name]
	if f == nil {
		f = &file{}
		d.files[name] = f
	}
	was := f.unparsed
	f.update(content{unparsed: []unparsed{{err: err, mayContainPolicy: !errors.Is(err, dirwatch.ErrNoFile)}}})
	return len(was) != 1 || was[0].err.Error() != err.Error()
}

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
		f.gone = time.Time{}
		return !d.started && f.empty() && !was
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
