package verdict

import (
	"fmt"
	"slices"
	"strings"

	corev1 "k8s.io/api/core/v1"
	networkingv1 "k8s.io/api/networking/v1"
	"k8s.io/apimachinery/pkg/labels"
)

func missedSelectors(
	namespace, field string, p networkingv1.NetworkPolicyPeer, o pod, namespaces, pods labels.Selector,
) (all []Miss) {
	if p.NamespaceSelector == nil && o.Namespace != namespace {
		all = append(all, Miss{
			Object: "Pod " + o.Namespace + "/" + o.Name, Field: field, Kind: MissNamespace,
			Wants: "a pod in namespace " + namespace,
			Why: fmt.Sprintf("pod %s/%s is in namespace %s, but a podSelector without a namespaceSelector selects only pods in "+
				"the policy's own namespace, %s", o.Namespace, o.Name, o.Namespace, namespace),
			Change: addPeer(field, o.Namespace),
		})
	}
	l := labelled{"namespace", o.Namespace, o.namespace, o.unknownOfNamespace}
	for _, m := range l.misses(field+".namespaceSelector", namespaces) {
		m.Object = "Namespace " + o.Namespace
		if m.Kind == MissLabel {
			m.Kind = MissNamespaceLabel
		}
		if m.key == corev1.LabelMetadataName && m.Change != "" { // the API server sets this label to the namespace's name
			m.Change = addPeer(field, o.Namespace)
		}
		all = append(all, m.Miss)
	}
	l = labelled{"pod", o.Namespace + "/" + o.Name, o.labels, o.unknownLabel}
	for _, m := range l.misses(field+".podSelector", pods) {
		m.Object = "Pod " + o.Namespace + "/" + o.Name
		all = append(all, m.Miss)
	}
	if slices.ContainsFunc(all, func(m Miss) bool { return m.Change == "" }) {
		for i := range all {
			all[i].Label, all[i].Change = LabelChange{}, addPod(o)
		}
	}
	return all
}

// addPeer returns the change that makes a rule match pods of another namespace. The change adds a new peer, because a
// changed peer would no longer match the pods that it matches now.
func addPeer(field, namespace string) string {
	return fmt.Sprintf("add a peer like %s to the rule, with a namespaceSelector with %s: %s", field,
		corev1.LabelMetadataName, namespace)
}

// addPod returns the change that makes a rule match the pod: a new peer. An ipBlock would match only until the pod has
// another address. A change of the pod's labels would affect more than this connection: policies may isolate the pod by
// these labels, and other rules may exclude the pod by them.
func addPod(o pod) string {
	peer := fmt.Sprintf("add a peer for pod %s/%s to the rule, with a namespaceSelector with %s: %s and ", o.Namespace,
		o.Name, corev1.LabelMetadataName, o.Namespace)
	if len(o.labels) == 0 {
		return peer + "no podSelector: the pod has no labels, so the peer matches all pods of its namespace"
	}
	return peer + "a podSelector with labels of the pod"
}

type labelled struct {
	kind, name string
	labels     labels.Set
	unknown    func(key string) bool
}

type labelMiss struct {
	Miss
	key string
}

func (l labelled) misses(field string, s labels.Selector) (all []labelMiss) {
	requirements, _ := s.Requirements()
	for _, r := range requirements {
		if r.Matches(l.labels) && !l.unknown(r.Key()) {
			continue
		}
		m := l.miss(field, r)
		if !l.unknown(r.Key()) {
			l.mend(&m, field, r.Key(), requirements)
		}
		all = append(all, labelMiss{m, r.Key()})
	}
	return all
}

func (l labelled) miss(field string, r labels.Requirement) Miss {
	m := Miss{Field: field, Wants: r.String(), Kind: MissLabel}
	value, has := l.labels[r.Key()]
	excludes := has && (r.Operator() == "!" || strings.HasPrefix(string(r.Operator()), "not") || r.Operator() == "!=")
	switch {
	case l.unknown(r.Key()):
		m.Why = fmt.Sprintf("it is unknown whether %s %s has the label %s", l.kind, l.name, r.Key())
		m.Change = fmt.Sprintf("let weir read the labels of %s %s", l.kind, l.name)
	case excludes:
		m.Why = fmt.Sprintf("%s %s has label %s=%s, which %s excludes (%s)", l.kind, l.name, r.Key(), value, field, m.Wants)
	case has:
		m.Why = fmt.Sprintf("%s %s has label %s=%s, but %s asks for %s", l.kind, l.name, r.Key(), value, field, m.Wants)
	default:
		m.Why = fmt.Sprintf("%s %s lacks label %s, which %s asks for", l.kind, l.name, m.Wants, field)
	}
	return m
}

// mend looks for a value of the label that meets all of the selector's requirements on this label, and writes into m
// the change that gives the label this value. If the requirements name no such value, because they exclude the label
// or its value, mend leaves m.Change empty. If the requirements contradict each other, the selector matches nothing,
// and no value of the label helps. Then m gets the kind MissUnreadable.
func (l labelled) mend(m *Miss, field, key string, all labels.Requirements) {
	var values []string
	for _, r := range all {
		if r.Key() == key {
			values = append(values, r.Values().UnsortedList()...)
		}
	}
	slices.Sort(values)
	fits := func(set labels.Set) bool {
		return !slices.ContainsFunc(all, func(r labels.Requirement) bool { return r.Key() == key && !r.Matches(set) })
	}
	_, has := l.labels[key]
	i := slices.IndexFunc(values, func(v string) bool { return fits(labels.Set{key: v}) })
	switch other := "no value of " + strings.Join(values, ""); {
	case i >= 0:
		m.Label = LabelChange{key, values[i]}
		m.Change = fmt.Sprintf("give %s %s the label %s=%s", l.kind, l.name, key, values[i])
	case !has && fits(labels.Set{key: ""}):
		m.Label = LabelChange{Key: key}
		m.Change = fmt.Sprintf("give %s %s the label %s", l.kind, l.name, key)
	case !fits(labels.Set{}) && !fits(labels.Set{key: other}):
		m.Kind, m.Change = MissUnreadable, "correct "+field
		m.Why = fmt.Sprintf("no %s meets all conditions of %s on the label %s, so it matches nothing", l.kind, field, key)
	}
}
