package agent

import (
	"time"

	"github.com/weir-net/weir/agentapi"
)

// heartbeat renews the agent's heartbeat file. Without a recent heartbeat, the plugin's STATUS fails.
type heartbeat struct {
	last time.Time
}

// renew may be called only if the kernel has everything that it should have. After an error the heartbeat stays
// due.
func (h *heartbeat) renew() error {
	if time.Since(h.last) < agentapi.BeatEvery {
		return nil
	}
	if err := agentapi.Beat(); err != nil {
		return err
	}
	h.last = time.Now()
	return nil
}
