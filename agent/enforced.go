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

var errNoPosition = errors.New("this agent doesn't know which resourceVersions it enforces: it doesn't watch an API " +
	"server, or has not read all of its objects yet")

const (
	// Until the question's position (enforced.Question.At) is enforced, serveEnforced looks again every
	// enforcedLook, for at most longestEnforcedWait. It can't wait for a reconcile, because most changes of objects
	// cause no reconcile.
	longestEnforcedWait = 10 * time.Second
	enforcedLook        = 10 * time.Millisecond
)

// enforcedNow returns the source's position: how far its watches have come. ok is true if the kernel's rules contain
// all changes up to this position. s is nil if the source never knows its position.
func (a *agent) enforcedNow() (at enforced.Position, s *status, ok bool, err error) {
	source, is := a.Source.(Positioner)
	if !is {
		return at, nil, false, errNoPosition
	}
	// The position is read before the status, so the status is never older than the position.
	at, delta, known := source.Position()
	s = a.status.Load()
	if !known {
		return at, s, false, errNoPosition
	}
	return at, s, s.delta >= delta && len(s.enforced.ruleset.Sets) > 0, nil
}

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

// enforcedAnswer returns what the agent enforces. It handles one question at a time, because pods' starts need the
// processor too.
func (a *agent) enforcedAnswer(
	ctx context.Context, q enforced.Question, at enforced.Position, s *status,
) enforced.Answer {
	answer := enforced.Answer{Node: a.Node.Name, Version: version.Of("weir-agent"), At: at}
	if !a.explainer.begin(ctx) {
		return answer
	}
	defer a.explainer.end()
	if answer.Faults = s.errors(); s.ready {
		answer.Faults = nil // the kernel has the rules, although another part fails
	} else if len(answer.Faults) == 0 {
		answer.Faults = []string{"the agent has not applied its rules yet"}
	}
	answer.Endpoints = s.enforced.endpoints
	about := func(namespace string) bool { return len(q.Namespaces) == 0 || slices.Contains(q.Namespaces, namespace) }
	for _, p := range s.problems {
		name, ok := p.Policy()
		if namespace, _, _ := strings.Cut(name, "/"); ok && about(namespace) {
			answer.Problems = append(answer.Problems, p)
		}
	}
	answer.ShortForm = enforced.Of(s.enforced.compiled, q.About(answer.Endpoints), q.Peers)
	return answer
}
