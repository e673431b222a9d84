package agent

import (
	"context"
	"sync"
	"time"
)

// drift collects the kernel's messages about changes of rules. It never waits for the loop, because the kernel
// drops messages that are not read in time. Any goroutine may use it.
type drift struct {
	news chan struct{} // gets a message if the loop must look at generations; has room for one message

	mu          sync.Mutex
	generations []uint32      // numbers of changes that concern weir, and that the loop hasn't looked at yet
	heard       uint32        // the number of the newest change that the kernel has reported; 0 means unknown
	more        chan struct{} // is closed, and replaced, when the kernel reports another generation
}

func newDrift() *drift { return &drift{news: make(chan struct{}, 1), more: make(chan struct{})} }

// hear records a generation (nf_tables' number of a change) that the kernel has announced. If concerned is false, the
// change doesn't concern weir, and the loop need not look at it.
func (d *drift) hear(generation uint32, concerned bool) {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.heard = generation
	close(d.more)
	d.more = make(chan struct{})
	if !concerned {
		return
	}
	d.generations = append(d.generations, generation)
	select {
	case d.news <- struct{}{}:
	default: // a message waits in news already, so the loop will look at this generation too
	}
}

func (d *drift) take() []uint32 {
	d.mu.Lock()
	defer d.mu.Unlock()
	taken := d.generations
	d.generations = nil
	return taken
}

// hearing limits how long the method none waits for the kernel's messages about changes that are already made.
const hearing = 20 * time.Millisecond

// none reports whether it is certain that no other program has changed weir's rules. It returns false if the kernel's
// messages about the changes so far don't come in time.
func (d *drift) none(ctx context.Context, backend Backend) bool {
	now, err := backend.Generation()
	if err != nil {
		return false
	}
	ctx, cancel := context.WithTimeout(ctx, hearing)
	defer cancel()
	for {
		d.mu.Lock()
		heard, more, generations := d.heard, d.more, d.generations
		d.mu.Unlock()
		for _, g := range generations {
			if !backend.Knows(g) {
				return false
			}
		}
		if heard != 0 && int32(heard-now) >= 0 {
			return true
		}
		select {
		case <-more:
		case <-ctx.Done():
			return false
		}
	}
}
