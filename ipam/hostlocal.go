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

// hostLocalDir is where upstream's host-local keeps its addresses: a directory for each network, in it a file for each
// address, named by it, with the container's ID and the interface's name on two lines.
const hostLocalDir = "/var/lib/cni/networks"

// settling is how long an address may be host-local's before the plugin that called it has given it to the pod.
const settling = time.Minute

// hostLocal tells which addresses are still used by pods that a plugin with host-local attached: on a node that has gone
// over to weir they live on, but the runtime speaks to weir alone from there, so nobody frees their files any more. Nor
// does a reboot, which ends the pods. So a file says that an address may be used; that it is, the pod itself says: some
// network namespace of the node has the address. Without files nothing is looked at, and of files older than this boot
// neither.
type hostLocal struct {
	networks []string
	booted   time.Time
	used     map[netip.Addr]bool // in the namespaces; nil until somebody wants to know
	unsure   bool                // not all could be looked into
	unread   error               // why its files can't be listed: each address may be held
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
		h.booted = time.Now().Add(-time.Duration(up.Nano()))
	}
	return h
}

// holds says who holds the address there; empty if nobody does.
func (h *hostLocal) holds(a netip.Addr) string {
	if h.unread != nil {
		return fmt.Sprintf("host-local, perhaps (%v)", h.unread)
	}
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
		if h.unsure || h.used[a] || time.Since(info.ModTime()) < settling {
			data, _ := os.ReadFile(path)
			container, _, _ := strings.Cut(strings.TrimSpace(string(data)), "\r\n")
			return "host-local for container " + container + " (" + path + ")"
		}
	}
	return ""
}
