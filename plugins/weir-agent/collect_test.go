package main

import (
	"math"
	"runtime"
	"runtime/debug"
	"testing"
	"time"
)

var kept [][]byte // when an element is overwritten, its old value is garbage

// TestCollector: a deferred collection comes when the heap has grown as far as GOGC allows. After the collection, GOGC
// and the memory limit have their old values.
func TestCollector(t *testing.T) {
	percent, limit := debug.SetGCPercent(collectAt), debug.SetMemoryLimit(math.MaxInt64/2)
	t.Cleanup(func() {
		debug.SetGCPercent(percent)
		debug.SetMemoryLimit(limit)
	})
	const piece = 64 << 10
	live := make([][]byte, 512) // 32 MiB
	for i := range live {
		live[i] = make([]byte, piece)
	}
	runtime.GC()
	c := newCollector()
	c.deferNext()
	c.deferNext()
	before, goal := collections(), readHeapGoal(live)
	allocated := 0
	for ; allocated < 4*goal && collections() == before; allocated += piece {
		kept = append(kept[:0], make([]byte, piece))
	}
	if allocated < goal/4 || allocated > 2*goal {
		t.Errorf("a collection came after %d bytes of garbage, and GOGC allows %d", allocated, goal)
	}
	deadline := time.Now().Add(time.Minute)
	for c.isDeferred() && time.Now().Before(deadline) {
		runtime.Gosched()
	}
	if p, l := debug.SetGCPercent(collectAt), debug.SetMemoryLimit(-1); p != collectAt || l != math.MaxInt64/2 {
		t.Errorf("after the collection, GOGC is %d and the memory limit %d", p, l)
	}
	runtime.KeepAlive(live)
}

func (c *collector) isDeferred() bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.deferred
}

// readHeapGoal returns how many bytes of garbage GOGC allows if only the slices in live are in use.
func readHeapGoal(live [][]byte) int { return len(live) * len(live[0]) * collectAt / 100 }

func collections() uint32 {
	var s runtime.MemStats
	runtime.ReadMemStats(&s)
	return s.NumGC
}

// TestLimitFor: the configured memory limit holds even while collections are deferred.
func TestLimitFor(t *testing.T) {
	limit := debug.SetMemoryLimit(50 << 20)
	percent := debug.SetGCPercent(collectAt)
	t.Cleanup(func() {
		debug.SetMemoryLimit(limit)
		debug.SetGCPercent(percent)
	})
	c := newCollector()
	c.limit = 1 << 20
	c.deferNext()
	if l := debug.SetMemoryLimit(-1); l > 1<<20 {
		t.Errorf("the memory limit is %d", l)
	}
	c.resume()
	for want, h := range map[int64]heap{
		100<<20 + 64<<20 + 2<<20: {goal: 64 << 20, others: 100 << 20}, 3 << 20: {goal: 1 << 20, others: 1 << 20},
		math.MaxInt64: {goal: math.MaxInt64, others: 1},
	} {
		if got := limitFor(h); got != want {
			t.Errorf("%+v: %d, want %d", h, got, want)
		}
	}
}
