package manifests

import (
	stdjson "encoding/json"
	"fmt"
	"slices"
	"strings"

	"github.com/weir-net/weir/policy"
)

var workloadGroups = map[string][]string{
	"Deployment": {"apps", "extensions"}, "ReplicaSet": {"apps", "extensions"}, "DaemonSet": {"apps", "extensions"},
	"StatefulSet": {"apps"}, "ReplicationController": {""}, "Job": {"batch"}, "CronJob": {"batch"},
	"DeploymentConfig": {"apps.openshift.io", ""},
}

func isWorkload(o object) bool { return slices.Contains(workloadGroups[o.kind], o.group()) }

type workloadSpec struct {
	Template map[string]stdjson.RawMessage `json:"template"`
	Ordinals struct {
		Start int `json:"start"`
	} `json:"ordinals"`
	CompletionMode string `json:"completionMode"`
	ManualSelector bool   `json:"manualSelector"`
}

// addWorkload reads an object that makes pods, such as a Deployment. If the name, the namespace or the template of the
// object can't be read, its pods are unknown, and therefore closed (all their new connections are dropped).
func (c *content) addWorkload(o object) {
	m := o.readMeta(o.raw["metadata"], true)
	e := entry{where: o.where, object: o.kind + " " + m.namespace + "/" + m.name}
	defer func() { c.entries = append(c.entries, e) }()
	if len(m.wrongName)+len(m.wrongNamespace) > 0 {
		e.leaveOut(append(m.wrongName, m.wrongNamespace...)...)
		return
	}
	e.ignore(m.ignored)
	spec, path := o.raw["spec"], "spec"
	if o.kind == "CronJob" {
		var outer struct {
			JobTemplate struct {
				Spec stdjson.RawMessage `json:"spec"`
			} `json:"jobTemplate"`
		}
		if err := decode(spec, &outer); err != nil {
			e.leaveOut(complaint{path, err.Error()})
			return
		}
		spec, path = outer.JobTemplate.Spec, "spec.jobTemplate.spec"
	}
	var s workloadSpec
	if err := decode(spec, &s); err != nil || spec == nil || s.Template["spec"] == nil {
		e.leaveOut(complaint{path + ".template", fmt.Sprintf("there is none that can be read: %v", err)})
		return
	}
	path += ".template"
	in := object{raw: s.Template, namespace: m.namespace, labels: o.labels, duplicates: fieldsBelow(o.duplicates, path)}
	of := in.readMeta(in.raw["metadata"], false)
	of.wrongName, of.name = nil, ""
	wrong := prefixFields(path, of.wrongLabels)
	if of.unreadable() {
		e.leaveOut(wrong...)
		return
	}
	if twice := in.duplicatePodFields(); twice != nil {
		e.leaveOut(prefixFields(path, twice)...)
		return
	}
	pod, more, err := readPod(of, nil, in.raw["spec"], nil, path+".spec")
	if err != nil {
		e.leaveOut(complaint{path + ".spec", err.Error()})
		return
	}
	e.key, e.workload = e.object, &policy.Workload{
		Kind: o.kind, Namespace: m.namespace, Name: m.name, Pod: *pod,
		Start: s.Ordinals.Start, Owner: owner(o.raw["metadata"]),
		Indexed: s.CompletionMode == "Indexed", ManualSelector: s.ManualSelector,
	}
	e.reportPartly(append(wrong, more...))
}

func owner(metadata stdjson.RawMessage) string {
	var read struct {
		OwnerReferences []struct {
			Kind       string `json:"kind"`
			Name       string `json:"name"`
			Controller bool   `json:"controller"`
		} `json:"ownerReferences"`
	}
	if decode(metadata, &read) != nil {
		return ""
	}
	for _, r := range read.OwnerReferences {
		if r.Controller {
			return r.Kind + " " + r.Name
		}
	}
	return ""
}

func fieldsBelow(fields []string, path string) (all []string) {
	for _, f := range fields {
		if rest, ok := strings.CutPrefix(f, path+"."); ok {
			all = append(all, rest)
		} else if f == wholeObject || path == f || strings.HasPrefix(path, f+".") {
			all = append(all, wholeObject)
		}
	}
	return all
}

func prefixFields(path string, list []complaint) []complaint {
	var all []complaint
	for _, c := range list {
		all = append(all, complaint{path + "." + c.field, c.why})
	}
	return all
}
