package agent

import (
	"errors"
	"log/slog"

	"github.com/weir-net/weir/internal/excerpt"
)

type part string

const (
	partSource      part = "source"
	partAPI         part = "api"
	partRecords     part = "records"
	partKernel      part = "kernel"
	partBackend     part = "backend"
	partConnections part = "connections"
	partLeftovers   part = "leftovers"
	partNodes       part = "nodes"
	partNode        part = "node"
	partAddresses   part = "addresses"
	partRuntime     part = "runtime"
	partHeartbeat   part = "heartbeat"
	partTable       part = "table"
	partRoom        part = "room"
	partUnattached  part = "unattached"
)

var parts = map[part]struct{ name, meaning string }{
	partSource:    {"source", "the source has errors; everything that can be read is in force"},
	partAPI:       {"API server", "a watch of the API server fails; the last known state of the cluster stays in force"},
	partRecords:   {"endpoint records", "endpoint records can't be read; their pods stay closed"},
	partAddresses: {"addresses", "no address is left for a new pod of this node; running pods are not affected"},
	partNode:      {"this node", "some node settings can't be read or repaired"},
	partRuntime: {
		"runtime", "the runtime uses another network's configuration, so no policy is enforced on new pods",
	},
	partHeartbeat: {"heartbeat", "the heartbeat can't be written; the plugin will report that no agent runs"},
	partTable: {
		"connection table",
		"the connection table is full, or its load can't be read; a full table makes the kernel drop all new connections",
	},
	partRoom: {"room", "no new pod can start, because its endpoint record has no room; running pods are not affected"},
	partUnattached: {
		"unattached pods", "weir has not attached some pods of this node, so no policy may be enforced on them",
	},
	partNodes: {"other nodes", "routes or tunnels to other nodes can't be set up or checked"},
	partKernel: {
		"kernel", "weir's sets or rules can't be applied or read; those in the kernel stay in force, and no pod is enrolled",
	},
	partBackend: {
		"backend", "the chosen backend can't be used; the one in use stays in force",
	},
	partConnections: {
		"connections", "connections can't be read or cut, so some may go on that a policy forbids; no pod is enrolled",
	},
	partLeftovers: {
		"leftovers",
		"weir's rules may be left in a backend or iptables flavour that the node doesn't use; they allow nothing",
	},
}

type faults struct {
	log    *slog.Logger
	now    map[part]error
	logged map[part]string
	// nothingKnown is true until the source has given a usable state.
	nothingKnown bool
}

func newFaults(log *slog.Logger) faults {
	return faults{log: log, now: map[part]error{}, logged: map[part]string{}, nothingKnown: true}
}

// firstMeanings has the log texts of two faults until the source has given a usable state. Afterwards, these faults
// have their texts in parts, as all other faults do.
var firstMeanings = map[part]string{
	partSource: "the source has errors and has given no good state yet; no pod is enrolled",
	partAPI:    "a watch of the API server fails, and the state of the cluster is not known yet; no pod is enrolled",
}

func (f *faults) meaning(p part) string {
	if first, ok := firstMeanings[p]; ok && f.nothingKnown {
		return first
	}
	return parts[p].meaning
}

func (f *faults) set(p part, err error) {
	was := f.now[p]
	switch {
	case err == nil && was != nil:
		delete(f.now, p)
		f.log.Info("no longer: " + f.logged[p])
	case err != nil:
		err = errors.New(excerpt.Of(err.Error()))
		f.now[p] = err
		if was == nil || was.Error() != err.Error() {
			f.logged[p] = f.meaning(p)
			f.log.Error(f.logged[p], "error", err)
		}
	}
}
