package agent

import (
	"log/slog"
	"time"

	"github.com/weir-net/weir/agentapi"
)

// heartbeat renews the agent's heartbeat file. Without a recent heartbeat, the plugin's STATUS fails.
type heartbeat struct {
	last time.Time
}

// renew may be called only if the kernel has everything that it should have. After an error the heartbeat stays
// due.
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
