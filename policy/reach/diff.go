package reach

import (
	"slices"

	"github.com/weir-net/weir/conf"
	"github.com/weir-net/weir/policy"
)

// Diff is the difference between the possible connections of two states.
type Diff struct {
	Before, After *Matrix
	Opened        []Row
	Closed        []Row
}

// Compare returns the connections that are possible in only one of the two states. It compares only pods of the first
// state.
func Compare(before, after policy.State, services []policy.Service) *Diff {
	u := newUniverse(services, before, after)
	d := &Diff{Before: u.matrix(0), After: u.matrix(1)}
	joint := joined(d.Before, d.After)
	minus := func(a, b []int, of, without *Matrix) func(i, j int) cell {
		return func(i, j int) cell {
			have, gone := of.between[a[i]][a[j]], without.between[b[i]][b[j]]
			for f := range conf.Families {
				if have[f] > 0 && gone[f] >= 0 {
					have[f] = u.space.minus(have[f], gone[f])
				}
			}
			return have
		}
	}
	d.Opened = joint.rows(minus(joint.after, joint.before, d.After, d.Before))
	d.Closed = joint.rows(minus(joint.before, joint.after, d.Before, d.After))
	return d
}

func (d *Diff) Empty() bool { return len(d.Opened)+len(d.Closed) == 0 }

func (sp *space) minus(a, b int32) int32 {
	if a == b {
		return 0
	}
	rest := slices.Clone(sp.sets[a])
	rest.minus(sp.sets[b])
	return int32(sp.number(rest))
}

type joint struct {
	Matrix
	before, after []int
}

func joined(a, b *Matrix) *joint {
	j := &joint{Matrix: Matrix{Parties: a.Parties, space: a.space}}
	by := map[[2]int]int{}
	for i := range a.Parties {
		key := [2]int{a.classes[i], b.classes[i]}
		n, ok := by[key]
		if !ok {
			n = len(j.members)
			by[key] = n
			j.members = append(j.members, nil)
			j.before, j.after = append(j.before, key[0]), append(j.after, key[1])
		}
		j.classes = append(j.classes, n)
		j.members[n] = append(j.members[n], i)
	}
	return j
}
