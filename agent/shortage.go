package agent

import (
	"context"
	"fmt"

	"golang.org/x/sys/unix"

	"github.com/weir-net/weir/ipam"
	"github.com/weir-net/weir/netfilter/conntrack"
)

// reportShortage reports a shortage of addresses in the agent's status, and announces its beginning. The plugin's
// STATUS doesn't report the shortage, because then the node would become not ready and lose its running pods.
func (a *agent) reportShortage(ctx context.Context) {
	shortage, err := ipam.Shortage()
	if shortage != nil {
		err = shortage
	}
	begins := shortage != nil && a.faults.now[partAddresses] == nil
	a.faults.set(partAddresses, err)
	if announcer, ok := a.Source.(Announcer); ok && begins {
		announcer.Announce(ctx, "NoPodAddresses", shortage.Error()+"; "+shortage.Remedy())
	}
}

// An ADD needs a few files of less than 4 KiB. roomLeft wants room for several ADDs at once.
const (
	leastBytes = 64 << 10
	leastFiles = 16
)

// roomLeft returns an error if the directory's file system has no room for new pods' records. ADD fails then. The
// agent's heartbeat doesn't show this, because the agent renews the heartbeat's file in place.
//
// Equivalent to: df --output=avail,iavail DIRECTORY
func roomLeft(dir string) error {
	var fs unix.Statfs_t
	if err := unix.Statfs(dir, &fs); err != nil {
		return fmt.Errorf("read how much room is left on the file system of %s: %w", dir, err)
	}
	var lacks string
	switch { // a file system without limits has neither Blocks nor Files
	case fs.Blocks > 0 && fs.Bfree*uint64(fs.Bsize) < leastBytes:
		lacks = "space"
	case fs.Files > 0 && fs.Ffree < leastFiles:
		lacks = "inodes"
	default:
		return nil
	}
	return fmt.Errorf("the file system of %s has no %s left: df -h %s and df -i %s show its size, and "+
		"du --inodes -xd2 /run and du -xhd2 /run show what fills it; delete that, or make the file system larger",
		dir, lacks, dir, dir)
}

// tableWatch finds out whether the kernel's connection table is full. The kernel then drops packets before weir's
// rules, so neither weirctl drops nor weirctl explain shows them.
type tableWatch struct {
	last conntrack.Load
	seen bool
}

// full returns an error if the connection table is full, or has been full since the last call. If the load can't be
// read, full returns that error.
func (w *tableWatch) full() error {
	now, err := conntrack.ReadLoad()
	if err != nil {
		return err
	}
	return w.compare(now)
}

func (w *tableWatch) compare(now conntrack.Load) error {
	full := now.Most > 0 && now.Entries >= now.Most || w.seen && now.Evicted > w.last.Evicted
	w.last, w.seen = now, true
	if !full {
		return nil
	}
	// The agent logs each new text of a fault. So the text has the table's limit, which stays, and not the present number
	// of entries.
	return fmt.Errorf("all %d entries are in use; conntrack -L shows which pods use them, and "+
		"sysctl -w net.netfilter.nf_conntrack_max=%d makes room", now.Most, 4*now.Most)
}
