package policy

import (
	"fmt"
	"maps"
	"reflect"
	"slices"
	"strconv"
	"strings"

	"github.com/weir-net/weir/policy/ruleset"
)

var ofOnePod = map[string]bool{
	"pod-template-hash": true, "controller-revision-hash": true, "pod-template-generation": true,
	"statefulset.kubernetes.io/pod-name": true, "apps.kubernetes.io/pod-index": true, "controller-uid": true,
	"batch.kubernetes.io/controller-uid": true, "job-name": true, "batch.kubernetes.io/job-name": true,
	"batch.kubernetes.io/job-completion-index": true, "rollouts-pod-template-hash": true,
}

// IsOfOnePod reports whether controllers set the label (such as pod-template-hash), with different values for pods of
// the same workload.
func IsOfOnePod(label string) bool { return ofOnePod[label] }

// Workload is an object that makes pods from a template. The names of its pods are not known, only their pattern.
type Workload struct {
	// Kind is Deployment, ReplicaSet, ReplicationController, StatefulSet, DaemonSet, Job, CronJob, DeploymentConfig, or
	// Pod. The kind Pod means a static pod, which kubelet names NAME-NODE.
	Kind            string
	Namespace, Name string
	// Pod is a pod as the template describes it. It has no name.
	Pod     Pod
	Start   int
	Indexed bool
	// ManualSelector is true for a job with spec.manualSelector. Kubernetes adds neither the job's name nor a UID to the
	// labels of the pods of such a job.
	ManualSelector bool
	// Owner is the workload that has made this workload, such as "Deployment web".
	Owner string
	// Node is the node of a static pod. It is empty for other kinds.
	Node string
}

func (w Workload) String() string { return w.Kind + " " + w.Namespace + "/" + w.Name }

// Make returns the workload's pod of this name. ok is false if no pod of the workload can have the name. Labels that
// the controller adds are in the pod's Labels, or in Unknown if their values can't be known.
func (w Workload) Make(name string) (pod Pod, ok bool) {
	p := w.Pod
	p.Namespace, p.Name, p.Labels, p.Unknown = w.Namespace, name, maps.Clone(p.Labels), slices.Clone(p.Unknown)
	if p.Labels == nil {
		p.Labels = map[string]string{}
	}
	known := func(key, value string, whole bool) {
		delete(p.Labels, key)
		p.Unknown = slices.DeleteFunc(p.Unknown, func(k string) bool { return k == key })
		if whole {
			p.Labels[key] = value
		} else {
			p.Unknown = append(p.Unknown, key)
		}
	}
	switch w.Kind {
	case "Pod":
		return p, name == w.Name+"-"+w.Node
	case "StatefulSet":
		ordinal, ok := ordinal(strings.TrimPrefix(name, w.Name+"-"))
		if !strings.HasPrefix(name, w.Name+"-") || !ok || ordinal < w.Start {
			return Pod{}, false
		}
		known("statefulset.kubernetes.io/pod-name", name, true)
		known("apps.kubernetes.io/pod-index", strconv.Itoa(ordinal), true)
		known("controller-revision-hash", "", false)
		return p, true
	}
	n, ok := w.read(name)
	if !ok {
		return Pod{}, false
	}
	switch w.Kind {
	case "Deployment":
		known("pod-template-hash", n.word, n.whole)
	case "DaemonSet":
		known("controller-revision-hash", "", false)
		known("pod-template-generation", "", false)
	case "DeploymentConfig":
		known("deploymentconfig", w.Name, true)
		known("deployment", w.Name+"-"+n.word, n.whole)
	case "Job", "CronJob":
		if w.Indexed {
			known("batch.kubernetes.io/job-completion-index", n.index, true)
		}
		if w.ManualSelector {
			break
		}
		job := w.Name
		if w.Kind == "CronJob" {
			job += "-" + n.word
		}
		for _, prefix := range []string{"", "batch.kubernetes.io/"} {
			known(prefix+"job-name", job, n.whole)
			known(prefix+"controller-uid", "", false)
		}
	}
	return p, true
}

// MadeBy returns the different pods of this name that the workloads can have made, and the workload of each. If a
// workload and its owner can both have made the pod, only the workload is returned.
func MadeBy(workloads []Workload, namespace, name string) (pods []Pod, by []Workload) {
	owners := map[string]bool{} // owners of the workloads that can have made the pod
	for _, w := range workloads {
		if w.Namespace != namespace {
			continue
		}
		if pod, ok := w.Make(name); ok {
			owners[w.Owner] = true
			pods, by = append(pods, pod), append(by, w)
		}
	}
	var distinct []Pod
	var makers []Workload
	for i, w := range by {
		alike := func(p Pod) bool { return reflect.DeepEqual(p, pods[i]) }
		if !owners[w.Kind+" "+w.Name] && !slices.ContainsFunc(distinct, alike) {
			distinct, makers = append(distinct, pods[i]), append(makers, w)
		}
	}
	return distinct, makers
}

func ambiguous(pods []Pod, by []Workload) ruleset.Problem {
	var words []string
	for _, w := range by {
		words = append(words, w.String())
	}
	why := "several manifests describe it, and differ"
	if len(words) > 1 {
		why = "its name fits " + strings.Join(words, " and ") + ", which differ"
	}
	return ruleset.Problem{
		Object: "Pod " + pods[0].Namespace + "/" + pods[0].Name, Field: "metadata.name",
		Message: fmt.Sprintf("%s: only packets pass that all of them allow", why),
	}
}
