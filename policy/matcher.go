package policy

import (
	"slices"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/selection"
)

type matcher struct {
	requirements []requirement
	text         string // such as "app=web"; equal for equal selectors
}

type requirement struct {
	key    string
	op     selection.Operator
	values map[string]bool
}

var everything matcher

// newMatcher parses a selector. It returns an error if the API server would refuse the selector.
func newMatcher(s *metav1.LabelSelector) (matcher, error) {
	parsed, err := metav1.LabelSelectorAsSelector(s)
	if err != nil {
		return matcher{}, err
	}
	requirements, _ := parsed.Requirements() // the second result is false only if s is nil
	m := matcher{text: parsed.String(), requirements: make([]requirement, 0, len(requirements))}
	for _, p := range requirements {
		r := requirement{key: p.Key(), op: p.Operator()}
		if r.op == selection.Equals || r.op == selection.DoubleEquals {
			r.op = selection.In
		}
		if r.op == selection.NotEquals {
			r.op = selection.NotIn
		}
		if r.op == selection.In || r.op == selection.NotIn {
			r.values = make(map[string]bool, p.Values().Len())
			for v := range p.Values() {
				r.values[v] = true
			}
		}
		m.requirements = append(m.requirements, r)
	}
	return m, nil
}

func (m matcher) String() string { return m.text }

func (m matcher) Empty() bool { return len(m.requirements) == 0 }

func (r *requirement) matches(labels map[string]string) bool {
	value, ok := labels[r.key]
	switch r.op {
	case selection.In:
		return ok && r.values[value]
	case selection.NotIn:
		return !ok || !r.values[value]
	case selection.Exists:
		return ok
	case selection.DoesNotExist:
		return !ok
	}
	return false
}

// answer says whether a selector matches. It is maybe if that depends on a label whose value is unknown.
type answer int

const (
	no answer = iota
	maybe
	yes
)

func (m matcher) ask(known map[string]string, unknown func(key string) bool) answer {
	a := yes
	for i := range m.requirements {
		r := &m.requirements[i]
		switch {
		case unknown != nil && unknown(r.key):
			a = maybe
		case !r.matches(known):
			return no
		}
	}
	return a
}

func (p *Pod) matchedBy(m matcher) answer {
	if len(p.Unknown) > 0 {
		return m.ask(p.Labels, func(key string) bool { return slices.Contains(p.Unknown, key) })
	}
	return m.ask(p.Labels, nil)
}

// matchedBy reports whether the selector matches the namespace's labels. If the source doesn't have the namespace, only
// its label kubernetes.io/metadata.name is known (KEP-2161).
func (n Namespace) matchedBy(m matcher, name string) answer {
	switch {
	case n.Name == "":
		named := map[string]string{corev1.LabelMetadataName: name}
		return m.ask(named, func(key string) bool { return key != corev1.LabelMetadataName })
	case len(n.Unknown) > 0:
		return m.ask(n.Labels, func(key string) bool { return slices.Contains(n.Unknown, key) })
	}
	return m.ask(n.Labels, nil)
}
