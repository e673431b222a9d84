// Package manifests is the source that needs no Kubernetes: it reads a directory of manifests, and reads a file again
// when it changes.
//
// Invariants:
//   - A file is read only while no process has it open for writing, as far as package dirwatch can tell.
//   - A part that can't be read never allows traffic. A policy with such a part closes the pods that it selects.
//   - If a document, or a policy's selector or namespace, can't be read any more, the last good version stays in force.
//   - Until each file that may have a policy has been parsed once, there are no objects at all. With Dir.IgnoreBroken,
//     Dir waits only for files that are being written.
package manifests

import (
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"

	networkingv1 "k8s.io/api/networking/v1"

	"github.com/weir-net/weir/internal/excerpt"
	"github.com/weir-net/weir/policy"
	"github.com/weir-net/weir/source/objects"
)

type damage int

const (
	intact      damage = iota
	partly             // a part can't be read; the rest is used
	denying            // a policy with a part that can't be read: the pods that it selects are closed
	noSelector         // a policy with a selector that can't be read: all pods of its namespace are closed
	noNamespace        // a policy with a namespace that can't be read: which pods it selects is unknown
	leftOut            // nothing of the object is used
	notNeeded          // an object of a kind that weir doesn't use
)

type entry struct {
	where  string // such as "document 2, items[3]"
	object string // kind, namespace and name, as far as they could be read
	key    string // equal to object; empty if other versions of the object don't matter
	name   string // the name of a policy with a namespace that can't be read

	namespace  *policy.Namespace
	pod        *policy.Pod
	node       *policy.Node
	policy     *networkingv1.NetworkPolicy
	workload   *policy.Workload
	unenforced *policy.Unenforced
	service    *policy.Service // only helps to explain connections: no policy depends on a Service

	damage   damage
	problems []complaint
	ignored  []string // fields that weir doesn't know, or the reason why the document is no object

	kept     bool   // true if this is an earlier version of the object, because the file's present version can't be read
	differs  bool   // true if a different version of the object exists
	conflict string // such as "another version is in FILE", or "the same is in FILE"
}

const maxComplaints = 20

func (e *entry) complain(list ...complaint) {
	for _, c := range list {
		c.why, _, _ = strings.Cut(c.why, " (e.g. ") // cuts off the long examples in messages of Kubernetes
		c.field, c.why = printable(c.field), excerpt.Of(c.why)
		switch {
		case len(e.problems) > maxComplaints:
			return
		case slices.Contains(e.problems, c):
		case len(e.problems) == maxComplaints:
			e.problems = append(e.problems, complaint{c.field, "there are more problems, which aren't listed"})
		default:
			e.problems = append(e.problems, c)
		}
	}
}

func (e *entry) ignore(fields []string) {
	for _, f := range fields[:min(len(fields), maxComplaints)] {
		e.ignored = append(e.ignored, printable(f))
	}
	if len(fields) > maxComplaints {
		e.ignored = append(e.ignored, fmt.Sprintf("and %d more", len(fields)-maxComplaints))
	}
}

func (e *entry) leaveOut(c ...complaint) {
	e.complain(c...)
	e.damage = leftOut
}

type unparsed struct {
	where            string
	err              error
	mayContainPolicy bool
}

type content struct {
	entries  []entry
	unparsed []unparsed
}

// parse returns the objects of one file, and the documents that can't be parsed. It also returns the objects in Lists
// and Templates.
func parse(data []byte) content {
	var c content
	for _, d := range documents(data) {
		if d.err != nil {
			c.unparsed = append(c.unparsed, unparsed{d.where, d.err, d.mayContainPolicy})
			continue
		}
		o := object{where: d.where, duplicates: d.duplicates}
		if !o.read(d.json) {
			c.addLeftOut(o, "it is no object")
			continue
		}
		all, err := unfold(o, 0)
		if err != nil {
			c.unparsed = append(c.unparsed, unparsed{o.where, err, true})
			continue
		}
		for _, o := range all {
			c.add(o)
		}
	}
	return c
}

func (c *content) addLeftOut(o object, why string) {
	c.entries = append(c.entries, entry{where: o.where, object: o.where, damage: leftOut, ignored: []string{why}})
}

func (c *content) add(o object) {
	switch {
	case o.raw == nil:
		c.addLeftOut(o, "it is no object")
	case couldBePolicy(o):
		c.addPolicy(o)
	case slices.ContainsFunc(o.duplicates, func(f string) bool {
		return f == "apiVersion" || f == "kind" || f == wholeObject
	}):
		c.unparsed = append(c.unparsed, unparsed{o.where, errors.New("apiVersion or kind is there twice"), true})
	case o.apiVersion == "" || o.kind == "":
		c.addLeftOut(o, fmt.Sprintf("it is no object: apiVersion is %.80q and kind %.80q, and both must be given",
			o.apiVersion, o.kind))
	case o.apiVersion == "v1" && o.kind == "Namespace":
		c.addNamespace(o)
	case o.apiVersion == "v1" && o.kind == "Pod":
		c.addPod(o)
	case o.apiVersion == "v1" && o.kind == "Node":
		c.addNode(o)
	case o.apiVersion == "v1" && o.kind == "Service":
		c.addService(o)
	case isWorkload(o):
		c.addWorkload(o)
	case objects.IsPolicy(o.group(), o.kind):
		m := o.readMeta(o.raw["metadata"], true)
		e := entry{where: o.where, object: o.kind + " " + m.name}
		if m.isStated { // some kinds of policies have no namespace
			e.object = o.kind + " " + m.namespace + "/" + m.name
		}
		e.unenforced = &policy.Unenforced{Kind: printable(o.kind + "." + o.group()), Where: printable(e.object), Count: 1}
		c.entries = append(c.entries, e)
	default:
		m := o.readMeta(o.raw["metadata"], true)
		e := entry{where: o.where, object: o.kind + " " + m.name, damage: notNeeded}
		if kind := misspelt(o); kind != "" {
			why := fmt.Sprintf("there is no %s in %s; it may be a misspelt %s", o.kind, o.apiVersion, kind)
			e.leaveOut(complaint{"kind", why})
		}
		c.entries = append(c.entries, e)
	}
}

// couldBePolicy reports whether the object is a NetworkPolicy, or could be one whose kind or apiVersion is misspelt.
func couldBePolicy(o object) bool {
	others := []string{
		"Ingress", "IngressClass", "IPAddress", "ServiceCIDR", "ClusterCIDR", "Deployment", "DaemonSet",
		"ReplicaSet", "PodSecurityPolicy", "Scale", "DeploymentRollback", "ReplicationControllerDummy", "ThirdPartyResource",
	}
	switch strings.ToLower(o.group()) {
	case "networking.k8s.io", "extensions":
		return !slices.Contains(others, strings.TrimSuffix(o.kind, "List"))
	case "":
		return strings.EqualFold(o.kind, "NetworkPolicy")
	}
	return false
}

// misspelt returns the known kind that equals the object's kind except for upper and lower case. It returns "" if there
// is none. The object may be of this kind, with a misspelt kind or apiVersion.
func misspelt(o object) string {
	if strings.Contains(o.group(), ".") {
		return ""
	}
	for _, kind := range append(slices.Sorted(maps.Keys(workloadGroups)), "Namespace", "Node", "Pod") {
		if strings.EqualFold(kind, o.kind) {
			return kind
		}
	}
	return ""
}

// Parse reads the manifests of one file. It returns the objects that policy needs, and an error that names each
// document and field that can't be read. The objects are valid even with an error.
func Parse(file string, data []byte) (policy.Objects, error) {
	c := parse(data)
	var errs []error
	for _, u := range c.unparsed {
		errs = append(errs, fmt.Errorf("%s: %s: %w", file, u.where, u.err))
	}
	for _, e := range c.entries {
		for _, p := range e.problems {
			errs = append(errs, fmt.Errorf("%s: %s: %s: %s", file, e.where, e.object, p))
		}
		if e.damage == leftOut && len(e.problems) == 0 { // the document is no Kubernetes object
			errs = append(errs, fmt.Errorf("%s: %s: %s", file, e.where, strings.Join(e.ignored, ", ")))
		}
	}
	var o policy.Objects
	for _, e := range c.entries {
		e.addTo(&o)
	}
	return o, errors.Join(errs...)
}

func (e entry) addTo(o *policy.Objects) {
	switch {
	case e.namespace != nil:
		o.Namespaces = append(o.Namespaces, *e.namespace)
	case e.pod != nil:
		o.Pods = append(o.Pods, *e.pod)
	case e.node != nil:
		o.Nodes = append(o.Nodes, *e.node)
	case e.policy != nil:
		o.Policies = append(o.Policies, e.policy)
	case e.workload != nil:
		o.Workloads = append(o.Workloads, *e.workload)
	case e.unenforced != nil:
		o.Unenforced = append(o.Unenforced, *e.unenforced)
	}
}
