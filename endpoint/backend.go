package endpoint

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"time"

	"github.com/weir-net/weir/conf"
)

// ReadBackend returns the backend that the agent has written into the file of the node's lock. The backend is "" if
// it is unknown: a reboot removes the file.
//
// Equivalent to: cat /run/weir/lock
func ReadBackend() (conf.Backend, error) {
	f, err := os.Open(filepath.Join(Dir, "lock"))
	if errors.Is(err, fs.ErrNotExist) {
		return "", nil
	}
	if err != nil {
		return "", fmt.Errorf("read which backend the agent uses: %w", err)
	}
	defer func() { _ = f.Close() }()
	var name [16]byte
	n, _ := f.Read(name[:]) // if the file is empty, n is 0
	switch b := conf.Backend(name[:n]); b {
	case conf.Iptables, conf.Nftables:
		return b, nil
	}
	return "", nil
}

// writeWithin is how long WriteBackend waits for the node's lock. The wait must be short: meanwhile the agent's loop
// stands still, and enforces no changed policies.
const writeWithin = time.Second

// WriteBackend writes the backend's name into the file of the node's lock, where ReadBackend reads it. The agent
// writes "" while it changes its backend. If another process has the node's lock for a second, WriteBackend returns
// an error, and the caller tries again later.
//
// Equivalent to: echo -n NAME >/run/weir/lock
func WriteBackend(b conf.Backend) error {
	if now, err := ReadBackend(); err == nil && now == b {
		return nil
	}
	unlock, err := LockWithin(writeWithin)
	if err != nil {
		return fmt.Errorf("write which backend the agent uses: %w", err)
	}
	defer unlock()
	// The file is written in place and not replaced, because other processes wait for the lock on this file.
	// ReadBackend takes a partly written name for an unknown backend.
	f, err := os.OpenFile(filepath.Join(Dir, "lock"), os.O_RDWR, 0o600)
	if err == nil {
		_, err = f.WriteAt([]byte(b), 0)
		err = errors.Join(err, f.Truncate(int64(len(b))), f.Close())
	}
	if err != nil {
		return fmt.Errorf("write which backend the agent uses: %w", err)
	}
	return nil
}
