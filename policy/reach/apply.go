package reach

import (
	"fmt"
	"maps"
	"slices"

	networkingv1 "k8s.io/api/networking/v1"

	"github.com/weir-net/weir/policy"
)

// Applied says what Apply has done with each object.
type Applied struct {
	// Added, Replaced and Deleted have names of objects, such as "NetworkPolicy shop/allow-web".
	Added, Replaced, Deleted []string
	// Unused has the file's pods that don't exist, and the file's workloads without pods. Missing has policies that should
	// be deleted, but don't exist.
	Unused, Missing []string
}

// Apply returns the objects as they would be after "kubectl apply" of the file and the deletion of the named policies.
// A pod keeps its addresses and its Node. The pods of a workload get the labels and ports of the workload's template.
func Apply(o, file policy.Objects, deleted ...policy.Name) (policy.Objects, Applied) {
	a := applying{Objects: o}
	a.Policies, a.Namespaces, a.Pods = slices.Clone(o.Policies), slices.Clone(o.Namespaces), slices.Clone(o.Pods)
	a.Problems = slices.Concat(o.Problems, file.Problems)
	for _, name := range deleted {
		a.deletePolicy(name)
	}
	a.replacePolicies(file.Policies)
	for _, n := range file.Namespaces {
		a.replaceNamespace(n)
	}
	for _, p := range file.Pods {
		a.replacePod(p)
	}
	for _, w := range file.Workloads {
		if w.Kind != "Pod" {
			a.replaceTemplate(w)
		}
	}
	return a.Objects, a.done
}

type applying struct {
	policy.Objects
	done Applied
}

func (a *applying) deletePolicy(name policy.Name) {
	before := len(a.Policies)
	a.Policies = slices.DeleteFunc(a.Policies, func(np *networkingv1.NetworkPolicy) bool {
		return np.Namespace == name.Namespace && np.Name == name.Name
	})
	text := fmt.Sprintf("NetworkPolicy %s/%s", name.Namespace, name.Name)
	if len(a.Policies) < before {
		a.done.Deleted = append(a.done.Deleted, text)
	} else {
		a.done.Missing = append(a.done.Missing, text)
	}
}

func (a *applying) replacePolicies(list []*networkingv1.NetworkPolicy) {
	names := map[policy.Name]bool{}
	for _, np := range list {
		names[policy.Name{Namespace: np.Namespace, Name: np.Name}] = true
	}
	old := map[policy.Name]bool{}
	a.Policies = slices.DeleteFunc(a.Policies, func(np *networkingv1.NetworkPolicy) bool {
		name := policy.Name{Namespace: np.Namespace, Name: np.Name}
		old[name] = true
		return names[name]
	})
	a.Policies = append(a.Policies, list...)
	for _, np := range list {
		name := policy.Name{Namespace: np.Namespace, Name: np.Name}
		if !names[name] {
			continue
		}
		delete(names, name)
		a.record(old[name], fmt.Sprintf("NetworkPolicy %s/%s", np.Namespace, np.Name))
	}
}

func (a *applying) record(replaced bool, object string) {
	if replaced {
		a.done.Replaced = append(a.done.Replaced, object)
	} else {
		a.done.Added = append(a.done.Added, object)
	}
}

func (a *applying) replaceNamespace(n policy.Namespace) {
	i := slices.IndexFunc(a.Namespaces, func(o policy.Namespace) bool { return o.Name == n.Name })
	a.record(i >= 0, "Namespace "+n.Name)
	if i >= 0 {
		a.Namespaces[i] = n
	} else {
		a.Namespaces = append(a.Namespaces, n)
	}
}

func (a *applying) replacePod(p policy.Pod) {
	object, found := fmt.Sprintf("Pod %s/%s", p.Namespace, p.Name), false
	for i := range a.Pods {
		if o := &a.Pods[i]; o.Namespace == p.Namespace && o.Name == p.Name {
			found = true
			o.Labels, o.Unknown, o.Ports = p.Labels, p.Unknown, p.Ports
		}
	}
	if found {
		a.done.Replaced = append(a.done.Replaced, object)
	} else {
		a.done.Unused = append(a.done.Unused, object)
	}
}

func (a *applying) replaceTemplate(w policy.Workload) {
	found := false
	for i := range a.Pods {
		o := &a.Pods[i]
		if o.Namespace != w.Namespace {
			continue
		}
		made, ok := w.Make(o.Name)
		if !ok && (o.Name != w.Name || len(o.UID) > 0) {
			continue
		}
		found = true
		labels := maps.Clone(w.Pod.Labels)
		if labels == nil {
			labels = map[string]string{}
		}
		for key, value := range o.Labels {
			if _, templated := labels[key]; !templated && policy.IsOfOnePod(key) {
				labels[key] = value
			}
		}
		unknown := slices.Clone(w.Pod.Unknown)
		for _, key := range made.Unknown {
			if _, known := labels[key]; !known && !slices.Contains(unknown, key) {
				unknown = append(unknown, key)
			}
		}
		o.Labels, o.Unknown, o.Ports = labels, unknown, w.Pod.Ports
	}
	if found {
		a.done.Replaced = append(a.done.Replaced, w.String())
	} else {
		a.done.Unused = append(a.done.Unused, w.String())
	}
}
