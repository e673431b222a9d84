package manifests

import (
	stdjson "encoding/json"
	"fmt"
	"regexp"
	"slices"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/apimachinery/pkg/util/validation"

	"github.com/weir-net/weir/policy"
	"github.com/weir-net/weir/policy/ruleset"
	"github.com/weir-net/weir/source/objects"
)

func (c *content) addNamespace(o object) {
	m := o.readMeta(o.raw["metadata"], false)
	e := entry{where: o.where, object: "Namespace " + m.name}
	defer func() { c.entries = append(c.entries, e) }()
	if len(m.wrongName) == 0 && len(validation.IsDNS1123Label(m.name)) > 0 {
		m.wrongName = []complaint{{"metadata.name", fmt.Sprintf("%q: %v", m.name, validation.IsDNS1123Label(m.name))}}
	}
	if len(m.wrongName) > 0 || m.unreadable() {
		e.leaveOut(append(m.wrongName, m.wrongLabels...)...)
		return
	}
	ns := corev1.Namespace{}
	_ = decode(toJSON(o), &ns) // policy needs only the name and the labels, so errors in other fields don't matter
	ns.Name, ns.Labels = m.name, m.labels
	read := objects.Namespace(&ns)
	read.Unknown = slices.DeleteFunc(m.unknown, func(key string) bool { return key == corev1.LabelMetadataName })
	e.key, e.namespace = e.object, &read
	e.reportPartly(m.wrongLabels)
}

func (e *entry) reportPartly(c []complaint) {
	e.complain(c...)
	if len(c) > 0 {
		e.damage = partly
	}
}

func toJSON(o object) stdjson.RawMessage {
	raw, err := stdjson.Marshal(o.raw)
	if err != nil {
		return nil // impossible: the value was read from JSON
	}
	return raw
}

func (c *content) addNode(o object) {
	m := o.readMeta(o.raw["metadata"], false)
	e := entry{where: o.where, object: "Node " + m.name}
	defer func() { c.entries = append(c.entries, e) }()
	var node corev1.Node
	if err := decode(toJSON(o), &node); err != nil {
		e.leaveOut(complaint{"spec", err.Error()})
		return
	}
	if len(m.wrongName) > 0 {
		e.leaveOut(m.wrongName...)
		return
	}
	e.ignore(m.ignored)
	read, problems := objects.Node(&node)
	e.key, e.node = e.object, &read
	e.reportPartly(complaints(problems))
}

func complaints(problems []ruleset.Problem) []complaint {
	var all []complaint
	for _, p := range problems {
		all = append(all, complaint{p.Field, p.Message})
	}
	return all
}

func (c *content) addPod(o object) {
	m := o.readMeta(o.raw["metadata"], true)
	e := entry{where: o.where, object: "Pod " + m.namespace + "/" + m.name}
	defer func() { c.entries = append(c.entries, e) }()
	if len(m.wrongName)+len(m.wrongNamespace) > 0 || m.unreadable() {
		e.leaveOut(slices.Concat(m.wrongName, m.wrongNamespace, m.wrongLabels)...)
		return
	}
	if twice := o.duplicatePodFields(); twice != nil {
		e.leaveOut(twice...)
		return
	}
	pod, wrong, err := readPod(m, o.raw["metadata"], o.raw["spec"], o.raw["status"], "spec")
	if err != nil {
		e.leaveOut(complaint{"spec", err.Error()})
		return
	}
	e.key, e.pod = e.object, pod
	e.reportPartly(append(m.wrongLabels, wrong...))
}

type podSpec struct {
	NodeName       string             `json:"nodeName"`
	HostNetwork    bool               `json:"hostNetwork"`
	Containers     stdjson.RawMessage `json:"containers"`
	InitContainers stdjson.RawMessage `json:"initContainers"`
}

type container struct {
	Name          string                         `json:"name"`
	RestartPolicy *corev1.ContainerRestartPolicy `json:"restartPolicy"`
	Ports         []containerPort                `json:"ports"`
}

type containerPort struct {
	Name          string             `json:"name"`
	Protocol      corev1.Protocol    `json:"protocol"`
	ContainerPort int32              `json:"containerPort"`
	HostPort      stdjson.RawMessage `json:"hostPort"`
	HostIP        stdjson.RawMessage `json:"hostIP"`
}

// hostPort returns the node's port and address that lead to the container's port. The port is 0 if no port of the node
// leads there, or if the port or the address can't be read.
func (p *containerPort) hostPort() (port int32, address string) {
	if len(p.HostPort) == 0 || decode(p.HostPort, &port) != nil || len(p.HostIP) > 0 && decode(p.HostIP, &address) != nil {
		return 0, ""
	}
	return port, address
}

// podFieldsThatMatter matches the fields of a pod, outside of its metadata, that policy needs. If one of them is given
// twice, the pod is left out.
var podFieldsThatMatter = regexp.MustCompile(`^(\*|spec|status|spec\.(hostNetwork|nodeName)|` +
	`spec\.(initC|c)ontainers(\[\d+\](\.ports.*)?)?|status\.(phase|podIP|podIPs.*))$`)

func (o object) duplicatePodFields() []complaint {
	var all []complaint
	for _, f := range o.duplicates {
		if podFieldsThatMatter.MatchString(f) {
			all = append(all, complaint{f, "it is there twice"})
		}
	}
	return all
}

func readPod(m meta, metadata, spec, status stdjson.RawMessage, path string) (*policy.Pod, []complaint, error) {
	var wrong []complaint
	var s podSpec
	if err := decode(spec, &s); err != nil {
		return nil, nil, err
	}
	pod := corev1.Pod{Spec: corev1.PodSpec{NodeName: s.NodeName, HostNetwork: s.HostNetwork}}
	var rest struct {
		UID         string             `json:"uid"`
		Annotations map[string]string  `json:"annotations"`
		Deleted     stdjson.RawMessage `json:"deletionTimestamp"`
	}
	if err := decode(metadata, &rest); err != nil {
		wrong = append(wrong, complaint{"metadata", err.Error()})
	}
	pod.ObjectMeta = metav1.ObjectMeta{
		Namespace: m.namespace, Name: m.name, UID: types.UID(rest.UID), Labels: m.labels, Annotations: rest.Annotations,
	}
	for _, list := range []struct {
		field string
		raw   stdjson.RawMessage
		into  *[]corev1.Container
	}{
		{"containers", s.Containers, &pod.Spec.Containers},
		{"initContainers", s.InitContainers, &pod.Spec.InitContainers},
	} {
		containers, err := readContainers(list.raw)
		if err != nil {
			wrong = append(wrong, complaint{path + "." + list.field, "no port has a name: " + err.Error()})
		}
		*list.into = containers
	}
	var brief struct {
		Phase  corev1.PodPhase `json:"phase"`
		PodIP  string          `json:"podIP"`
		PodIPs []corev1.PodIP  `json:"podIPs"`
		// Conditions are decoded separately, so that an error in them doesn't remove the pod's addresses.
		Conditions stdjson.RawMessage `json:"conditions"`
	}
	if err := decode(status, &brief); err != nil {
		wrong = append(wrong, complaint{"status", "it has no addresses: " + err.Error()})
	}
	pod.Status = corev1.PodStatus{Phase: brief.Phase, PodIP: brief.PodIP, PodIPs: brief.PodIPs}
	if decode(brief.Conditions, &pod.Status.Conditions) != nil {
		pod.Status.Conditions = nil
	}
	if text := string(rest.Deleted); text != "" && text != "null" {
		pod.DeletionTimestamp = &metav1.Time{}
	}
	read, problems := objects.Pod(&pod)
	read.Unknown, read.Unready = m.unknown, objects.Unready(&pod)
	return &read, append(wrong, complaints(problems)...), nil
}

func readContainers(raw stdjson.RawMessage) ([]corev1.Container, error) {
	var list []container
	if err := decode(raw, &list); err != nil {
		return nil, err
	}
	var all []corev1.Container
	for _, c := range list {
		out := corev1.Container{Name: c.Name, RestartPolicy: c.RestartPolicy}
		for _, p := range c.Ports {
			port := corev1.ContainerPort{Name: p.Name, Protocol: p.Protocol, ContainerPort: p.ContainerPort}
			port.HostPort, port.HostIP = p.hostPort()
			out.Ports = append(out.Ports, port)
		}
		all = append(all, out)
	}
	return all, nil
}
