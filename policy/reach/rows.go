package reach

import (
	"cmp"
	"encoding/binary"
	"fmt"
	"slices"

	"github.com/weir-net/weir/conf"
	"github.com/weir-net/weir/policy/ruleset"
)

// Row says that each party in From reaches each party in To on the ports. The numbers in From and To are indexes in
// Matrix.Parties.
type Row struct {
	From   []int  `json:"from"`
	To     []int  `json:"to"`
	Ports  Ports  `json:"ports"`
	Family string `json:"family,omitempty"` // empty if the row is for all families that its parties share
}

// Rows returns all connections of the matrix. Each connection is in exactly one row.
func (m *Matrix) Rows() []Row {
	return m.rows(func(i, j int) cell { return m.between[i][j] })
}

type line struct{ ports, family int32 }

func (c cell) lines() []line {
	if c[conf.IPv4] == c[conf.IPv6] {
		return nonempty(line{c[conf.IPv4], -1})
	}
	if c[conf.IPv4] < 0 || c[conf.IPv6] < 0 { // only connections of one family are possible
		return nonempty(line{max(c[conf.IPv4], c[conf.IPv6]), -1})
	}
	return nonempty(line{c[conf.IPv4], int32(conf.IPv4)}, line{c[conf.IPv6], int32(conf.IPv6)})
}

func nonempty(lines ...line) []line {
	return slices.DeleteFunc(lines, func(l line) bool { return l.ports <= 0 })
}

func (m *Matrix) rows(at func(i, j int) cell) []Row {
	type to struct {
		from    map[line]bits
		classes []int
	}
	by := map[string]*to{}
	var order []*to
	for j := range m.members {
		from := map[line]bits{}
		var lines []line
		for i := range m.members {
			if m.vacuous(i, j) {
				continue
			}
			for _, l := range at(i, j).lines() {
				if from[l] == nil {
					from[l] = newBits(len(m.members))
					lines = append(lines, l)
				}
				from[l].set(i)
			}
		}
		if len(from) == 0 {
			continue
		}
		slices.SortFunc(lines, func(a, b line) int { return int(a.ports-b.ports)*4 + int(a.family-b.family) })
		key := []byte(string(m.Parties[m.members[j][0]].Kind) + m.namespace(j))
		for _, l := range lines {
			key = binary.AppendVarint(binary.AppendVarint(append(key, 0), int64(l.ports)), int64(l.family))
			key = append(key, from[l].key()...)
		}
		known := by[string(key)]
		if known == nil {
			known = &to{from: from}
			by[string(key)] = known
			order = append(order, known)
		}
		known.classes = append(known.classes, j)
	}
	var rows []Row
	for _, t := range order {
		for l, from := range t.from {
			row := Row{From: m.expand(from.all()), To: m.expand(t.classes), Ports: m.space.ports(int(l.ports))}
			if l.family >= 0 {
				row.Family = conf.Family(l.family).String()
			}
			rows = append(rows, row)
		}
	}
	slices.SortFunc(rows, compareRows)
	return rows
}

func (m *Matrix) namespace(class int) string {
	first := m.Parties[m.members[class][0]].Namespace
	for _, i := range m.members[class] {
		if m.Parties[i].Namespace != first {
			return ""
		}
	}
	return first
}

func compareRows(a, b Row) int {
	return cmp.Or(slices.Compare(a.To, b.To), slices.Compare(a.From, b.From), cmp.Compare(a.Family, b.Family))
}

func (m *Matrix) vacuous(i, j int) bool {
	from, to := m.members[i], m.members[j]
	if m.Parties[from[0]].Kind == World && m.Parties[to[0]].Kind == World {
		return true
	}
	return i == j && len(from) == 1 && len(m.Parties[from[0]].Pods) == 1
}

func (m *Matrix) expand(classes []int) (parties []int) {
	for _, c := range classes {
		parties = append(parties, m.members[c]...)
	}
	slices.Sort(parties)
	return parties
}

func only(rows []Row, proto ruleset.Protocol, ports ruleset.PortRange) (all []Row) {
	for _, r := range rows {
		var cut []ruleset.PortRange
		for _, have := range r.Ports.of(proto) {
			have = ruleset.PortRange{First: max(have.First, ports.First), Last: min(have.Last, ports.Last)}
			if have.First <= have.Last {
				cut = append(cut, have)
			}
		}
		if len(cut) == 0 {
			continue
		}
		r.Ports = Ports{}
		switch proto {
		case ruleset.TCP:
			r.Ports.TCP = cut
		case ruleset.UDP:
			r.Ports.UDP = cut
		case ruleset.SCTP:
			r.Ports.SCTP = cut
		}
		all = append(all, r)
	}
	return all
}

// Filter selects the connections for which all its functions return true. The function From is called with the sender,
// and To with the receiver. The function Either must return true for the sender, the receiver or both. A function that
// is nil selects all connections.
type Filter struct {
	From, To, Either func(Party) bool
	// Proto and Ports select connections by the destination port. If Proto is empty, all ports are selected.
	Proto ruleset.Protocol
	Ports ruleset.PortRange
}

// Filter returns the connections that the filter selects. If two of the resulting rows differ only in From, or only in
// To, they become one row.
func (m *Matrix) Filter(rows []Row, f Filter) []Row {
	whether := func(keep func(Party) bool) func(int) bool {
		return func(i int) bool { return keep == nil || keep(m.Parties[i]) }
	}
	from, to, either := whether(f.From), whether(f.To), whether(f.Either)
	rows = between(rows, from, to)
	if f.Either != nil {
		other := func(i int) bool { return !either(i) }
		rows = slices.Concat(between(rows, either, whether(nil)), between(rows, other, either))
	}
	if f.Proto != "" {
		rows = only(rows, f.Proto, f.Ports)
	}
	return merge(rows)
}

func between(rows []Row, from, to func(party int) bool) (all []Row) {
	keep := func(list []int, f func(int) bool) (kept []int) {
		for _, i := range list {
			if f(i) {
				kept = append(kept, i)
			}
		}
		return kept
	}
	for _, r := range rows {
		r.From, r.To = keep(r.From, from), keep(r.To, to)
		if len(r.From) > 0 && len(r.To) > 0 {
			all = append(all, r)
		}
	}
	return all
}

// merge joins rows that differ only in From, and then rows that differ only in To.
func merge(rows []Row) []Row {
	join := func(rows []Row, same func(Row) []int, other func(*Row) *[]int) []Row {
		by := map[string]int{}
		var all []Row
		for _, r := range rows {
			key := fmt.Sprint(same(r), r.Ports, r.Family)
			i, ok := by[key]
			if !ok {
				by[key] = len(all)
				all = append(all, r)
				continue
			}
			list := other(&all[i])
			*list = slices.Concat(*list, *other(&r))
			slices.Sort(*list)
		}
		return all
	}
	rows = join(rows, func(r Row) []int { return r.To }, func(r *Row) *[]int { return &r.From })
	rows = join(rows, func(r Row) []int { return r.From }, func(r *Row) *[]int { return &r.To })
	slices.SortFunc(rows, compareRows)
	return rows
}
