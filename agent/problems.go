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

type problems struct {
	all              []ruleset.Problem // sorted, with shortened texts
	compiled, others []ruleset.Problem // the two lists that were last reported: the compiler's problems, and all others
	made             time.Time         // when compiled or others last changed
	listed           time.Time         // when compiled last changed
}

const (
	// If there are more than this many problems, they are reported at most once in manyEvery: a report takes
	// milliseconds, and starting pods wait for it.
	many      = 500
	manyEvery = time.Second
	// A list of many problems takes time to make. So while there are many problems, and the last list is younger than
	// keptFor, a changed problem of one object causes neither a new list nor a reconcile.
	keptFor = 10 * manyEvery
)

func (p *problems) kept() bool { return len(p.all) > many && time.Since(p.listed) < keptFor }

// report logs new and ended problems. If it is too early for a long list, it returns the time until the next call.
func (p *problems) report(log *slog.Logger, compiled, others []ruleset.Problem) (wait time.Duration) {
	if ruleset.SameProblems(compiled, p.compiled) && slices.Equal(others, p.others) {
		return 0
	}
	if left := manyEvery - time.Since(p.made); left > 0 && len(compiled)+len(others)+len(p.all) > many {
		return left
	}
	p.made = time.Now()
	if !ruleset.SameProblems(compiled, p.compiled) {
		p.listed = p.made
	}
	p.compiled, p.others = compiled, others
	now := slices.Concat(compiled, others)
	for i, n := range now { // a field of an object may be a megabyte long
		now[i] = ruleset.Problem{
			Object: excerpt.Of(n.Object), Field: excerpt.Of(n.Field), Message: excerpt.Of(n.Message),
		}
	}
	slices.SortFunc(now, compareProblems)
	if slices.Equal(now, p.all) {
		return 0
	}
	logMissing(log.Error, "part of an object can't be used as written, and allows nothing", now, p.all)
	logMissing(log.Info, "no longer: part of an object can't be used as written", p.all, now)
	p.all = now
	return 0
}

func compareProblems(a, b ruleset.Problem) int {
	return cmp.Or(strings.Compare(a.Object, b.Object), strings.Compare(a.Field, b.Field),
		strings.Compare(a.Message, b.Message))
}

const maxLogged = 50

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
