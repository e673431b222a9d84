package ipam

import (
	"errors"
	"fmt"
	"io/fs"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// hostLocalDir has the addresses of the IPAM plugin host-local, in one directory for each network. A file's
// name is an address, and its two lines are the container's ID and the interface's name.
const hostLocalDir = "/var/lib/cni/networks"

// settleTime is how long a new pod may need until its interface has the address that host-local gave it. A file of
// host-local that is younger counts as in use, even if no namespace has the address yet.
const settleTime = time.Minute

// hostLocal finds addresses from host-local that pods still use. A node that changes to weir keeps its pods. When such
// a pod ends, the runtime calls weir and not host-local, so host-local's file stays, even after a reboot.
//
//   - An address with a file is in use if a network namespace of the node has the address, if a namespace can't be
//     read, or if the file is younger than settleTime.
//   - Files from before the node's start don't count.
type hostLocal struct {
	networks []string
	booted   time.Time
	used     map[netip.Addr]bool // addresses of all namespaces; nil until they are needed
	unsure   bool                // true if a namespace could not be read
	unread   error               // why the files can't be listed; then each address may be in use
}

func newHostLocal() *hostLocal {
	h := &hostLocal{}
	entries, err := os.ReadDir(hostLocalDir)
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		h.unread = err
	}
	for _, e := range entries {
		h.networks = append(h.networks, filepath.Join(hostLocalDir, e.Name()))
	}
	var up unix.Timespec
	if err := unix.ClockGettime(unix.CLOCK_BOOTTIME, &up); err == nil {
		h.booted = earlier(time.Now().Add(-time.Duration(up.Nano())), birthOf("/run"))
	}
	return h
}

// earlier returns the earlier of two estimates of the time of the node's start. computed is the present time less the
// time since the start. recorded is the clock's time at the start. The estimates differ if the clock was set since the
// start. If the clock was set once, no file that was written after the start is older than the earlier estimate. If
// recorded is unknown, earlier returns computed.
func earlier(computed, recorded time.Time) time.Time {
	if recorded.IsZero() || computed.Before(recorded) {
		return computed
	}
	return recorded
}

// birthOf returns the time when the file was made, by the clock of that time. For /run, this is the time of the node's
// start. If the file system doesn't know the time, birthOf returns the zero time.
//
// Equivalent to: stat -c %W PATH
func birthOf(path string) time.Time {
	var s unix.Statx_t
	err := unix.Statx(unix.AT_FDCWD, path, unix.AT_STATX_SYNC_AS_STAT, unix.STATX_BTIME, &s)
	if err != nil || s.Mask&unix.STATX_BTIME == 0 {
		return time.Time{}
	}
	return time.Unix(s.Btime.Sec, int64(s.Btime.Nsec))
}

// owner returns a text that names the container with the address, or "" if the address isn't in use. In doubt, the
// address counts as in use.
func (h *hostLocal) owner(a netip.Addr) string {
	for _, dir := range h.networks {
		path := filepath.Join(dir, a.String())
		info, err := os.Stat(path)
		if errors.Is(err, fs.ErrNotExist) || err == nil && info.ModTime().Before(h.booted) {
			continue
		}
		if err != nil {
			return fmt.Sprintf("host-local, perhaps (%v)", err)
		}
		if h.used == nil {
			var err error
			h.used, err = usedAddresses()
			h.unsure = err != nil
		}
		if h.unsure || h.used[a] || time.Since(info.ModTime()) < settleTime {
			data, _ := os.ReadFile(path)
			container, _, _ := strings.Cut(strings.TrimSpace(string(data)), "\r\n")
			return "host-local for container " + container + " (" + path + ")"
		}
	}
	return ""
}
