package agent

import (
	"time"

	"github.com/weir-net/weir/agentapi"
)

// heartbeat renews the agent's heartbeat file. Without a recent heartbeat, the plugin's STATUS fails.
type heartbeat struct {
	last time.Time
}

// renew renews the heartbeat if BeatEvery is over since the last renewal. After an error, the next call tries again.
// Call renew only if the kernel has everything that it should have.
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
