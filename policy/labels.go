package policy

import (
	"slices"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/labels"
)

// answer tells whether a selector matches labels, some of which may be unknown.
type answer int

const (
	no answer = iota
	maybe
	yes
)

// ask returns whether the selector matches the labels. It returns maybe if the answer depends on a label that is
// unknown.
func ask(s labels.Selector, known map[string]string, unknown func(key string) bool) answer {
	requirements, selectable := s.Requirements()
	if !selectable {
		return no
	}
	a := yes
	for _, r := range requirements {
		switch {
		case unknown(r.Key()):
			a = maybe
		case !r.Matches(labels.Set(known)):
			return no
		}
	}
	return a
}

// matchedBy returns whether the selector matches the pod's labels.
func (p Pod) matchedBy(s labels.Selector) answer {
	if len(p.Unknown) > 0 {
		return ask(s, p.Labels, func(key string) bool { return slices.Contains(p.Unknown, key) })
	}
	if s.Matches(labels.Set(p.Labels)) {
		return yes
	}
	return no
}

// matchedBy returns whether the selector matches the labels of the namespace with that name. If the source doesn't have
// the namespace, only the label with its name is known (KEP-2161). All its other labels are unknown, not absent.
func (n Namespace) matchedBy(s labels.Selector, name string) answer {
	switch {
	case n.Name == "":
		named := map[string]string{corev1.LabelMetadataName: name}
		return ask(s, named, func(key string) bool { return key != corev1.LabelMetadataName })
	case len(n.Unknown) > 0:
		return ask(s, n.Labels, func(key string) bool { return slices.Contains(n.Unknown, key) })
	case s.Matches(labels.Set(n.Labels)):
		return yes
	}
	return no
}
