package main

import (
	"fmt"
	"os"
	"runtime/debug"
	"strconv"
)

// heapShare is the part of the container's memory limit that Go's heap may use. The rest is for the program itself, and
// for iptables-restore, which runs in the same container.
const heapShare = 0.9

// collectAt is how many percent the heap may grow before Go collects garbage. Most of the heap is what the agent knows
// of the cluster's pods, which stays. Go's default of 100 would keep twice that. With 50, collecting costs about twice
// as much, which is still far below one percent of a core at a hundred events a second.
const collectAt = 50

// limitMemory sets how much memory Go's heap uses. Near the container's memory limit, Go collects garbage more often
// before the kernel ends the agent. limit is that limit in bytes; empty if it isn't known. Go's own variables, GOGC and
// GOMEMLIMIT, count before this function's values.
func limitMemory(limit string) error {
	if os.Getenv("GOGC") == "" {
		debug.SetGCPercent(collectAt)
	}
	if limit == "" || os.Getenv("GOMEMLIMIT") != "" {
		return nil
	}
	bytes, err := strconv.ParseInt(limit, 10, 64)
	if err != nil || bytes <= 0 {
		return fmt.Errorf("MEMORY_LIMIT %q: must be a number of bytes", limit)
	}
	debug.SetMemoryLimit(int64(float64(bytes) * heapShare))
	return nil
}
