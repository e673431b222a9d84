package policy

import (
	"cmp"
	"slices"
	"strings"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/selection"
	"k8s.io/apimachinery/pkg/util/validation"
)

type matcher struct {
	requirements []requirement
	text         string // such as "app=web"; selectors with the same text are equal
}

var everything matcher

// newMatcher parses a selector. It returns an error if the API server would refuse the selector.
func newMatcher(s *metav1.LabelSelector) (matcher, error) {
	if !plain(s) {
		if _, err := metav1.LabelSelectorAsSelector(s); err != nil {
			return matcher{}, err
		}
	}
	if len(s.MatchLabels)+len(s.MatchExpressions) == 0 {
		return everything, nil
	}
	all := make([]requirement, 0, len(s.MatchLabels)+len(s.MatchExpressions))
	for k, v := range s.MatchLabels {
		all = append(all, requirement{k, selection.In, []string{v}, k + "=" + v})
	}
	for _, e := range s.MatchExpressions {
		all = append(all, newRequirement(e))
	}
	slices.SortStableFunc(all, func(a, b requirement) int { return cmp.Compare(a.key, b.key) })
	texts := make([]string, len(all))
	for i, r := range all {
		texts[i] = r.text
	}
	return matcher{requirements: all, text: strings.Join(texts, ",")}, nil
}

// plain reports whether the selector is certainly valid. plain is much faster than LabelSelectorAsSelector, which
// compares each value with a regular expression. If plain returns false, LabelSelectorAsSelector decides.
func plain(s *metav1.LabelSelector) bool {
	for k, v := range s.MatchLabels {
		if !plainName(k) || v != "" && !plainName(v) {
			return false
		}
	}
	for _, e := range s.MatchExpressions {
		switch e.Operator {
		case metav1.LabelSelectorOpExists, metav1.LabelSelectorOpDoesNotExist:
			if len(e.Values) > 0 {
				return false
			}
		case metav1.LabelSelectorOpIn, metav1.LabelSelectorOpNotIn:
			if len(e.Values) == 0 {
				return false
			}
		default:
			return false
		}
		if !plainName(e.Key) || slices.ContainsFunc(e.Values, func(v string) bool { return v != "" && !plainName(v) }) {
			return false
		}
	}
	return true
}

func plainName(s string) bool {
	outer := func(c byte) bool { return '0' <= c && c <= '9' || 'A' <= c && c <= 'Z' || 'a' <= c && c <= 'z' }
	if len(s) == 0 || len(s) > validation.LabelValueMaxLength || !outer(s[0]) || !outer(s[len(s)-1]) {
		return false
	}
	for i := range len(s) {
		if c := s[i]; !outer(c) && c != '-' && c != '_' && c != '.' {
			return false
		}
	}
	return true
}

func (m matcher) String() string { return m.text }

func (m matcher) appendTo(text []byte) []byte { return append(text, m.text...) }

func (m matcher) Empty() bool { return len(m.requirements) == 0 }

// answer says whether a selector matches. The answer is the constant maybe if the match depends on a label whose value
// is unknown.
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
