package main

import (
	"context"
	"math"
	"os"
	"runtime"
	"runtime/debug"
	"runtime/metrics"
	"sync"
	"time"
)

// calm is the time without a collection of garbage after which the collector defers the next collection.
const calm = time.Minute

// collector defers collections of garbage while there is little garbage. By default, Go collects every two minutes even
// if the heap has hardly grown. In a large cluster, these collections are most of an idle agent's work: with 100,000
// pods, a collection takes 0.3 s of processor time.
//
// Go has no setting that defers collections. But if GOGC is off, Go collects only when the memory comes near the memory
// limit. So the collector switches GOGC off, and sets a limit with which Go collects when the heap has the size at
// which GOGC would start a collection. After the next collection, GOGC and the old limit are in force again.
type collector struct {
	mu       sync.Mutex
	percent  int   // GOGC
	limit    int64 // Go's memory limit in bytes
	deferred bool
}

func newCollector() *collector {
	percent := debug.SetGCPercent(collectAt)
	debug.SetGCPercent(percent)
	return &collector{percent: percent, limit: debug.SetMemoryLimit(-1)}
}

// run defers collections until ctx ends. If GOGC is in the environment, it does nothing.
func (c *collector) run(ctx context.Context) {
	if os.Getenv("GOGC") != "" {
		return
	}
	tick := time.NewTicker(calm / 2)
	defer tick.Stop()
	defer c.resume()
	for {
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
		}
		var s debug.GCStats
		if debug.ReadGCStats(&s); time.Since(s.LastGC) >= calm {
			c.deferNext()
		}
	}
}

// deferNext defers the next collection until the heap has the size at which GOGC would start one, even if two minutes
// pass before.
func (c *collector) deferNext() {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.deferred {
		return
	}
	c.deferred = true
	// Nothing refers to this object, so Go calls its finalizer after the next collection.
	runtime.SetFinalizer(&struct{ *collector }{c}, func(any) { c.resume() })
	debug.SetMemoryLimit(min(c.limit, limitFor(readHeap())))
	debug.SetGCPercent(-1)
}

func (c *collector) resume() {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.deferred {
		c.deferred = false
		debug.SetGCPercent(c.percent)
		debug.SetMemoryLimit(c.limit)
	}
}

// heap has sizes in bytes: goal is the size at which Go collects the heap if GOGC is on, and others is all memory
// besides the heap's objects and free pages.
type heap struct{ goal, others uint64 }

func readHeap() heap {
	all := []metrics.Sample{
		{Name: "/gc/heap/goal:bytes"},
		{Name: "/memory/classes/total:bytes"},
		{Name: "/memory/classes/heap/objects:bytes"},
		{Name: "/memory/classes/heap/free:bytes"},
		{Name: "/memory/classes/heap/released:bytes"},
	}
	metrics.Read(all)
	of := func(i int) uint64 { return all[i].Value.Uint64() }
	return heap{goal: of(0), others: of(1) - min(of(1), of(2)+of(3)+of(4))}
}

// limitFor returns the memory limit with which Go collects the heap when it has the size h.goal. Go collects before the
// memory reaches a limit: 3 % of the heap earlier, and at least 1 MiB earlier (memoryLimitHeapGoal in
// runtime/mgcpacer.go).
func limitFor(h heap) int64 {
	return int64(min(h.others+h.goal+max(h.goal/32, 1<<20), math.MaxInt64))
}
