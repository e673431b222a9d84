package agent

import (
	"context"
	"errors"
	"net/http"
	"slices"

	"github.com/weir-net/weir/policy"
	"github.com/weir-net/weir/policy/explain"
)

// explainer answers what the policies and the kernel do with a connection. It uses the source's objects and the loop's
// snapshots, so that the loop never waits for it. It answers one question at a time: an answer reads the name of every
// pod of the cluster, and pods' starts need the processor too.
type explainer struct {
	source    Source
	snapshots *snapshots
	node      string
	one       chan struct{} // has room for one: the question that is being answered
}

// errNoView means that the source can't show its objects.
var errNoView = errors.New("this agent's source can't show its objects")

// refuse answers with the reason why a question has no answer.
func refuse(w http.ResponseWriter, status int, err error) {
	writeJSON(w, status, struct {
		Error string `json:"error"`
	}{err.Error()})
}

// begin waits until no other question is being answered. It returns false if the client has gone.
func (x *explainer) begin(ctx context.Context) bool {
	select {
	case x.one <- struct{}{}:
		return true
	case <-ctx.Done():
		return false
	}
}

func (x *explainer) end() { <-x.one }

// cluster returns the cluster as this node's rules see it: the source's objects with the Nodes' accepted claims, this
// node's attachments, and the pods that were looked up. Of the pods it has only those that keep returns true for.
func (x *explainer) cluster(ctx context.Context, keep func(*policy.Pod) bool) (explain.Cluster, error) {
	source, ok := x.source.(Viewer)
	if !ok {
		return explain.Cluster{}, errNoView
	}
	by := x.snapshots.target.Load()
	hidden := func(p *policy.Pod) bool {
		return slices.ContainsFunc(by.lookups, func(l *policy.Pod) bool {
			return l.Namespace == p.Namespace && l.Name == p.Name
		})
	}
	objects, services, err := source.View(ctx, func(p *policy.Pod) bool { return keep(p) && !hidden(p) })
	if err != nil {
		return explain.Cluster{}, err
	}
	for _, p := range by.lookups {
		if keep(p) {
			objects.Pods = append(objects.Pods, *p)
		}
	}
	objects.Nodes = by.nodes
	return explain.Cluster{Objects: objects, Endpoints: by.endpoints, Node: x.node, Services: services}, nil
}

// serveObjects answers POST /v1/objects with all objects that the agent knows.
func (x *explainer) serveObjects(w http.ResponseWriter, r *http.Request) {
	if !x.begin(r.Context()) {
		return
	}
	defer x.end()
	c, err := x.cluster(r.Context(), func(*policy.Pod) bool { return true })
	if err != nil {
		refuse(w, http.StatusServiceUnavailable, err)
		return
	}
	writeJSON(w, http.StatusOK, c)
}
