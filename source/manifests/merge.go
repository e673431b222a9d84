package manifests

import (
	"errors"
	"fmt"
	"maps"
	"reflect"
	"slices"
	"strings"

	networkingv1 "k8s.io/api/networking/v1"

	"github.com/weir-net/weir/agentapi"
	"github.com/weir-net/weir/internal/dirwatch"
	"github.com/weir-net/weir/policy"
)

type placed struct {
	file string
	*entry
}

func (p placed) String() string { return printable(p.file) + ", " + p.where }

// merge returns the objects of all files, and updates the results of Files and View. It returns nil as long as Dir
// can't start.
func (d *Dir) merge() (*policy.Objects, error) {
	var all policy.Objects
	// errs has the errors about files that may hide a policy (see mayHidePolicy). The list less has the errors about all
	// other files. These errors come last.
	var errs, less []error
	blocked := false
	by := map[string][]placed{}
	var order []string
	names := slices.Sorted(maps.Keys(d.files))
	for _, name := range names {
		f := d.files[name]
		if f.busy && f.empty() && !d.started {
			blocked = true
			errs = append(errs, fmt.Errorf("%s: %w", printable(name), dirwatch.ErrBeingWritten))
		}
		if f.mayHidePolicy() {
			blocked = true
			errs = append(errs, f.errors(name)...)
		} else {
			less = append(less, f.errors(name)...)
		}
		for i := range f.entries {
			e := &f.entries[i]
			e.conflict, e.differs = "", false
			if e.key == "" {
				e.addTo(&all)
				continue
			}
			if by[e.key] == nil {
				order = append(order, e.key)
			}
			by[e.key] = append(by[e.key], placed{name, e})
		}
	}
	for _, key := range order {
		mergeVersions(by[key], &all)
	}
	d.addStaticPods(&all)
	var files []agentapi.File
	for _, name := range names {
		files = append(files, d.files[name].report(name))
		all.Problems = append(all.Problems, d.files[name].problems(name)...)
	}
	d.report.Store(&files)
	errs = append(errs, less...)
	d.started = d.started || !blocked || (d.IgnoreBroken && !d.busy())
	if !d.started {
		return nil, errors.Join(errs...)
	}
	d.view.Store(&view{all, d.services()})
	return &all, errors.Join(errs...)
}

func (d *Dir) busy() bool {
	for _, f := range d.files {
		if f.busy && f.empty() {
			return true
		}
	}
	return false
}

// addStaticPods adds a workload for each pod without a node, because kubelet may run the manifest as a static pod.
// Kubelet appends the node's name to the name of such a pod.
func (d *Dir) addStaticPods(all *policy.Objects) {
	for _, p := range all.Pods {
		if d.Node == "" || p.NodeName != "" { // a pod with a NodeName comes from an API server
			continue
		}
		of := p
		of.Name, of.UID, of.Addresses = "", "", nil
		all.Workloads = append(all.Workloads, policy.Workload{
			Kind: "Pod", Namespace: p.Namespace, Name: p.Name, Pod: of, Node: strings.ToLower(d.Node),
		})
	}
}

// mergeVersions adds one object, which may have different versions in several files. Merged versions of a policy allow
// nothing that one of the versions denies. Of a Node, only the first version is added.
func mergeVersions(versions []placed, all *policy.Objects) {
	first := versions[0]
	distinct := []placed{first}
	for _, v := range versions[1:] {
		same := func(o placed) bool { return o.equal(v.entry) }
		if i := slices.IndexFunc(distinct, same); i >= 0 {
			v.conflict = "the same is in " + distinct[i].String()
			continue
		}
		distinct = append(distinct, v)
	}
	if len(distinct) > 1 {
		for i, v := range distinct {
			other := distinct[0]
			if i == 0 {
				other = distinct[1]
			}
			v.differs = true
			v.conflict = "another version is in " + other.String()
		}
	}
	switch {
	case len(distinct) == 1 || first.node != nil:
		first.addTo(all)
	case first.policy != nil:
		all.Policies = append(all.Policies, mergePolicies(distinct)...)
	case first.namespace != nil:
		all.Namespaces = append(all.Namespaces, mergeNamespaces(distinct))
	default: // package policy merges the versions of pods and workloads
		for _, v := range distinct {
			v.addTo(all)
		}
	}
}

func (e *entry) equal(o *entry) bool {
	if e.policy != nil && o.policy != nil {
		return reflect.DeepEqual(e.policy.Spec, o.policy.Spec) &&
			reflect.DeepEqual(policy.KeepAudit(e.policy.Annotations), policy.KeepAudit(o.policy.Annotations))
	}
	return reflect.DeepEqual(e.namespace, o.namespace) && reflect.DeepEqual(e.pod, o.pod) &&
		reflect.DeepEqual(e.node, o.node) && reflect.DeepEqual(e.workload, o.workload) &&
		(e.policy == nil) == (o.policy == nil)
}

func mergeNamespaces(versions []placed) policy.Namespace {
	agreed := policy.Namespace{Name: versions[0].namespace.Name, Labels: map[string]string{}}
	unknown := map[string]bool{}
	for _, v := range versions {
		for _, key := range v.namespace.Unknown {
			unknown[key] = true
		}
		for key, value := range v.namespace.Labels {
			for _, o := range versions {
				if other, ok := o.namespace.Labels[key]; !ok || other != value {
					unknown[key] = true
				}
			}
			agreed.Labels[key] = value
		}
	}
	agreed.Unknown = slices.Sorted(maps.Keys(unknown))
	maps.DeleteFunc(agreed.Labels, func(key, _ string) bool { return unknown[key] })
	return agreed
}

// mergePolicies returns one policy for each different pod selector of the versions. Each of these policies has all
// directions that any version has. In each direction, the policy has the rules that are in all versions with this
// direction.
func mergePolicies(versions []placed) []*networkingv1.NetworkPolicy {
	agreed := networkingv1.NetworkPolicySpec{}
	annotations := versions[0].policy.Annotations
	for _, v := range versions {
		if audited, _ := policy.Audited(v.policy); !audited { // if one version is enforced, the merged policies are enforced
			annotations = v.policy.Annotations
		}
	}
	firstIngress, firstEgress := true, true
	for _, v := range versions {
		s := v.policy.Spec
		ingress, egress := isolates(s)
		if ingress {
			agreed.Ingress, firstIngress = intersect(agreed.Ingress, s.Ingress, firstIngress), false
		}
		if egress {
			agreed.Egress, firstEgress = intersect(agreed.Egress, s.Egress, firstEgress), false
		}
	}
	if !firstIngress {
		agreed.PolicyTypes = append(agreed.PolicyTypes, networkingv1.PolicyTypeIngress)
	}
	if !firstEgress {
		agreed.PolicyTypes = append(agreed.PolicyTypes, networkingv1.PolicyTypeEgress)
	}
	var all []*networkingv1.NetworkPolicy
	for _, v := range versions {
		np := &networkingv1.NetworkPolicy{ObjectMeta: v.policy.ObjectMeta, Spec: agreed}
		np.Annotations = annotations
		np.Spec.PodSelector = v.policy.Spec.PodSelector
		if !slices.ContainsFunc(all, func(o *networkingv1.NetworkPolicy) bool { return reflect.DeepEqual(o, np) }) {
			all = append(all, np)
		}
	}
	return all
}

func isolates(s networkingv1.NetworkPolicySpec) (ingress, egress bool) {
	if len(s.PolicyTypes) == 0 {
		return true, len(s.Egress) > 0
	}
	return slices.Contains(s.PolicyTypes, networkingv1.PolicyTypeIngress),
		slices.Contains(s.PolicyTypes, networkingv1.PolicyTypeEgress)
}

func intersect[R any](agreed, rules []R, first bool) []R {
	if first {
		return rules
	}
	var in []R
	for _, r := range agreed {
		if slices.ContainsFunc(rules, func(o R) bool { return reflect.DeepEqual(r, o) }) {
			in = append(in, r)
		}
	}
	return in
}
