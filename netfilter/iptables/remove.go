package iptables

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/vishvananda/netlink/nl"
	"golang.org/x/sys/unix"
)

// Remove removes weir's sets, chains and rules from the kernel. It keeps the rules that a LegacyForward has written
// into the chains FORWARD of iptables-legacy, because the node's new backend needs the same rules.
func (d *Driver) Remove(ctx context.Context) error {
	d.have = nil
	if err := errors.Join(NFT.clean(ctx), Legacy.clean(ctx)); err != nil {
		return err
	}
	headers, err := d.sets.Headers()
	if errors.Is(err, unix.EPERM) { // weir has no right to read sets, so it can't have made any
		return nil
	}
	if err != nil {
		return err
	}
	// A set that is busy for more than a second is used by a rule of another program.
	ctx, cancel := context.WithTimeout(ctx, time.Second)
	defer cancel()
	for _, h := range headers {
		if err := d.destroyUnused(ctx, h.Name); err != nil {
			return fmt.Errorf("remove: %w", err)
		}
	}
	return nil
}

// destroyUnused destroys a set. While the set counts as in use, destroyUnused tries again until ctx ends: nf_tables
// frees deleted rules only some time later, and sends no message about it.
func (d *Driver) destroyUnused(ctx context.Context, name string) error {
	ticker := time.NewTicker(10 * time.Millisecond)
	defer ticker.Stop()
	for {
		err := d.sets.Destroy(name)
		if !errors.Is(err, nl.IPSetError(nl.IPSET_ERR_BUSY)) {
			return err
		}
		select {
		case <-ctx.Done():
			return err
		case <-ticker.C:
		}
	}
}
