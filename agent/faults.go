package agent

import (
	"errors"
	"log/slog"

	"github.com/weir-net/weir/policy"
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

// faults are what doesn't work now. Each is logged when it begins and when it ends, however often it is met in between.
type faults struct {
	log *slog.Logger
	now map[part]error
	// logged is the meaning that each fault was logged with.
	logged map[part]string
	// nothingKnown says that the source has given no usable state yet.
	nothingKnown bool
}

func newFaults(log *slog.Logger) faults {
	return faults{log: log, now: map[part]error{}, logged: map[part]string{}, nothingKnown: true}
}

// firstMeanings are the meanings of faults that keep the source from giving its first usable state.
var firstMeanings = map[part]string{
	partSource: "the source has errors, and nothing of it is known yet; no pod is let in",
	partAPI:    "the API server doesn't answer, and nothing is known of the cluster yet; no pod is let in",
}

func (f *faults) meaning(p part) string {
	if first, ok := firstMeanings[p]; ok && f.nothingKnown {
		return first
	}
	return parts[p].meaning
}

// set says what doesn't work in that part now; nil if all works.
func (f *faults) set(p part, err error) {
	was := f.now[p]
	switch {
	case err == nil && was != nil:
		delete(f.now, p)
		f.log.Info("no longer: " + f.logged[p])
	case err != nil:
		err = errors.New(policy.Excerpt(err.Error()))
		f.now[p] = err
		if was == nil || was.Error() != err.Error() {
			f.logged[p] = f.meaning(p)
			f.log.Error(f.logged[p], "error", err)
		}
	}
}
