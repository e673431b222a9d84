package ruleset

import (
	"iter"

	"github.com/weir-net/weir/internal/ordered"
)

// Entries are the entries of a set, in the order of Element.Compare, one for each element. They never change:
// With and Without return new ones that share nearly all memory. The zero value is empty.
type Entries struct{ of ordered.Map[Element, string] }

var noEntries = ordered.New[Element, string](Element.Compare)

// EntriesOf returns the entries. Of entries with the same element, it keeps the one whose comment sorts first.
// It may reorder the list.
func EntriesOf(list ...Entry) Entries {
	return Entries{ordered.From(Element.Compare, func(yield func(Element, string) bool) {
		for _, e := range Order(list) {
			if !yield(e.Element, e.Comment) {
				return
			}
		}
	})}
}

func (e Entries) Len() int { return e.of.Len() }

// Get returns the element's comment. ok is false if no entry has the element.
func (e Entries) Get(element Element) (comment string, ok bool) { return e.of.Get(element) }

func (e Entries) last(among func(Element) bool) (Element, bool) { return e.of.Last(among) }

// All yields the entries in order.
func (e Entries) All() iter.Seq[Entry] {
	return func(yield func(Entry) bool) {
		for element, comment := range e.of.All() {
			if !yield(Entry{element, comment}) {
				return
			}
		}
	}
}

// With returns the entries with one more. The added entry replaces an entry with the same element.
func (e Entries) With(added Entry) Entries {
	if e.Len() == 0 {
		e.of = noEntries
	}
	return Entries{e.of.With(added.Element, added.Comment)}
}

// Follow brings e up to date with a list. e must have the first entries of the list as it was. The result has the
// entries of the list as it is now: those up to the last element of e, and the next n.
func (e Entries) Follow(was, now Entries, n int) Entries {
	last, some := e.last(func(Element) bool { return true })
	within := func(x Element) bool { return some && x.Compare(last) <= 0 }
	for c := range was.Diff(now) {
		switch {
		case !within(c.Key):
		case c.Has:
			e = e.With(Entry{c.Key, c.Now})
		default:
			e = e.Without(c.Key)
		}
	}
	rest := now.of.All()
	if some {
		rest = now.of.After(last)
	}
	for element, comment := range rest {
		if n--; n < 0 {
			break
		}
		e = e.With(Entry{element, comment})
	}
	return e
}

func (e Entries) Without(element Element) Entries { return Entries{e.of.Without(element)} }

// Diff yields, in order, the changes that turn e into the parameter now. Memory that both share takes no time.
func (e Entries) Diff(now Entries) iter.Seq[ordered.Change[Element, string]] {
	return e.of.Diff(now.of)
}

// Equal reports whether the entries and their comments are the same.
func (e Entries) Equal(o Entries) bool { return e.of.Equal(o.of) }

// Same reports whether the entries share all their memory. It takes no time, and may be false for equal
// entries.
func (e Entries) Same(o Entries) bool { return e.of.Same(o.of) }
