package agentapi

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"time"

	"github.com/weir-net/weir/endpoint"
)

const (
	// heartbeat is a file whose modification time is when an agent was last well. A reboot removes the file.
	heartbeat = endpoint.Dir + "/heartbeat"
	// BeatEvery is how often the agent renews its heartbeat. A busy agent may be late.
	BeatEvery = 5 * time.Second
	// BeatLasts is how long a heartbeat counts. It is longer than an agent's restart: without a heartbeat the
	// plugin's STATUS fails, and the node becomes not ready.
	BeatLasts = time.Minute
)

// Beat records that the agent is well now.
//
// Equivalent to: touch /run/weir/heartbeat
func Beat() error {
	now := time.Now()
	err := os.Chtimes(heartbeat, now, now)
	if errors.Is(err, fs.ErrNotExist) {
		err = os.WriteFile(heartbeat, nil, 0o600)
	}
	if err != nil {
		return fmt.Errorf("renew the agent's heartbeat: %w", err)
	}
	return nil
}

// LastBeat returns when an agent was last well since the boot. Zero means never.
func LastBeat() (time.Time, error) {
	info, err := os.Stat(heartbeat)
	if errors.Is(err, fs.ErrNotExist) {
		return time.Time{}, nil
	}
	if err != nil {
		return time.Time{}, fmt.Errorf("look for the agent's heartbeat: %w", err)
	}
	return info.ModTime(), nil
}
