package agent

import "sync"

// drift is what was noticed of changes to the rules, whoever made them. Noticing never waits for the loop: what the
// kernel tells would be lost meanwhile.
type drift struct {
	noticed chan struct{} // holds one

	mu          sync.Mutex
	generations []uint32 // of the rules that were not looked at yet
}

func (d *drift) notice(generation uint32) {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.generations = append(d.generations, generation)
	select {
	case d.noticed <- struct{}{}:
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
