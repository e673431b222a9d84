package agent

import (
	"cmp"
	"log/slog"
	"slices"
	"strings"
	"time"

	"github.com/weir-net/weir/internal/excerpt"
	"github.com/weir-net/weir/policy/ruleset"
)

// problems are the present problems of objects.
type problems struct {
	all []ruleset.Problem // in order; the texts are bounded in length
	// compiled and others are the lists that all was made from.
	compiled, others []ruleset.Problem
	made             time.Time
}

const (
	// Reporting so many problems takes milliseconds, and pods that start wait for it. So it happens once in
	// manyEvery at most.
	many      = 500
	manyEvery = time.Second
)

// report logs new and gone problems, and keeps the list for status and metrics. compiled are the ruleset's problems.
// If it is too early for a long list, wait is the time until the next call.
func (p *problems) report(log *slog.Logger, compiled, others []ruleset.Problem) (wait time.Duration) {
	if ruleset.SameProblems(compiled, p.compiled) && slices.Equal(others, p.others) {
		return 0
	}
	if left := manyEvery - time.Since(p.made); left > 0 && len(compiled)+len(others)+len(p.all) > many {
		return left
	}
	p.compiled, p.others, p.made = compiled, others, time.Now()
	now := slices.Concat(compiled, others)
	for i, n := range now { // a field of an object may be a megabyte long
		now[i] = ruleset.Problem{
			Object: excerpt.Of(n.Object), Field: excerpt.Of(n.Field), Message: excerpt.Of(n.Message),
		}
	}
	slices.SortFunc(now, func(a, b ruleset.Problem) int {
		return cmp.Or(strings.Compare(a.Object, b.Object), strings.Compare(a.Field, b.Field),
			strings.Compare(a.Message, b.Message))
	})
	if slices.Equal(now, p.all) {
		return 0
	}
	logMissing(log.Error, "part of an object can't be used as written, and allows nothing", now, p.all)
	logMissing(log.Info, "no longer: part of an object can't be used as written", p.all, now)
	p.all = now
	return 0
}

// maxLogged is how many problems are logged at once. One bad object may be the reason of thousands.
const maxLogged = 50

// logMissing logs the problems of the list that aren't among others, at most maxLogged.
func logMissing(log func(string, ...any), msg string, list, others []ruleset.Problem) {
	have := make(map[ruleset.Problem]bool, len(others))
	for _, o := range others {
		have[o] = true
	}
	missing := 0
	for _, p := range list {
		if have[p] {
			continue
		}
		if missing++; missing <= maxLogged {
			log(msg, "object", p.Object, "field", p.Field, "problem", p.Message)
		}
	}
	if more := missing - maxLogged; more > 0 {
		log(msg, "more", more, "all", "weirctl status -o json")
	}
}
