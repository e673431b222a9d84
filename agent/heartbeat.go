package agent

import (
	"log/slog"
	"time"

	"github.com/weir-net/weir/agentapi"
)

// heartbeat is the file by which the plugin's STATUS knows that an agent runs. Without a recent heartbeat, STATUS
// fails if enforcement is strict.
type heartbeat struct {
	last time.Time
}

// renew renews the heartbeat if it is due. After an error the heartbeat stays due. The kernel must have everything
// that it should have.
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
