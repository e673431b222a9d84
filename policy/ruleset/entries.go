package ruleset

import (
	"iter"
	"net/netip"

	"github.com/weir-net/weir/internal/ordered"
)

// Entries has the entries of a set, ordered by Element.Compare, with one entry for each element. A value of this type
// never changes: With and Without return a new value, which shares most of its memory with the old value. The zero
// value has no entries.
type Entries struct{ of ordered.Map[Element, string] }

var noEntries = ordered.New[Element, string](Element.Compare)

// EntriesOf returns the entries of the list. If several entries have the same element, it keeps the entry with the
// alphabetically first comment. EntriesOf may reorder the list.
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

// Get returns the element's comment. ok is false if there is no entry with this element.
func (e Entries) Get(element Element) (comment string, ok bool) { return e.of.Get(element) }

func (e Entries) last(among func(Element) bool) (Element, bool) { return e.of.Last(among) }

// HasAddress reports whether an entry is for exactly this address, perhaps with a port or a link.
func (e Entries) HasAddress(a netip.Addr) bool {
	last, ok := e.of.Last(func(e Element) bool { return e.Prefix.Addr().Compare(a) <= 0 })
	return ok && last.Prefix == netip.PrefixFrom(a, a.BitLen())
}

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

// With returns the entries and the added one. The added entry replaces an entry with the same element.
func (e Entries) With(added Entry) Entries {
	if e.Len() == 0 {
		e.of = noEntries
	}
	return Entries{e.of.With(added.Element, added.Comment)}
}

// WithAll returns the entries and the added entries, as With does for one entry. It may reorder the slice of
// added entries.
func (e Entries) WithAll(added ...Entry) Entries {
	return Entries{e.of.WithAll(EntriesOf(added...).of)}
}

func (e Entries) First(n int) Entries { return Entries{e.of.First(n)} }

// UpTo returns how many entries of e come before the last entry of o, or have the same element as this entry.
func (e Entries) UpTo(o Entries) int {
	last, some := o.last(func(Element) bool { return true })
	if !some {
		return 0
	}
	return e.of.Rank(last)
}

func (e Entries) Without(element Element) Entries { return Entries{e.of.Without(element)} }

// Diff yields, in order, the changes that turn the entries e into the entries of the parameter now. It skips memory
// that both share.
func (e Entries) Diff(now Entries) iter.Seq[ordered.Change[Element, string]] {
	return e.of.Diff(now.of)
}

// Equal reports whether the entries and their comments are equal. It skips memory that both share.
func (e Entries) Equal(o Entries) bool { return e.of.Equal(o.of) }

// Same reports whether the entries share all their memory. It takes hardly any time, but may return false for equal
// entries.
func (e Entries) Same(o Entries) bool { return e.of.Same(o.of) }
