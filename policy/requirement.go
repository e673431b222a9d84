package policy

import (
	"cmp"
	"slices"
	"strings"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/selection"
)

type requirement struct {
	key    string
	op     selection.Operator // In, NotIn, Exists or DoesNotExist
	values []string           // in order, without duplicates
	text   string             // such as "app=web"; requirements with the same text are equal
}

func newRequirement(e metav1.LabelSelectorRequirement) requirement {
	switch e.Operator {
	case metav1.LabelSelectorOpExists:
		return requirement{e.Key, selection.Exists, nil, e.Key}
	case metav1.LabelSelectorOpDoesNotExist:
		return requirement{e.Key, selection.DoesNotExist, nil, "!" + e.Key}
	}
	op := selection.In
	if e.Operator == metav1.LabelSelectorOpNotIn {
		op = selection.NotIn
	}
	values := e.Values // the requirement may keep this list, so the list must not change later
	if !slices.IsSorted(values) {
		values = slices.Sorted(slices.Values(values))
	}
	var text strings.Builder
	text.Grow(len(e.Key) + len(op) + len(values)*(1+len(values[0])) + 4)
	text.WriteString(e.Key + " " + string(op) + " (")
	for i, v := range values {
		if i > 0 {
			text.WriteByte(',')
		}
		text.WriteString(v)
	}
	text.WriteByte(')')
	return requirement{e.Key, op, distinct(values), text.String()}
}

// distinct returns the values without duplicates. The values must be in order. distinct doesn't change the list.
func distinct(values []string) []string {
	for i := 1; i < len(values); i++ {
		if values[i] == values[i-1] {
			return slices.Compact(slices.Clone(values))
		}
	}
	return values
}

func (r *requirement) matches(labels map[string]string) bool {
	value, ok := labels[r.key]
	switch r.op {
	case selection.In:
		return ok && r.has(value)
	case selection.NotIn:
		return !ok || !r.has(value)
	case selection.Exists:
		return ok
	case selection.DoesNotExist:
		return !ok
	}
	return false
}

func (r *requirement) has(value string) bool {
	_, has := slices.BinarySearch(r.values, value)
	return has
}

// meets reports whether the pod certainly meets the requirement. If the label's value is unknown, it returns false.
func (p *Pod) meets(r *requirement) bool {
	return !slices.Contains(p.Unknown, r.key) && r.matches(p.Labels)
}

type anchor struct {
	key, value string
	any        bool
}

// anchoring chooses one requirement of the selector m. The index then stores m under the labels that meet this
// requirement (its anchors). anchoring prefers the operator In to Exists, then fewer values, and then anchors with
// fewer entries in the index. It returns nil if m has no requirement with In or Exists.
func anchoring[T any](m matcher, index map[anchor][]T) (best *requirement) {
	others := func(r *requirement) (n int) {
		for _, a := range r.anchors() {
			n += len(index[a])
		}
		return n
	}
	for i := range m.requirements {
		r := &m.requirements[i]
		switch {
		case r.op != selection.In && r.op != selection.Exists:
		case best == nil, r.op == selection.In && best.op == selection.Exists:
			best = r
		case r.op != best.op || len(r.values) > len(best.values):
		case len(r.values) < len(best.values) || others(r) < others(best):
			best = r
		}
	}
	return best
}

// anchors returns the labels that meet a requirement with In or Exists. A pod that meets the requirement has at least
// one of these labels.
func (r *requirement) anchors() (all []anchor) {
	switch {
	case r == nil:
		return nil
	case r.op == selection.Exists:
		return []anchor{{key: r.key, any: true}}
	}
	for _, v := range r.values {
		all = append(all, anchor{key: r.key, value: v})
	}
	return all
}

// liveRequirement is a requirement that one or more live selectors share. So the method matching evaluates the
// requirement at most once for a crowd (pods of a namespace with equal labels).
type liveRequirement struct {
	requirement
	selectors int // how many live selectors have the requirement
	asked
}

// asked has the last answer for a requirement, or for a scope (the namespaces of a selector). The answer is about the
// crowd of one call of the method matching, and is out of date in the next call.
type asked struct {
	round uint64 // selectorIndex.round when the answer was found
	met   bool   // true if the crowd met the requirement, or was in the scope
}

func (x *selectorIndex) share(m matcher) []*liveRequirement {
	all := make([]*liveRequirement, len(m.requirements))
	for i, r := range m.requirements {
		if x.requirements[r.text] == nil {
			x.requirements[r.text] = &liveRequirement{requirement: r}
		}
		all[i] = x.requirements[r.text]
		all[i].selectors++
	}
	slices.SortStableFunc(all, func(a, b *liveRequirement) int { return cmp.Compare(b.selectors, a.selectors) })
	return all
}

func (x *selectorIndex) unshare(all []*liveRequirement) {
	for _, r := range all {
		if r.selectors--; r.selectors == 0 {
			delete(x.requirements, r.text)
		}
	}
}

func (x *selectorIndex) meets(c *crowd, all []*liveRequirement) bool {
	for _, r := range all {
		if r.round != x.round {
			r.asked = asked{x.round, c.sample.meets(&r.requirement)}
		}
		if !r.met {
			return false
		}
	}
	return true
}
