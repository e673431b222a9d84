package policytest

import (
	"iter"
	"runtime"
	"runtime/debug"
	"sync"
	"sync/atomic"
	"testing"
)

// OnAllProcessors calls the function "try" once for each processor. All calls run at the same time. They share the
// seeds from first to first+count-1, and each seed goes to one call. When the test has failed, the calls get no more
// seeds. With -v, the log shows how far the test is.
func OnAllProcessors(t *testing.T, first uint64, count int, try func(seeds iter.Seq[uint64])) {
	t.Helper()
	const logged = 1000 // how many seeds there are for each line of the log
	// Random clusters need little memory. So by default, a garbage collection would begin all the time, and these
	// collections would take a third of the test's time.
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
