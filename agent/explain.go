package agent

import (
	"context"
	"encoding/json"
	"errors"
	"net/http"
	"net/netip"
	"slices"
	"sync/atomic"

	"github.com/weir-net/weir/policy"
	"github.com/weir-net/weir/policy/explain"
	"github.com/weir-net/weir/policy/ruleset"
)

// explainer answers questions in goroutines beside the loop, one at a time: pods' starts need the processor too.
type explainer struct {
	source    Source
	backend   *atomic.Pointer[Backend]
	snapshots *snapshots
	status    *atomic.Pointer[status]
	node      string
	one       chan struct{} // has an element while a question is being answered
	// An answer with all objects may have a hundred megabytes, so only one is sent at a time.
	sending chan struct{}
}

var errNoView = errors.New("this agent's source can't show its objects")

func refuse(w http.ResponseWriter, status int, err error) {
	writeJSON(w, status, struct {
		Error string `json:"error"`
	}{err.Error()})
}

// begin waits until no other question is being answered. It returns false if ctx ends before that, because the client
// has disconnected. If it returns true, the caller must call end.
func (x *explainer) begin(ctx context.Context) bool {
	select {
	case x.one <- struct{}{}:
		return true
	case <-ctx.Done():
		return false
	}
}

func (x *explainer) end() { <-x.one }

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
	return explain.Cluster{
		Objects: objects, Endpoints: by.endpoints, Node: x.node, Services: services, Gaps: x.status.Load().gaps(),
	}, nil
}

func (x *explainer) serveObjects(w http.ResponseWriter, r *http.Request) {
	select {
	case x.sending <- struct{}{}:
		defer func() { <-x.sending }()
	case <-r.Context().Done():
		return
	}
	if !x.begin(r.Context()) {
		return
	}
	c, err := x.cluster(r.Context(), func(*policy.Pod) bool { return true })
	x.end() // not after sending: the client may be slow, and other questions needn't wait for it
	if err != nil {
		refuse(w, http.StatusServiceUnavailable, err)
		return
	}
	writeJSON(w, http.StatusOK, c)
}

// maxQuestion is in bytes. A question may contain the Services of a whole cluster.
const maxQuestion = 16 << 20

func (x *explainer) serveExplain(w http.ResponseWriter, r *http.Request) {
	var question explain.Question
	if err := json.NewDecoder(http.MaxBytesReader(w, r.Body, maxQuestion)).Decode(&question); err != nil {
		refuse(w, http.StatusBadRequest, err)
		return
	}
	if !x.begin(r.Context()) {
		return
	}
	e, err := x.explain(r.Context(), question)
	x.end()
	var input *explain.InputError
	switch {
	case errors.As(err, &input):
		refuse(w, http.StatusBadRequest, err)
	case err != nil:
		refuse(w, http.StatusServiceUnavailable, err)
	default:
		writeJSON(w, http.StatusOK, e)
	}
}

// explain asks the source only for pods that the question concerns. If a name in the question is wrong, it asks for all
// pods, to suggest similar names.
func (x *explainer) explain(ctx context.Context, question explain.Question) (explain.Explanation, error) {
	q, err := explain.Parse(question.From, question.To, question.Namespace)
	if err != nil {
		return explain.Explanation{}, err
	}
	own, err := ownAddresses()
	if err != nil {
		return explain.Explanation{}, err
	}
	about := func(keep func(*policy.Pod) bool) (explain.Cluster, error) {
		c, err := x.cluster(ctx, keep)
		c.Own, c.Services = own, append(c.Services, question.Services...)
		return c, err
	}
	by := x.snapshots.target.Load()
	c := explain.Cluster{Endpoints: by.endpoints, Objects: policy.Objects{Nodes: by.nodes}, Services: question.Services}
	for range 2 { // the second round also finds other pods with the same addresses
		if c, err = about(q.Concerns(c)); err != nil {
			return explain.Explanation{}, err
		}
	}
	e, err := explain.Explain(c, q)
	if input := (*explain.InputError)(nil); errors.As(err, &input) { // a wrong name: again, to find similar names
		if c, err = about(func(*policy.Pod) bool { return true }); err == nil {
			e, err = explain.Explain(c, q)
		}
	}
	if err != nil {
		return e, err
	}
	x.addKernel(ctx, &e)
	return e, nil
}

// addKernel adds the verdicts of the rules that the kernel has. If the rules change meanwhile, or the kernel's rules
// differ from the agent's ruleset, it looks again, three times in all.
func (x *explainer) addKernel(ctx context.Context, e *explain.Explanation) {
	const tries = 3
	for range tries {
		by := x.snapshots.enforced.Load()
		v := explain.View{Node: x.node, Want: by.ruleset, Links: by.links()}
		packets := checked(e, v.Links)
		if len(packets) == 0 {
			e.AddKernel(v) // adds notes that say why there is nothing to look at
			return
		}
		inspected, err := (*x.backend.Load()).Inspect(ctx, by.ruleset, packets)
		if v.Have, v.Wrong, v.Unread = inspected.Ruleset, inspected.Wrong, inspected.Unread; err != nil {
			v.Unknown = err.Error()
		}
		if len(by.ruleset.Sets) == 0 {
			v.Unknown = "this agent has not applied its rules yet, so those of an earlier agent are in force"
		}
		e.AddKernel(v)
		if x.snapshots.enforced.Load() == by && !e.Differs() {
			return
		}
	}
}

func checked(e *explain.Explanation, links map[netip.Addr]ruleset.Link) (packets []ruleset.Packet) {
	for i := range e.Paths {
		if p, ok := e.Paths[i].Packet(links); ok {
			packets = append(packets, p)
		}
	}
	return packets
}
