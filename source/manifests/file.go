package manifests

import (
	"errors"
	"maps"
	"slices"
	"time"
)

type file struct {
	entries  []entry
	unparsed []unparsed
	last     map[string]entry
	seen     bool
	gone     time.Time
	// busy is true if a process had the file open for writing when Dir last tried to read it.
	busy bool
	stat stat
}

// update replaces the file's objects. If a policy's selector or namespace can't be read any more, the policy's last
// good version stays in force. If a document can't be parsed, objects that are now missing stay in force, because the
// document may contain them.
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
			known := false
			for _, key := range slices.Sorted(maps.Keys(f.last)) {
				if was := f.last[key]; was.policy != nil && was.policy.Name == e.name && !present[key] {
					keep(key, e)
					known = true
				}
			}
			if known {
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

func (f *file) mayHidePolicy() bool {
	for _, u := range f.unparsed {
		if u.mayContainPolicy && !f.seen {
			return true
		}
	}
	return slices.ContainsFunc(f.entries, func(e entry) bool { return e.damage == noNamespace })
}

func (f *file) failedWith(err error) bool {
	return len(f.unparsed) == 1 && errors.Is(f.unparsed[0].err, err)
}

func (f *file) empty() bool { return len(f.entries)+len(f.unparsed) == 0 }
