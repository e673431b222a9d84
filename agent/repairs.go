package agent

import (
	"fmt"
	"strings"
	"time"

	"github.com/weir-net/weir/agentapi"
	"github.com/weir-net/weir/bridge"
)

const (
	namedRepairs = 5
	keptRepairs  = 10
)

type repairs struct {
	last []agentapi.NodeRepair // at most keptRepairs, the newest at the end
	// failures counts the settings that the last check could not read or repair. The map is replaced, never
	// changed.
	failures map[bridge.Kind]int
}

type repair struct{ was, command string }

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
		Time: time.Now(), Kind: string(kind), Count: len(repaired),
		Was: strings.Join(was, ", "), Command: repaired[0].command,
	}
	a.repairs.last = append(a.repairs.last, r)
	a.repairs.last = a.repairs.last[max(0, len(a.repairs.last)-keptRepairs):]
	a.Log.Warn("another program changed node settings of weir; weir has restored them",
		"kind", r.Kind, "count", r.Count, "was", r.Was, "command", r.Command)
}
