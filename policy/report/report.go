// Package report is what the agent says of itself to whoever asks on its socket. It is apart from the agent so that those
// who ask don't link it.
package report

import (
	"fmt"
	"strings"
	"time"

	"github.com/weir-net/weir/endpoint"
	"github.com/weir-net/weir/policy"
	"github.com/weir-net/weir/policy/ruleset"
)

// Status is what GET /v1/status answers: what is enforced now.
type Status struct {
	Ready    bool      `json:"ready"`
	LastSync time.Time `json:"lastSync,omitzero"`
	IPTables string    `json:"iptables"`
	// Errors are what stands in the way now; empty if all is well.
	Errors   []string          `json:"errors"`
	Problems []ruleset.Problem `json:"problems"`
	// Unenforced are policies that are there and that weir doesn't enforce.
	Unenforced []policy.Unenforced `json:"unenforced"`
	// Files are those of a directory of manifests, with what became of each object.
	Files    []File          `json:"files,omitempty"`
	Pods     []PodStatus     `json:"pods"`
	Policies []string        `json:"policies"`
	Classes  []ruleset.Class `json:"classes"`
	Sets     []SetStatus     `json:"sets"`
	Stats    Stats           `json:"stats"`
	// NodeRepairs are the last changes by somebody else to what weir sets up on the node that were undone.
	NodeRepairs []NodeRepair `json:"nodeRepairs"`
}

// NodeRepair is what was put right at one time of what weir sets up on the node.
type NodeRepair struct {
	Time  time.Time `json:"time"`
	What  string    `json:"what"` // as in weir_node_repairs_total
	Count int       `json:"count"`
	Was   string    `json:"was"` // the first of them, in words
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
	// Since is when the plugin attached it.
	Since time.Time `json:"since"`
	// Ingress and Egress name the policies that isolate the pod; "open" if none does, "closed" if the pod isn't judged
	// because the source doesn't know it. Until the agent has brought its first state into the kernel they are "as
	// before" if rules of an earlier agent's judge the pod, "closed" if none do, and "unknown" if that can't be read.
	Ingress string `json:"ingress"`
	Egress  string `json:"egress"`
}

// Pod is what the record alone says of the attachment: Ingress and Egress are left to the caller.
func Pod(e endpoint.Endpoint) PodStatus {
	p := PodStatus{Pod: e.Pod.String(), UID: e.Pod.UID, ContainerID: e.ContainerID, MAC: e.MAC, HostIf: e.HostIf, Since: e.Created}
	for _, a := range e.Addresses {
		p.Addresses = append(p.Addresses, a.Addr.String())
	}
	return p
}

// File is one file of a directory of manifests.
type File struct {
	Path    string       `json:"path"` // below the directory
	Objects []FileObject `json:"objects"`
}

// FileObject is one object of a file, or what stands where one should.
type FileObject struct {
	Where  string    `json:"where"`            // such as "document 2"
	Object string    `json:"object,omitempty"` // kind and name
	State  FileState `json:"state"`
	Why    string    `json:"why,omitempty"`
}

// FileState is what became of it.
type FileState string

// The states.
const (
	Read        FileState = "read"
	Partly      FileState = "read in part"
	Closes      FileState = "closes its pods"
	Kept        FileState = "last good version"
	NotNeeded   FileState = "no part of policy"
	LeftOut     FileState = "left out"
	NotEnforced FileState = "not enforced"
	Unreadable  FileState = "unreadable"
)

// SetStatus is one ipset.
type SetStatus struct {
	Name    string `json:"name"`
	Type    string `json:"type"`
	Entries int    `json:"entries"`
}

// Stats count since the agent started.
type Stats struct {
	Changes  int `json:"changes"`  // of the kernel's state
	Failures int `json:"failures"` // to change it
	Repairs  int `json:"repairs"`  // of what somebody else had changed
	Cut      int `json:"cut"`      // connections
	// NodeRepairs count what of the node itself was put right.
	NodeRepairs int `json:"nodeRepairs"`
}

// Lines are a table of what became of the files' objects, its columns separated by tabs.
func Lines(files []File) []string {
	var all []string
	if len(files) > 0 {
		all = append(all, "", "FILE\tOBJECT\tSTATE\tWHY")
	}
	for _, f := range files {
		if len(f.Objects) == 0 {
			all = append(all, fmt.Sprintf("%s\t-\t%s\t", OneLine(f.Path), Read))
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

// OneLine has a text of others' fit into a table.
func OneLine(s string) string { return strings.ReplaceAll(policy.Excerpt(s), "\n", " ") }
