package agent

import (
	"fmt"
	"strings"
	"time"

	"github.com/weir-net/weir/agentapi"
	"github.com/weir-net/weir/bridge"
)

const (
	// namedRepairs is how many repairs of one kind a log line names.
	namedRepairs = 5
	// keptRepairs is how many repairs the status lists.
	keptRepairs = 10
)

// repairs has the last repairs of node settings, and the present failures.
type repairs struct {
	last []agentapi.NodeRepair // at most keptRepairs, the newest at the end
	// failures counts the settings that the last check could not read or repair. The value is replaced, never
	// changed.
	failures map[bridge.Kind]int
}

// repair is one repaired setting: its earlier state, and the command that repairs it.
type repair struct{ was, command string }

// countRepairs counts and logs repairs of one kind, and keeps them for the status.
func (a *agent) countRepairs(kind bridge.Kind, repaired []repair) {
	if len(repaired) == 0 {
		return
	}
	a.metrics.nodeRepairs.WithLabelValues(string(kind)).Add(float64(len(repaired)))
	a.stats.NodeRepairs += len(repaired)
	var was []string
	for _, d := range repaired[:min(len(repaired), namedRepairs)] {
		was = append(was, d.was)
	}
	if more := len(repaired) - namedRepairs; more > 0 {
		was = append(was, fmt.Sprintf("and %d more", more))
	}
	r := agentapi.NodeRepair{
		Time: time.Now(), What: string(kind), Count: len(repaired),
		Was: strings.Join(was, ", "), Command: repaired[0].command,
	}
	a.repairs.last = append(a.repairs.last, r)
	a.repairs.last = a.repairs.last[max(0, len(a.repairs.last)-keptRepairs):]
	a.Log.Warn("another program changed node settings of weir; weir has restored them",
		"what", r.What, "count", r.Count, "was", r.Was, "command", r.Command)
}
