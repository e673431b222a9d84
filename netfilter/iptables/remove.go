package iptables

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/vishvananda/netlink/nl"
	"golang.org/x/sys/unix"
)

// Remove removes weir's sets, chains and rules from the kernel. Then the backend enforces no policy any more. Remove
// leaves the rules of LegacyForward alone, because the backend that the node uses instead keeps the same rules.
func (d *Driver) Remove(ctx context.Context) error {
	d.have = nil
	if err := errors.Join(NFT.clean(ctx), Legacy.clean(ctx)); err != nil {
		return err
	}
	headers, err := d.sets.Headers()
	if errors.Is(err, unix.EPERM) { // without the right to read sets, weir can't have made any
		return nil
	}
	if err != nil {
		return err
	}
	// If a set is busy for more than a second, another program's rule uses it.
	ctx, cancel := context.WithTimeout(ctx, time.Second)
	defer cancel()
	for _, h := range headers {
		if err := d.destroyUnused(ctx, h.Name); err != nil {
			return fmt.Errorf("remove: %w", err)
		}
	}
	return nil
}

// destroyUnused destroys a set. While the set is busy, it tries again until ctx ends: nf_tables frees deleted rules
// later, and sends no message when it does.
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
