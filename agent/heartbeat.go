package agent

import (
	"log/slog"
	"time"

	"github.com/weir-net/weir/agentapi"
)

// heartbeat is what the plugin's STATUS goes by: without it the runtime takes the node for one without an agent.
type heartbeat struct {
	last time.Time
}

// renew renews the heartbeat, if that is due. The caller has just found that all is well.
func (h *heartbeat) renew(log *slog.Logger) {
	if time.Since(h.last) < agentapi.BeatEvery {
		return
	}
	if err := agentapi.Beat(); err != nil {
		log.Error("the heartbeat can't be written; the plugin will report that no agent runs", "error", err)
		return
	}
	h.last = time.Now()
}
