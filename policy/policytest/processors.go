package policytest

import (
	"iter"
	"runtime"
	"runtime/debug"
	"sync"
	"sync/atomic"
	"testing"
)

// OnAllProcessors calls the function try once on each processor. Together, these calls get the count seeds from first
// on, each seed once. They get no further seeds when the test has failed. With -v, the log shows how far the test is.
func OnAllProcessors(t *testing.T, first uint64, count int, try func(seeds iter.Seq[uint64])) {
	t.Helper()
	const logged = 1000 // the log gets a line after each so many seeds
	// Random clusters need little memory, so the collection of garbage would begin all the time. That would take a third
	// of the test's time.
	defer debug.SetGCPercent(debug.SetGCPercent(800))
	var next atomic.Uint64
	next.Store(first)
	seeds := func(yield func(uint64) bool) {
		for !t.Failed() {
			seed := next.Add(1) - 1
			if seed-first >= uint64(count) || !yield(seed) {
				return
			}
			if (seed-first)%logged == logged-1 {
				t.Logf("tried the seeds up to about %d", seed)
			}
		}
	}
	var wait sync.WaitGroup
	for range runtime.GOMAXPROCS(0) {
		wait.Go(func() { try(seeds) })
	}
	wait.Wait()
}
