package agent

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"net/netip"
	"slices"
	"strings"
	"time"

	"github.com/weir-net/weir/agentapi"
	"github.com/weir-net/weir/endpoint"
	"github.com/weir-net/weir/netfilter/iptables"
	"github.com/weir-net/weir/policy"
	"github.com/weir-net/weir/policy/ruleset"
)

// errNotSynced refuses pods before the first good state is in the kernel.
var errNotSynced = errors.New("the agent has no good state of the policies yet (weirctl status says why)")

// enrolment is a plugin's request to judge a new pod, and the answer it waits for.
type enrolment struct {
	id    string
	pod   endpoint.Pod // once it was let in
	until time.Time
	reply chan reply // buffered: who asked may have gone
}

type reply struct {
	status int
	agentapi.EnrolAnswer
}

func (a *agent) takeEnrolment(ctx context.Context, e *enrolment) {
	a.takeRecord(e.id)
	a.moved = true
	a.waiting = append(a.waiting, e)
	ep, ok := a.endpoints[e.id]
	if !ok {
		return
	}
	var addrs []netip.Addr
	for _, addr := range ep.Addresses {
		addrs = append(addrs, addr.Addr)
	}
	a.purged = a.driver.Reread(addrs...) || a.purged
	if a.objects == nil {
		return
	}
	if !a.knows(ep) {
		a.lookup(ctx, ep)
	}
}

// chainsStand says what must be read to be sure that the chains a new pod is let in by are there. Reading is most of what
// an enrolment takes, and isn't needed where the kernel tells of all changes and has told of none.
func (a *agent) chainsStand(ctx context.Context) iptables.Verify {
	if a.driver.Flavour == iptables.NFT && a.drift.none(ctx, a.driver) {
		return iptables.Trust
	}
	return iptables.Rules
}

// answer tells those whose pods are in their classes now, and gives up on those who have waited long enough; while
// err is not nil, nobody's is. It returns how soon the first of those who still wait gives up; 0 if nobody waits.
func (a *agent) answer(err error) time.Duration {
	var next time.Duration
	a.waiting = slices.DeleteFunc(a.waiting, func(e *enrolment) bool {
		r, final := a.verdict(e.id, err)
		if left := time.Until(e.until); !final && left > 0 {
			next = sooner(next, left)
			return false
		}
		if r.status == http.StatusOK {
			a.enrolled[e.id], e.pod = true, a.endpoints[e.id].Pod
		}
		e.reply <- r
		return true
	})
	return next
}

// verdict is what can be said of the endpoint now. It is not final if waiting may change it.
func (a *agent) verdict(id string, err error) (r reply, final bool) {
	ep, ok := a.endpoints[id]
	switch {
	case !ok:
		return reply{http.StatusNotFound, agentapi.EnrolAnswer{Error: "there is no endpoint record " + id}}, true
	case err != nil:
		return reply{http.StatusServiceUnavailable, agentapi.EnrolAnswer{Error: policy.Excerpt(err.Error())}}, false
	case !a.knows(ep):
		return reply{http.StatusNotFound, agentapi.EnrolAnswer{Error: a.whyUnknown(ep)}}, false
	}
	if what := a.outdated(ep); what != "" {
		return reply{http.StatusConflict, agentapi.EnrolAnswer{Error: a.whyOutdated(what)}}, true
	}
	pod := ep.Pod.String()
	return reply{http.StatusOK, agentapi.EnrolAnswer{
		Ingress: class(a.ruleset.Classes, ruleset.Ingress, pod), Egress: class(a.ruleset.Classes, ruleset.Egress, pod),
	}}, true
}

func (a *agent) whyUnknown(e endpoint.Endpoint) string {
	if p, _ := find(a.objects.Pods, e.Pod); p.Name != "" {
		return fmt.Sprintf("pod %s has UID %s, but the runtime starts one with UID %s: a namesake's labels are not used", e.Pod, p.UID, e.Pod.UID)
	}
	return fmt.Sprintf("the source knows no pod %s", e.Pod)
}

// serveEnrol answers POST /v1/endpoints: {"id": "CONTAINER:IFNAME"}, whose record is on disk.
func (a *agent) serveEnrol(w http.ResponseWriter, r *http.Request) {
	began := time.Now()
	answer := a.enrol(w, r)
	a.metrics.enrolled(answer.status, began)
	writeJSON(w, answer.status, answer.EnrolAnswer)
}

func (a *agent) enrol(w http.ResponseWriter, r *http.Request) reply {
	var req agentapi.EnrolRequest
	if err := json.NewDecoder(http.MaxBytesReader(w, r.Body, 4<<10)).Decode(&req); err != nil {
		return reply{http.StatusBadRequest, agentapi.EnrolAnswer{Error: "request: " + err.Error()}}
	}
	if err := endpoint.CheckID(req.ID); err != nil {
		return reply{http.StatusBadRequest, agentapi.EnrolAnswer{Error: err.Error()}}
	}
	busy := reply{http.StatusServiceUnavailable, agentapi.EnrolAnswer{Error: "the agent is busy"}}
	e := &enrolment{id: req.ID, until: time.Now().Add(a.EnrolWait), reply: make(chan reply, 1)}
	ctx, cancel := context.WithTimeout(r.Context(), a.EnrolWait+10*time.Second)
	defer cancel()
	if !a.hand(ctx, func() iptables.Verify {
		a.takeEnrolment(ctx, e)
		return a.chainsStand(ctx)
	}) {
		return busy
	}
	select {
	case answer := <-e.reply:
		if answer.status == http.StatusOK {
			a.awaitPublished(ctx, e)
		}
		return answer
	case <-ctx.Done():
		return busy
	}
}

// publishWait bounds how long a pod's start is held up until other nodes can know it. That takes one answer of the API
// server's, some milliseconds; without it the pod's first packet may be dropped there, and TCP sends the next after a
// second, so waiting longer than that would gain nothing.
const publishWait = time.Second

func (a *agent) awaitPublished(ctx context.Context, e *enrolment) {
	source, ok := a.Source.(Publisher)
	_, ifName, _ := strings.Cut(e.id, ":")
	if !ok || e.pod.UID == "" || ifName != podInterface { // such addresses aren't published
		return
	}
	ctx, cancel := context.WithTimeout(ctx, publishWait)
	defer cancel()
	source.AwaitPublished(ctx, e.pod)
}

func writeJSON(w http.ResponseWriter, status int, v any) {
	w.Header().Set("Content-Type", "application/json")
	w.WriteHeader(status)
	_ = json.NewEncoder(w).Encode(v) // who asked has gone
}
