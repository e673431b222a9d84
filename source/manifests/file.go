package manifests

import (
	"errors"
	"maps"
	"os"
	"slices"
	"syscall"
	"time"
)

// file is what one file says.
type file struct {
	// entries are its objects that are in force, or would be, and what there is to say of them.
	entries  []entry
	unparsed []unparsed
	// last are the good versions of its objects, newest first seen last, by key.
	last map[string]entry
	// seen says that all of it could be parsed once: what it holds is known then, be it as it was.
	seen bool
	// gone is when the file was found missing or empty. Editors save by moving the old file away before they write the
	// new one, so what it said stays in force for a while.
	gone time.Time
	// busy says that somebody had it open for writing when it was to be read.
	busy bool
	stat stat
}

// stat tells whether a file has changed since.
type stat struct {
	dev, ino     uint64
	size         int64
	mtime, ctime syscall.Timespec
}

func statOf(info os.FileInfo) stat {
	s, ok := info.Sys().(*syscall.Stat_t)
	if !ok {
		return stat{}
	}
	return stat{s.Dev, s.Ino, s.Size, s.Mtim, s.Ctim}
}

// take has the file say what was read. Of an object that can't be told from what was read, its last good version holds.
func (f *file) update(c content) {
	present := map[string]bool{}
	for _, e := range c.entries {
		present[e.key] = true
	}
	var inForce []entry
	next := map[string]entry{}
	keep := func(key string, instead entry) {
		e := f.last[key]
		e.kept, e.where = true, instead.where
		e.problems = instead.problems
		inForce = append(inForce, e)
		next[key] = f.last[key]
	}
	for _, e := range c.entries {
		if _, known := f.last[e.key]; known && e.damage == noSelector {
			keep(e.key, e)
			continue
		}
		if e.damage == noNamespace {
			found := false
			for _, key := range slices.Sorted(maps.Keys(f.last)) {
				if was := f.last[key]; was.policy != nil && was.policy.Name == e.name && !present[key] {
					keep(key, e)
					found = true
				}
			}
			if found {
				continue
			}
		}
		inForce = append(inForce, e)
		if was, known := f.last[e.key]; known && e.damage == denying {
			next[e.key] = was
		}
		if e.key != "" && (e.damage == intact || e.damage == partly) {
			next[e.key] = e
		}
	}
	for _, key := range slices.Sorted(maps.Keys(f.last)) {
		if _, there := next[key]; len(c.unparsed) > 0 && !there && !present[key] {
			keep(key, entry{where: c.unparsed[0].where})
		}
	}
	f.entries, f.unparsed, f.last = inForce, c.unparsed, next
	f.seen = f.seen || len(c.unparsed) == 0
}

// blocks says that the file may hold a policy of which nothing is known.
func (f *file) mayHidePolicy() bool {
	for _, u := range f.unparsed {
		if u.mayHoldPolicy && !f.seen {
			return true
		}
	}
	return slices.ContainsFunc(f.entries, func(e entry) bool { return e.damage == noNamespace })
}

// is says that the file as a whole can't be read, for that reason.
func (f *file) failedWith(err error) bool {
	return len(f.unparsed) == 1 && errors.Is(f.unparsed[0].err, err)
}

// empty says that nothing comes from it.
func (f *file) empty() bool { return len(f.entries)+len(f.unparsed) == 0 }
