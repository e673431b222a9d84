package agent

import (
	"context"
	"encoding/json"
	"errors"
	"net/http"
	"slices"
	"strings"
	"time"

	"github.com/weir-net/weir/internal/version"
	"github.com/weir-net/weir/policy/enforced"
)

// errNoPosition is the reason why the agent can't say which versions of the objects it enforces.
var errNoPosition = errors.New("this agent doesn't know which resourceVersions it enforces: it doesn't watch an API " +
	"server, or has not read all of its objects yet")

const (
	// longestEnforcedWait bounds how long an answer waits until the agent enforces the versions in the question.
	// enforcedLook is how often it checks that meanwhile. Nothing could wake the answer instead, because most changes of
	// objects end in the source and never reach the loop.
	longestEnforcedWait = 10 * time.Second
	enforcedLook        = 10 * time.Millisecond
)

// enforcedNow returns how far the source's objects are enforced, and the status of the agent at that time. ok is false
// if changes that the source knows of aren't enforced yet, or if this agent has applied no ruleset yet. err is not nil
// if the source doesn't know how far its own watches have come; s is nil if the source can't ever know.
func (a *agent) enforcedNow() (at enforced.Position, s *status, ok bool, err error) {
	source, is := a.Source.(Positioner)
	if !is {
		return at, nil, false, errNoPosition
	}
	// The position comes first: the status is then never older than what the position stands for.
	at, delta, known := source.Position()
	s = a.status.Load()
	if !known {
		return at, s, false, errNoPosition
	}
	return at, s, s.delta >= delta && len(s.enforced.ruleset.Sets) > 0, nil
}

// serveEnforced answers POST /v1/enforced with what the kernel holds for the pods of some namespaces. It waits until
// the versions in the question are enforced. If they aren't when the question's wait is over, it answers with what is
// enforced then, or with an error if the source doesn't know how far its watches have come.
func (a *agent) serveEnforced(w http.ResponseWriter, r *http.Request) {
	var q enforced.Question
	if err := json.NewDecoder(http.MaxBytesReader(w, r.Body, maxQuestion)).Decode(&q); err != nil {
		refuse(w, http.StatusBadRequest, err)
		return
	}
	ctx, cancel := context.WithTimeout(r.Context(), max(0, min(q.Wait, longestEnforcedWait)))
	defer cancel()
	look := time.NewTicker(enforcedLook)
	defer look.Stop()
	for {
		at, s, ok, err := a.enforcedNow()
		if err == nil && ok && s.ready && at.Includes(q.At) {
			writeJSON(w, http.StatusOK, a.enforcedAnswer(r.Context(), q, at, s))
			return
		}
		select {
		case <-look.C:
			continue
		case <-ctx.Done():
		}
		if err != nil {
			refuse(w, http.StatusServiceUnavailable, err)
			return
		}
		if !ok {
			at = enforced.Position{}
		}
		answer := a.enforcedAnswer(r.Context(), q, at, s)
		if !ok {
			answer.Faults = append(answer.Faults, "changes that the agent knows of are not enforced yet")
		}
		writeJSON(w, http.StatusOK, answer)
		return
	}
}

// enforcedAnswer returns what the status says is enforced. It answers one question at a time, because a digest of large
// sets takes time that pods' starts need too. If ctx ends before it is the question's turn, the answer has no contents.
func (a *agent) enforcedAnswer(
	ctx context.Context, q enforced.Question, at enforced.Position, s *status,
) enforced.Answer {
	answer := enforced.Answer{Node: a.Node.Name, Version: version.Of("weir-agent"), At: at}
	if !a.explainer.begin(ctx) {
		return answer
	}
	defer a.explainer.end()
	if answer.Faults = s.errors(); s.ready {
		answer.Faults = nil // the kernel has the rules; another part fails
	} else if len(answer.Faults) == 0 {
		answer.Faults = []string{"the agent has not applied its rules yet"}
	}
	answer.Endpoints = s.enforced.endpoints
	about := func(namespace string) bool { return len(q.Namespaces) == 0 || slices.Contains(q.Namespaces, namespace) }
	for _, p := range s.problems {
		namespace, _, _ := strings.Cut(strings.TrimPrefix(p.Object, "NetworkPolicy "), "/")
		if strings.HasPrefix(p.Object, "NetworkPolicy ") && about(namespace) {
			answer.Problems = append(answer.Problems, p)
		}
	}
	answer.Held = enforced.Of(s.enforced.compiled, q.About(answer.Endpoints), q.Peers)
	return answer
}
