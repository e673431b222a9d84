package nftnl

import (
	"net/netip"
	"slices"

	"golang.org/x/sys/unix"

	netattrs "github.com/weir-net/weir/internal/attrs"
)

// Sets returns the sets and maps of the table, by name.
//
// Equivalent to: nft list sets FAMILY; nft list maps FAMILY
func (r *Reader) Sets(t Table) (sets map[string]SetState, err error) {
	body := attrs{}.text(unix.NFTA_SET_TABLE, t.Name)
	err = r.list(unix.NFT_MSG_GETSET, t, body, func() { sets = map[string]SetState{} }, func(answer []byte) bool {
		table, s := parseSet(t.Family, answer)
		if table == t.Name {
			sets[s.Name] = s
		}
		return true
	})
	return sets, wrap(err, "list the sets of table %s", t.Name)
}

// SetState is a set that the kernel has.
type SetState struct {
	Set
	Known bool // false if no Layout describes the set
}

func parseSet(family uint8, answer []byte) (table string, s SetState) {
	var kind, length, flags uint32
	data := uint32(0)
	for a, value := range netattrs.In(answer) {
		switch a {
		case unix.NFTA_SET_TABLE:
			table = netattrs.Text(value)
		case unix.NFTA_SET_NAME:
			s.Name = netattrs.Text(value)
		case unix.NFTA_SET_FLAGS:
			flags = numberOf(value)
		case unix.NFTA_SET_KEY_TYPE:
			kind = numberOf(value)
		case unix.NFTA_SET_KEY_LEN:
			length = numberOf(value)
		case unix.NFTA_SET_DATA_TYPE:
			data = numberOf(value)
		case unix.NFTA_SET_USERDATA:
			s.Comment = netattrs.Text(userdataIn(value, commentOfASet))
		}
	}
	s.Layout, s.Known = layoutOf(family, kind, length, flags)
	if s.Layout == Verdicts && data != unix.NFT_DATA_VERDICT {
		s.Known = false
	}
	return table, s
}

// Each passes every element of the set to the function each, until that function returns false. If the set changes
// during the reading, Each starts from the beginning. Each calls the function begin before each attempt, the first one
// included. odd is true if the set has an element that its layout doesn't allow.
//
// Equivalent to: nft list set FAMILY TABLE SET
func (r *Reader) Each(t Table, s Set, begin func(), each func(Element) bool) (odd bool, err error) {
	body := attrs{}.text(unix.NFTA_SET_ELEM_LIST_TABLE, t.Name).text(unix.NFTA_SET_ELEM_LIST_SET, s.Name)
	var ends []end
	start := func() { odd, ends = false, nil; begin() }
	err = r.list(unix.NFT_MSG_GETSETELEM, t, body, start, func(answer []byte) bool {
		for kind, list := range netattrs.In(answer) {
			if kind != unix.NFTA_SET_ELEM_LIST_ELEMENTS {
				continue
			}
			for _, one := range netattrs.In(list) {
				e, last, ok := s.Layout.element(t.Family, one)
				switch {
				case !ok:
					odd = true
				case s.Layout == Network:
					ends = append(ends, end{e, last})
				case last:
					odd = true
				case !each(e):
					return false
				}
			}
		}
		return true
	})
	if err == nil && s.Layout == Network {
		odd = !networks(ends, each) || odd
	}
	return odd, wrap(err, "list set %s of table %s", s.Name, t.Name)
}

type end struct {
	Element
	last bool
}

func networks(ends []end, each func(Element) bool) (ok bool) {
	slices.SortFunc(ends, func(a, b end) int {
		if c := a.Prefix.Addr().Compare(b.Prefix.Addr()); c != 0 || a.last == b.last {
			return c
		}
		if a.last { // at the same address, one network ends before the next one begins
			return -1
		}
		return 1
	})
	ok = true
	for i := 0; i < len(ends); i++ {
		first := ends[i]
		if first.last {
			if !first.Prefix.Addr().IsUnspecified() { // nft marks the space before the first network in this way
				ok = false
			}
			continue
		}
		var behind netip.Addr // without a value, the network reaches to the last address
		if i+1 < len(ends) && ends[i+1].last {
			behind = ends[i+1].Prefix.Addr()
			i++
		} else if i+1 < len(ends) {
			ok = false
			continue
		}
		p, is := between(first.Prefix.Addr(), behind)
		if !is {
			ok = false
			continue
		}
		if first.Prefix = p; !each(first.Element) {
			return ok
		}
	}
	return ok
}

func (l Layout) element(family uint8, data []byte) (e Element, last, ok bool) {
	var verdict Verdict
	var words string
	for kind, value := range netattrs.In(data) {
		switch kind {
		case unix.NFTA_SET_ELEM_KEY:
			e, ok = l.parse(family, valueIn(value))
		case unix.NFTA_SET_ELEM_DATA:
			verdict, _ = parseVerdict(value)
		case unix.NFTA_SET_ELEM_FLAGS:
			last = numberOf(value)&unix.NFT_SET_ELEM_INTERVAL_END != 0
			ok = ok && numberOf(value)&^unix.NFT_SET_ELEM_INTERVAL_END == 0
		case unix.NFTA_SET_ELEM_USERDATA:
			words = netattrs.Text(userdataIn(value, commentOfAnObject))
		}
	}
	e.Verdict, e.Comment = verdict, words
	return e, last, ok
}
