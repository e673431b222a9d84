package agent

import (
	"cmp"
	"log/slog"
	"slices"
	"strings"

	"github.com/weir-net/weir/internal/excerpt"
	"github.com/weir-net/weir/policy/ruleset"
)

// problems are the present problems of objects, in order. Each problem's texts are bounded in length.
type problems []ruleset.Problem

// report logs the problems that are new and the problems that are gone, and keeps the list for the status and the
// metrics. It sorts the slice now and shortens long texts in it.
func (p *problems) report(log *slog.Logger, now []ruleset.Problem) {
	for i, n := range now { // a field of an object may be a megabyte long
		now[i] = ruleset.Problem{
			Object: excerpt.Of(n.Object), Field: excerpt.Of(n.Field), Message: excerpt.Of(n.Message),
		}
	}
	slices.SortFunc(now, func(a, b ruleset.Problem) int {
		return cmp.Or(strings.Compare(a.Object, b.Object), strings.Compare(a.Field, b.Field),
			strings.Compare(a.Message, b.Message))
	})
	if slices.Equal(now, *p) {
		return
	}
	logMissing(log.Error, "part of an object can't be used as written, and allows nothing", now, *p)
	logMissing(log.Info, "no longer: part of an object can't be used as written", *p, now)
	*p = now
}

// maxLogged is how many problems are logged at once. One bad object may be the reason of thousands.
const maxLogged = 50

// logMissing logs the problems of the list that aren't among others. If they are too many, it logs only the first, and
// the number of the rest.
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
