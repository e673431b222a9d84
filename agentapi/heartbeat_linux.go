package agentapi

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"strconv"
	"time"

	"golang.org/x/sys/unix"

	"github.com/weir-net/weir/endpoint"
)

const (
	// heartbeat is a file with the time when an agent was last well. The time counts from the boot, in nanoseconds, so
	// a change of the node's clock doesn't matter. A reboot removes the file.
	heartbeat = endpoint.Dir + "/heartbeat"
	// BeatEvery is how often the agent renews its heartbeat. A busy agent may be late.
	BeatEvery = 5 * time.Second
	// BeatLasts is how long a heartbeat counts. It is longer than an agent's restart: without a heartbeat the
	// plugin's STATUS fails, and the node becomes not ready.
	BeatLasts = time.Minute
)

// Beat records that the agent is well now.
//
// Equivalent to: awk '{printf "%020.0f", $1 * 1e9}' /proc/uptime >/run/weir/heartbeat
func Beat() error {
	now, err := sinceBoot()
	if err != nil {
		return err
	}
	f, err := os.OpenFile(heartbeat, os.O_CREATE|os.O_WRONLY, 0o600)
	if err != nil {
		return fmt.Errorf("renew the agent's heartbeat: %w", err)
	}
	// The number always has 20 digits, and replaces the earlier number in place. So a renewal never leaves the file empty.
	_, err = f.WriteAt(fmt.Appendf(nil, "%020d", now), 0)
	if err = errors.Join(err, f.Close()); err != nil {
		return fmt.Errorf("renew the agent's heartbeat: %w", err)
	}
	return nil
}

// SinceBeat returns how long ago an agent was last well. ever is false if no agent has been well since the boot.
func SinceBeat() (since time.Duration, ever bool, err error) {
	text, err := os.ReadFile(heartbeat)
	if errors.Is(err, fs.ErrNotExist) {
		return 0, false, nil
	}
	if err != nil {
		return 0, false, fmt.Errorf("look for the agent's heartbeat: %w", err)
	}
	now, err := sinceBoot()
	if err != nil {
		return 0, false, err
	}
	beat, err := strconv.ParseInt(string(text), 10, 64)
	if err != nil {
		return sinceChange()
	}
	since = now - time.Duration(beat)
	return since, since >= 0, nil // a time in the future comes from an earlier boot
}

// sinceChange returns how long ago the heartbeat file was changed. An agent of an earlier version leaves the file
// empty.
func sinceChange() (since time.Duration, ever bool, err error) {
	info, err := os.Stat(heartbeat)
	if err != nil {
		return 0, false, fmt.Errorf("look for the agent's heartbeat: %w", err)
	}
	return time.Since(info.ModTime()), true, nil
}

// sinceBoot returns the time since the node's boot, including the time for which the node was suspended.
func sinceBoot() (time.Duration, error) {
	var now unix.Timespec
	if err := unix.ClockGettime(unix.CLOCK_BOOTTIME, &now); err != nil {
		return 0, fmt.Errorf("read the time since the boot: %w", err)
	}
	return time.Duration(now.Nano()), nil
}
