package agent

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"net/netip"
	"slices"
	"time"

	"github.com/weir-net/weir/agentapi"
	"github.com/weir-net/weir/endpoint"
	"github.com/weir-net/weir/internal/excerpt"
	"github.com/weir-net/weir/netfilter"
	"github.com/weir-net/weir/policy/ruleset"
)

var errNotSynced = errors.New("the agent has no good state of the policies yet (weirctl status says why)")

// enrolments has the waiting plugins and the enrolled endpoints. Each plugin gets exactly one answer, in the first
// reconcile after its deadline at the latest.
type enrolments struct {
	waiting []*enrolment
	done    map[string]bool // the enrolled endpoints, by endpoint ID
}

type enrolment struct {
	ctx      context.Context // the context of the plugin's HTTP request
	id       string
	pod      endpoint.Pod // empty until the pod is enrolled
	deadline time.Time
	answer   chan answer // has room for one answer, so the loop never waits for a plugin
}

type answer struct {
	status int
	agentapi.EnrolAnswer
}

func refusal(status int, why string) answer { return answer{status, agentapi.EnrolAnswer{Error: why}} }

func newEnrolments() enrolments { return enrolments{done: map[string]bool{}} }

func (e *enrolments) waits(id string) bool {
	return slices.ContainsFunc(e.waiting, func(w *enrolment) bool { return w.id == id })
}

// answer sends final answers at once, and other answers at the plugin's deadline. It returns the time until the next
// deadline; 0 means that no plugin waits.
func (e *enrolments) answer(
	decide func(id string) (r answer, final bool), podOf func(id string) endpoint.Pod,
) time.Duration {
	var next time.Duration
	e.waiting = slices.DeleteFunc(e.waiting, func(w *enrolment) bool {
		r, final := decide(w.id)
		if left := time.Until(w.deadline); !final && left > 0 {
			next = sooner(next, left)
			return false
		}
		if r.status == http.StatusOK {
			e.done[w.id], w.pod = true, podOf(w.id)
		}
		w.answer <- r
		return true
	})
	return next
}

// takeEnrolment lets the plugin wait for its answer. The plugin has just changed the endpoint's record and sets, so
// takeEnrolment reads both.
func (a *agent) takeEnrolment(e *enrolment) {
	walk := a.records.read(e.id)
	a.cutting.makeDue(walk)
	a.records.churn = true
	a.enrolments.waiting = append(a.enrolments.waiting, e)
	ep, ok := a.records.endpoints[e.id]
	if !ok {
		return
	}
	var addrs []netip.Addr
	for _, addr := range ep.Addresses {
		addrs = append(addrs, addr.Addr)
	}
	a.kernel.pluginChanged = a.backend.Reread(addrs...) || a.kernel.pluginChanged
	if a.cluster.known && !a.cluster.knows(ep) {
		a.lookup(e.ctx, ep)
	}
}

// chainsToVerify says how much of the kernel to read before a pod is enrolled. Reading the tables is slow, so the
// agent reads them only if another program may have changed them.
func (a *agent) chainsToVerify(ctx context.Context) netfilter.Verify {
	if a.backend.TellsOfChanges() && a.drift.none(ctx, a.backend) {
		return netfilter.Trust
	}
	return netfilter.Rules
}

func (a *agent) answer(err error) time.Duration {
	return a.enrolments.answer(
		func(id string) (answer, bool) { return a.answerFor(id, err) },
		func(id string) endpoint.Pod { return a.records.endpoints[id].Pod })
}

// answerFor returns the answer that the plugin would get now about the endpoint with this ID. err says why no pod can
// be enrolled now, or is nil. final is false if the answer may still change.
func (a *agent) answerFor(id string, err error) (r answer, final bool) {
	ep, ok := a.records.endpoints[id]
	switch {
	case !ok:
		return refusal(http.StatusNotFound, "there is no endpoint record "+id), true
	case err != nil:
		return refusal(http.StatusServiceUnavailable, excerpt.Of(err.Error())), false
	case !a.cluster.knows(ep):
		return refusal(http.StatusNotFound, a.cluster.whyUnknown(ep)), false
	}
	if what := a.outdated(ep); what != "" {
		return refusal(http.StatusConflict, a.whyOutdated(what)), true
	}
	pod, enforced := ep.Pod.String(), a.snapshots.enforced.Load()
	return answer{http.StatusOK, agentapi.EnrolAnswer{
		Ingress: enforced.class(ruleset.Ingress, pod), Egress: enforced.class(ruleset.Egress, pod),
	}}, true
}

func (c *clusterView) whyUnknown(e endpoint.Endpoint) string {
	if uid, ok := c.uid(e.Pod); ok {
		return fmt.Sprintf("pod %s has UID %s, but the runtime starts one with UID %s: a namesake's labels are not used",
			e.Pod, uid, e.Pod.UID)
	}
	return fmt.Sprintf("the source knows no pod %s", e.Pod)
}

func (a *agent) serveEnrol(w http.ResponseWriter, r *http.Request) {
	began := time.Now()
	answer := a.enrol(w, r)
	a.metrics.enrolled(answer.status, began)
	writeJSON(w, answer.status, answer.EnrolAnswer)
}

func (a *agent) enrol(w http.ResponseWriter, r *http.Request) answer {
	var req agentapi.EnrolRequest
	if err := json.NewDecoder(http.MaxBytesReader(w, r.Body, 4<<10)).Decode(&req); err != nil {
		return refusal(http.StatusBadRequest, "request: "+err.Error())
	}
	if err := endpoint.CheckID(req.ID); err != nil {
		return refusal(http.StatusBadRequest, err.Error())
	}
	busy := refusal(http.StatusServiceUnavailable, "the agent is busy")
	ctx, cancel := context.WithTimeout(r.Context(), a.EnrolWait+10*time.Second)
	defer cancel()
	e := &enrolment{ctx: ctx, id: req.ID, deadline: time.Now().Add(a.EnrolWait), answer: make(chan answer, 1)}
	if !a.send(ctx, enrolRequest{e}) {
		return busy
	}
	select {
	case answer := <-e.answer:
		if answer.status == http.StatusOK {
			a.awaitPublished(ctx, e)
		}
		return answer
	case <-ctx.Done():
		return busy
	}
}

// writeJSON sends the value. It gives up after answerTimeout if the client doesn't read.
func writeJSON(w http.ResponseWriter, status int, v any) {
	_ = http.NewResponseController(w).SetWriteDeadline(time.Now().Add(answerTimeout)) // fails only in tests
	w.Header().Set("Content-Type", "application/json")
	w.WriteHeader(status)
	_ = json.NewEncoder(w).Encode(v) // fails only if the client is gone or too slow
}
