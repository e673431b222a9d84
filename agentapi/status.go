package agentapi

import (
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/weir-net/weir/endpoint"
	"github.com/weir-net/weir/internal/excerpt"
)

type Status struct {
	Ready    bool      `json:"ready"`
	LastSync time.Time `json:"lastSync,omitzero"`
	IPTables string    `json:"iptables"`
	// Backend is the backend that enforces the policies: iptables or nftables; empty if no backend works. BackendReason
	// says why the backend was chosen.
	Backend       string `json:"backend"`
	BackendReason string `json:"backendReason"`
	// Errors say why the node isn't ready, or which parts of the agent fail. The list is empty if all is well.
	Errors     []string     `json:"errors"`
	Problems   []Problem    `json:"problems"`
	Unenforced []Unenforced `json:"unenforced"`
	Files      []File       `json:"files,omitempty"`
	Pods       []PodStatus  `json:"pods"`
	Policies   []string     `json:"policies"`
	// Audited names the policies of Policies that have the audit annotation. They isolate nothing.
	Audited []string    `json:"audited"`
	Classes []Class     `json:"classes"`
	Sets    []SetStatus `json:"sets"`
	Stats   Stats       `json:"stats"`
	// DropsUnread says why the agent reads no dropped packets. It is empty if the agent reads them.
	DropsUnread string `json:"dropsUnread,omitempty"`
	// NodeRepairs are the last repairs of node settings, the newest last.
	NodeRepairs []NodeRepair `json:"nodeRepairs"`
}

// Problem is an object, or one of its fields, that can't be used as written. The part of a policy that has a problem
// allows nothing.
type Problem struct {
	Object  string `json:"object"` // the kind, and then the name or namespace/name
	Field   string `json:"field"`
	Message string `json:"message"`
}

func (p Problem) String() string { return p.Object + ": " + p.Field + ": " + p.Message }

// Unenforced counts policies of a kind that weir doesn't enforce.
type Unenforced struct {
	// Kind includes the group, as in CiliumNetworkPolicy.cilium.io. It is empty if the kinds are unknown.
	Kind  string `json:"kind"`
	Where string `json:"where"`
	// Count is 0 if the number of policies is unknown.
	Count int `json:"count"`
}

func (u Unenforced) String() string {
	if u.Kind == "" {
		return u.Where
	}
	return fmt.Sprintf("%s is a kind of policy that weir doesn't enforce: %s", u.Kind, u.Where)
}

// Class has the pods that the same policies isolate in one direction. If the pods have addresses of both families,
// there is a Class for each family.
type Class struct {
	Direction string   `json:"direction"` // ingress or egress
	Family    string   `json:"family"`    // IPv4 or IPv6
	Policies  []string `json:"policies"`  // empty if no policy isolates the pods
	// Audited are the audited policies that would isolate the pods. The list is empty if policies isolate the pods.
	Audited []string `json:"audited,omitempty"`
	// Set is the set or map in the kernel that has the pods' addresses. The set may also have the addresses of other
	// classes.
	Set   string   `json:"set"`
	Chain string   `json:"chain,omitempty"`
	Pods  []string `json:"pods"`
}

// NodeRepair says which node settings of one kind the agent has repaired at one time.
type NodeRepair struct {
	Time  time.Time `json:"time"`
	Kind  string    `json:"kind"` // one of the values of the label "kind" of weir_node_repairs_total
	Count int       `json:"count"`
	Was   string    `json:"was"` // the states before the first five of these repairs, in words
	// Command is the shell command for the first of these repairs.
	Command string `json:"command"`
}

// PodStatus is the status of one attachment on this node.
type PodStatus struct {
	Pod         string    `json:"pod"`
	UID         string    `json:"uid,omitempty"`
	ContainerID string    `json:"containerID"`
	Addresses   []string  `json:"addresses"`
	MAC         string    `json:"mac"`
	HostIf      string    `json:"hostInterface"`
	Since       time.Time `json:"since"`
	// Ingress and Egress have the names of the policies that isolate the pod, the first ten at most. If the agent knows
	// of no such policy, Ingress and Egress have one of the values below.
	Ingress string `json:"ingress"`
	Egress  string `json:"egress"`
}

// Values of PodStatus.Ingress and PodStatus.Egress if the agent knows of no policy that isolates the pod.
const (
	ClassOpen   = "open"   // no policy isolates the pod
	ClassClosed = "closed" // the pod is in no class, so its new connections are dropped
	// ClassAudited comes before the names of the audited policies that would isolate the pod.
	ClassAudited = "open, audited by "
	// ClassBefore means that an earlier agent's rules still apply to the pod.
	ClassBefore = "as before"
	// ClassUnknown means that the agent can't read whether an earlier agent's rules apply to the pod.
	ClassUnknown = "unknown"
)

// ClassIsolated is the state of a pod that policies isolate.
const ClassIsolated = "isolated"

// ClassStates are all states that StateOf returns.
var ClassStates = []string{ClassOpen, ClassIsolated, ClassClosed, ClassBefore, ClassUnknown}

// StateOf returns the state that a value of PodStatus.Ingress or PodStatus.Egress means. A status says the state only
// in this text, because other versions of weirctl print it. No list of policies is taken for a state: it contains a
// slash, and its first name (NAMESPACE/NAME) has no comma or space before the slash.
func StateOf(class string) string {
	switch {
	case strings.HasPrefix(class, ClassAudited):
		return ClassOpen
	case slices.Contains(ClassStates, class):
		return class
	}
	return ClassIsolated
}

// PodOf returns the record as a status. The caller sets Ingress and Egress.
func PodOf(e endpoint.Endpoint) PodStatus {
	p := PodStatus{
		Pod:         e.Pod.String(),
		UID:         e.Pod.UID,
		ContainerID: e.ContainerID,
		MAC:         e.MAC,
		HostIf:      e.HostIf,
		Since:       e.Created,
	}
	for _, a := range e.Addresses {
		p.Addresses = append(p.Addresses, a.Addr.String())
	}
	return p
}

type File struct {
	Path    string       `json:"path"` // relative to the directory of the manifests
	Objects []FileObject `json:"objects"`
}

// FileObject is an object in a file, or a part of the file in which weir finds no object.
type FileObject struct {
	Where  string    `json:"where"`            // such as "document 2"
	Object string    `json:"object,omitempty"` // kind, namespace and name, if they are known
	State  FileState `json:"state"`
	Why    string    `json:"why,omitempty"`
}

// FileState is the result of reading an object from a file.
type FileState string

// Values of FileObject.State, as weirctl status prints them.
const (
	FileRead        FileState = "read"
	FilePartly      FileState = "read in part"
	FileCloses      FileState = "closes its pods"
	FileKept        FileState = "last good version"
	FileNotNeeded   FileState = "no part of policy"
	FileLeftOut     FileState = "left out"
	FileNotEnforced FileState = "not enforced"
	FileUnreadable  FileState = "unreadable"
)

// SetStatus is one of weir's sets or maps in the kernel.
type SetStatus struct {
	Name    string `json:"name"`
	Type    string `json:"type"`
	Entries int    `json:"entries"`
}

// Stats counts events since the agent started.
type Stats struct {
	Changes     int `json:"changes"`  // changes of sets and rules
	Failures    int `json:"failures"` // failed attempts to change sets and rules
	Repairs     int `json:"repairs"`  // repairs of sets and rules that another program had changed
	Cut         int `json:"cut"`      // connections that were cut
	NodeRepairs int `json:"nodeRepairs"`
	Moves       int `json:"moves"` // moves from one backend to another
}

// FileLines returns the lines of a table that lists the files' objects. Tabs separate the columns. If there are no
// files, there are no lines.
func FileLines(files []File) []string {
	var all []string
	if len(files) > 0 {
		all = append(all, "", "FILE\tOBJECT\tSTATE\tWHY")
	}
	for _, f := range files {
		if len(f.Objects) == 0 {
			all = append(all, fmt.Sprintf("%s\t-\t%s\t", OneLine(f.Path), FileRead))
		}
		for _, o := range f.Objects {
			object := o.Object
			if object == "" {
				object = o.Where
			}
			all = append(all, fmt.Sprintf("%s\t%s\t%s\t%s", OneLine(f.Path), OneLine(object), o.State, OneLine(o.Why)))
		}
	}
	return all
}

// OneLine makes a text from outside weir safe to print: it is one line, shortened, and has question marks for
// unprintable characters.
func OneLine(s string) string { return strings.ReplaceAll(excerpt.Of(s), "\n", " ") }
