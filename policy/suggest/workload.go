package suggest

import (
	"cmp"
	"maps"
	"slices"
	"strings"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
)

type workload struct {
	namespace string
	labels    map[string]string
}

func (s *suggester) workload(namespace string, labels map[string]string) *workload {
	for _, w := range s.workloads[namespace] {
		if maps.Equal(w.labels, labels) {
			return w
		}
	}
	w := &workload{namespace, labels}
	s.workloads[namespace] = append(s.workloads[namespace], w)
	return w
}

func (w *workload) key() string {
	var b strings.Builder
	b.WriteString(w.namespace)
	for _, k := range slices.Sorted(maps.Keys(w.labels)) {
		b.WriteString("\n" + k + "=" + w.labels[k])
	}
	return b.String()
}

var known = []string{
	"app.kubernetes.io/name", "app", "k8s-app", "app.kubernetes.io/instance", "app.kubernetes.io/component", "component",
	"tier", "role",
}

func (w *workload) keys() []string {
	rank := func(key string) int {
		if i := slices.Index(known, key); i >= 0 {
			return i
		}
		return len(known)
	}
	return slices.SortedFunc(maps.Keys(w.labels), func(a, b string) int {
		return cmp.Or(cmp.Compare(rank(a), rank(b)), cmp.Compare(a, b))
	})
}

func (w *workload) name() string {
	for _, key := range w.keys() {
		if v := strings.ToLower(w.labels[key]); v != "" {
			v = strings.Trim(strings.Map(func(r rune) rune {
				if r >= 'a' && r <= 'z' || r >= '0' && r <= '9' || r == '-' {
					return r
				}
				return '-'
			}, v), "-")
			if v != "" {
				return "allow-" + v
			}
		}
	}
	return "allow-unlabelled"
}

func (s *suggester) selector(w *workload) metav1.LabelSelector {
	var others []*workload
	for _, o := range s.workloads[w.namespace] {
		if o != w {
			others = append(others, o)
		}
	}
	chosen := map[string]string{}
	matches := func(o *workload) bool {
		for k, v := range chosen {
			if got, ok := o.labels[k]; !ok || got != v {
				return false
			}
		}
		return true
	}
	// The first label is chosen even if it excludes no other workload, because a selector without labels would match all
	// future pods. Each further label must exclude workloads that the chosen labels still match. The label that excludes
	// most of them is chosen.
	keys := w.keys()
	for first := true; len(keys) > 0; first = false {
		best, excluded := "", 0
		for _, k := range keys {
			n := 0
			for _, o := range others {
				if got, ok := o.labels[k]; matches(o) && (!ok || got != w.labels[k]) {
					n++
				}
			}
			if n > excluded {
				best, excluded = k, n
			}
		}
		if best == "" && first {
			best = keys[0]
		}
		if best == "" {
			break
		}
		chosen[best] = w.labels[best]
		keys = slices.DeleteFunc(keys, func(k string) bool { return k == best })
	}
	selector := metav1.LabelSelector{MatchLabels: chosen}
	for _, o := range others {
		if !matches(o) || slices.ContainsFunc(selector.MatchExpressions, func(r metav1.LabelSelectorRequirement) bool {
			_, has := o.labels[r.Key]
			return has
		}) {
			continue
		}
		for _, k := range o.keys() {
			if _, ok := w.labels[k]; !ok {
				selector.MatchExpressions = append(selector.MatchExpressions,
					metav1.LabelSelectorRequirement{Key: k, Operator: metav1.LabelSelectorOpDoesNotExist})
				break
			}
		}
	}
	return selector
}
