package agentapi

import (
	"fmt"
	"strings"
	"time"

	"github.com/weir-net/weir/endpoint"
	"github.com/weir-net/weir/internal/excerpt"
)

// Status is the answer to GET /v1/status: the present state of the agent and of all that it enforces.
type Status struct {
	Ready    bool      `json:"ready"`
	LastSync time.Time `json:"lastSync,omitzero"`
	IPTables string    `json:"iptables"`
	// Errors are the reasons why the node isn't ready or a part of the agent fails now; empty if there are none.
	Errors   []string  `json:"errors"`
	Problems []Problem `json:"problems"`
	// Unenforced are policies that exist, but that weir doesn't enforce.
	Unenforced []Unenforced `json:"unenforced"`
	// Files are the files of a directory of manifests, with the state of each object.
	Files    []File      `json:"files,omitempty"`
	Pods     []PodStatus `json:"pods"`
	Policies []string    `json:"policies"`
	// Audited are those of the policies that are audited: they isolate nothing.
	Audited []string    `json:"audited"`
	Classes []Class     `json:"classes"`
	Sets    []SetStatus `json:"sets"`
	Stats   Stats       `json:"stats"`
	// DropsUnread says why the agent reads no dropped packets. It is empty if it reads them.
	DropsUnread string `json:"dropsUnread,omitempty"`
	// NodeRepairs are the last repairs of node settings that another program had changed, the newest last.
	NodeRepairs []NodeRepair `json:"nodeRepairs"`
}

// Problem is an object, or a field of one, that can't be used as written. A policy's part with a problem allows
// nothing.
type Problem struct {
	Object  string `json:"object"` // kind namespace/name
	Field   string `json:"field"`
	Message string `json:"message"`
}

// String returns one line for a log.
func (p Problem) String() string { return p.Object + ": " + p.Field + ": " + p.Message }

// Unenforced are policies that exist, but that weir doesn't enforce.
type Unenforced struct {
	// Kind is the kind with its group, such as CiliumNetworkPolicy.cilium.io; empty if the kinds are unknown.
	Kind string `json:"kind"`
	// Where names the place of the policies: a file's document, or an API server.
	Where string `json:"where"`
	// Count is the number of the policies; 0 if it is unknown.
	Count int `json:"count"`
}

// String returns one line for a log.
func (u Unenforced) String() string {
	if u.Kind == "" {
		return u.Where
	}
	return fmt.Sprintf("%s is a kind of policy that weir doesn't enforce: %s", u.Kind, u.Where)
}

// Class is the pods of this node that the same policies isolate in one direction. Each family of addresses has its
// own Class.
type Class struct {
	Direction string   `json:"direction"` // ingress or egress
	Policies  []string `json:"policies"`  // none: no policy isolates the pods
	// Audited are audited policies that would isolate the pods. If there are any, there are no Policies.
	Audited []string `json:"audited,omitempty"`
	Set     string   `json:"set"`
	Chain   string   `json:"chain,omitempty"`
	Pods    []string `json:"pods"`
}

// NodeRepair is the node settings of one kind that the agent repaired at one time.
type NodeRepair struct {
	Time  time.Time `json:"time"`
	What  string    `json:"what"` // as the label "what" of weir_node_repairs_total
	Count int       `json:"count"`
	Was   string    `json:"was"` // the state before the first of these repairs, in words
	// Command is the shell command that makes the first of these repairs by hand.
	Command string `json:"command"`
}

// PodStatus is one attachment on this node.
type PodStatus struct {
	Pod         string   `json:"pod"`
	UID         string   `json:"uid,omitempty"`
	ContainerID string   `json:"containerID"`
	Addresses   []string `json:"addresses"`
	MAC         string   `json:"mac"`
	HostIf      string   `json:"hostInterface"`
	// Since is when the plugin made the attachment.
	Since time.Time `json:"since"`
	// Ingress and Egress name the policies that isolate the pod: the first ten, and how many more. Status.Classes
	// has all. Without such policies, the value is one of the Class… constants.
	Ingress string `json:"ingress"`
	Egress  string `json:"egress"`
}

// Values of PodStatus.Ingress and PodStatus.Egress that aren't names of policies.
const (
	ClassOpen   = "open"   // no policy isolates the pod
	ClassClosed = "closed" // the pod is in no class
	// ClassAudited begins the value if audited policies would isolate the pod. Their names follow.
	ClassAudited = "open, audited by "
	// ClassBefore: the pod is in classes of an earlier agent, and this agent hasn't applied its own rules yet.
	ClassBefore = "as before"
	// ClassUnknown: the agent can't read whether the pod is in classes of an earlier agent.
	ClassUnknown = "unknown"
)

// PodOf returns the status of the attachment as far as the record has it. The caller sets Ingress and Egress.
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

// File is one file of a directory of manifests.
type File struct {
	Path    string       `json:"path"` // relative to the directory
	Objects []FileObject `json:"objects"`
}

// FileObject is one object of a file, or a part of a file that should be an object.
type FileObject struct {
	Where  string    `json:"where"`            // such as "document 2"
	Object string    `json:"object,omitempty"` // kind, namespace and name, if they are known
	State  FileState `json:"state"`
	Why    string    `json:"why,omitempty"`
}

// FileState is the result of reading an object.
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

// SetStatus is one of weir's ipsets, as the ruleset has it.
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
}

// FileLines returns the lines of a table of the files' objects and their states, after an empty line. Tabs separate
// the columns. A file without objects has one line. Without files there are no lines.
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

// OneLine makes a text from outside weir fit for a cell of a table. The text is shortened, on one line, and has
// question marks in place of unprintable characters.
func OneLine(s string) string { return strings.ReplaceAll(excerpt.Of(s), "\n", " ") }
