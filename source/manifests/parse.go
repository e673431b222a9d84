// Package manifests is the source that needs no Kubernetes: it reads a directory of ordinary manifests, as kubectl
// does, and reads a file again whenever it changes. Its invariants:
//
//   - What can't be read never opens a pod: a policy that can't be read closes the pods that it selects.
//   - Of an object that can't be read any more, the last good version stays in force.
//   - Until each file that may have a policy has been read without an error once, there is no state at all.
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

// damage is how much of an object can't be read.
type damage int

const (
	intact      damage = iota
	partly             // the part that can be read counts
	denying            // a policy that can't be read: the pods that it selects are closed
	noSelector         // a policy: it is unknown which pods it selects
	noNamespace        // a policy: it is unknown in which namespace it is
	leftOut            // the object is left out
	notNeeded          // policy doesn't need objects of this kind
)

// entry is one object of a file.
type entry struct {
	where  string // such as "document 2, items[3]"
	object string // kind and name, as far as they can be read
	key    string // kind and name; empty if it is uncertain which object it is
	name   string // of a policy with the damage noNamespace

	namespace  *policy.Namespace
	pod        *policy.Pod
	node       *policy.Node
	policy     *networkingv1.NetworkPolicy
	workload   *policy.Workload
	unenforced *policy.Unenforced

	damage   damage
	problems []complaint
	ignored  []string // fields that have no meaning, or the reason for leaving out what is no object

	kept     bool   // this is the last good version of an object that can't be read any more
	differs  bool   // other files have other versions
	conflict string // says in which other file the object is
}

// maxComplaints is the largest number of complaints that are reported for an object, and of its fields without meaning.
// Without this limit, the author of a file could cause any number of complaints.
const maxComplaints = 20

// complain adds the complaints, each once.
func (e *entry) complain(list ...complaint) {
	for _, c := range list {
		c.why, _, _ = strings.Cut(c.why, " (e.g. ") // Kubernetes' own examples are longer than the rest
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

// ignore records fields that have no meaning.
func (e *entry) ignore(fields []string) {
	for _, f := range fields[:min(len(fields), maxComplaints)] {
		e.ignored = append(e.ignored, printable(f))
	}
	if len(fields) > maxComplaints {
		e.ignored = append(e.ignored, fmt.Sprintf("and %d more", len(fields)-maxComplaints))
	}
}

// leaveOut leaves the object out, for these complaints.
func (e *entry) leaveOut(c ...complaint) {
	e.complain(c...)
	e.damage = leftOut
}

// unparsed is a document in which no object can be found.
type unparsed struct {
	where string
	err   error
	// mayHoldPolicy means that the document could have a policy.
	mayHoldPolicy bool
}

// content is what one file contains.
type content struct {
	entries  []entry
	unparsed []unparsed
}

// parse reads one file.
func parse(data []byte) content {
	var c content
	for _, d := range documents(data) {
		if d.err != nil {
			c.unparsed = append(c.unparsed, unparsed{d.where, d.err, d.mayHoldPolicy})
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

// addLeftOut adds an object that is left out, for that reason.
func (c *content) addLeftOut(o object, why string) {
	c.entries = append(c.entries, entry{where: o.where, object: o.where, damage: leftOut, ignored: []string{why}})
}

// add adds the object, according to its kind.
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
	case isWorkload(o):
		c.addWorkload(o)
	case objects.IsPolicy(o.group(), o.kind):
		m := o.readMeta(o.raw["metadata"], true)
		e := entry{where: o.where, object: o.kind + " " + m.namespace + "/" + m.name}
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

// couldBePolicy reports whether the object is a NetworkPolicy, or may be meant as one: all objects in the groups in
// which NetworkPolicy is or was count, unless their kind is known to be another. A misspelt kind must not leave a
// policy out.
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

// misspelt returns the kind that the object's kind may be a misspelling of; empty if there is none, or the object's
// group isn't one of Kubernetes' own.
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

// Parse reads the manifests of one file. It returns the objects that policy needs, and an error that names the file,
// with each document and field that can't be read. A policy that can't be read as it is written closes the pods that it
// selects.
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
		if e.damage == leftOut && len(e.problems) == 0 { // no object
			errs = append(errs, fmt.Errorf("%s: %s: %s", file, e.where, strings.Join(e.ignored, ", ")))
		}
	}
	var o policy.Objects
	for _, e := range c.entries {
		e.addTo(&o)
	}
	return o, errors.Join(errs...)
}

// addTo adds the entry's object.
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
