package agent

import (
	"log/slog"
	"time"

	"github.com/weir-net/weir/agentapi"
)

// Without a recent heartbeat, the plugin's STATUS fails.
type heartbeat struct {
	last time.Time
}

// The caller must be sure that the kernel has everything. After an error the heartbeat stays due.
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
