package agent

import (
	"cmp"
	"errors"
	"log/slog"
	"slices"
	"strings"

	"github.com/weir-net/weir/policy"
	"github.com/weir-net/weir/policy/ruleset"
)

// part of the agent's work, in which something can stand in the way.
type part string

const (
	partSource      part = "source"
	partAPI         part = "api"
	partRecords     part = "records"
	partKernel      part = "kernel"
	partConnections part = "connections"
	partLeftovers   part = "leftovers"
	partNodes       part = "nodes"
	partNode        part = "node"
	partAddresses   part = "addresses"
)

// parts are what each is called in the status, and what it means that something stands in its way.
var parts = map[part]struct{ name, meaning string }{
	partSource:      {"source", "the source has errors; what of it can be read is in force"},
	partAPI:         {"API server", "the API server doesn't answer; what is known of the cluster stays in force"},
	partRecords:     {"endpoint records", "endpoint records can't be read; their pods stay closed"},
	partKernel:      {"kernel", "the kernel does not hold what it should, or it isn't known what it holds; no pod is let in"},
	partConnections: {"connections", "connections can't be read or ended, and may go on though a policy forbids them; no pod is let in"},
	partLeftovers:   {"leftovers", "rules of weir's may be left in the iptables that the node doesn't use; they open nothing"},
	partAddresses:   {"addresses", "no address is left for a new pod of this node; running pods are not affected"},
	partNode:        {"this node", "what weir sets up on the node isn't as it should be"},
	partNodes:       {"other nodes", "the way to other nodes isn't as it should be"},
}

// Contact is a Source that knows whether those it asks answer.
type Contact interface {
	// Contact says what stands in the way; nil if nothing does.
	Contact() error
}

// faults are what stands in the way now. Each is logged when it comes and when it goes, however often it is met in
// between.
type faults struct {
	log *slog.Logger
	now map[part]error
	// said is what each was logged to mean.
	said map[part]string
	// never says that the source has told of no good state yet.
	never bool
}

// nothingKnown are the meanings of faults that keep the source from telling of its first good state.
var nothingKnown = map[part]string{
	partSource: "the source has errors, and nothing of it is known yet; no pod is let in",
	partAPI:    "the API server doesn't answer, and nothing is known of the cluster yet; no pod is let in",
}

func (f *faults) meaning(p part) string {
	if nothing, ok := nothingKnown[p]; ok && f.never {
		return nothing
	}
	return parts[p].meaning
}

// set says what stands in the part's way now; nil if nothing does.
func (f *faults) set(p part, err error) {
	was := f.now[p]
	switch {
	case err == nil && was != nil:
		delete(f.now, p)
		f.log.Info("no longer: " + f.said[p])
	case err != nil:
		err = errors.New(policy.Excerpt(err.Error()))
		f.now[p] = err
		if was == nil || was.Error() != err.Error() {
			f.said[p] = f.meaning(p)
			f.log.Error(f.said[p], "error", err)
		}
	}
}

// reportProblems logs those that are new and those that are gone, and keeps them for the status and the metrics.
func (a *agent) reportProblems(problems []ruleset.Problem) {
	for i, p := range problems { // a field of an object may have a megabyte
		problems[i] = ruleset.Problem{Object: policy.Excerpt(p.Object), Field: policy.Excerpt(p.Field), Message: policy.Excerpt(p.Message)}
	}
	slices.SortFunc(problems, func(a, b ruleset.Problem) int {
		return cmp.Or(strings.Compare(a.Object, b.Object), strings.Compare(a.Field, b.Field), strings.Compare(a.Message, b.Message))
	})
	if slices.Equal(problems, a.problems) {
		return
	}
	log := func(say func(string, ...any), msg string, list, except []ruleset.Problem) {
		others := make(map[ruleset.Problem]bool, len(except))
		for _, p := range except {
			others[p] = true
		}
		for _, p := range list {
			if !others[p] {
				say(msg, "object", p.Object, "field", p.Field, "problem", p.Message)
			}
		}
	}
	log(a.Log.Error, "part of an object can't be used as written, and opens nothing", problems, a.problems)
	log(a.Log.Info, "no longer: part of an object can't be used as written", a.problems, problems)
	a.problems = problems
}
