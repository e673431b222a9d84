package agent

import (
	"context"
	"sync"
	"time"
)

// drift is what was noticed of changes to the rules, whoever made them. Noticing never waits for the loop: what the
// kernel tells would be lost meanwhile.
type drift struct {
	news chan struct{} // holds one: generations has some

	mu          sync.Mutex
	generations []uint32      // of the rules that were not looked at yet
	heard       uint32        // the newest generation that the kernel has told of
	more        chan struct{} // closed when it tells of another
}

func newDrift() *drift { return &drift{news: make(chan struct{}, 1), more: make(chan struct{})} }

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
	default: // it will be looked at anyway
	}
}

func (d *drift) take() []uint32 {
	d.mu.Lock()
	defer d.mu.Unlock()
	taken := d.generations
	d.generations = nil
	return taken
}

// hearing bounds the wait for what the kernel has told already.
const hearing = 20 * time.Millisecond

// none says that the rules are those that the driver knows: the kernel has told of all that has happened to them, and
// what concerned weir was the driver's own doing.
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
