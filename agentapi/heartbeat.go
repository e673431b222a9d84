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
	// heartbeat is a file whose time of modification says when an agent was last well. It goes with the boot.
	heartbeat = endpoint.Dir + "/heartbeat"
	// BeatEvery is how often the agent renews its heartbeat, as soon as its loop comes round after that.
	BeatEvery = 5 * time.Second
	// BeatLasts is how long a heartbeat counts. kubelet has a node whose plugin's STATUS fails be not ready, so it is
	// longer than it takes to replace an agent.
	BeatLasts = time.Minute
)

// Beat is the agent's word that it is well: its loop comes round, and the kernel holds what the policies demand.
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

// LastBeat is when an agent of this boot was last well; no time if none was.
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
