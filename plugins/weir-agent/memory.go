package main

import (
	"fmt"
	"os"
	"runtime/debug"
	"strconv"
)

// heapShare is Go's part of the container's memory limit. The rest is for child processes such as
// iptables-restore, and for the kernel's sets and rules.
const heapShare = 0.9

// collectAt is the agent's GOGC. Most of the agent's heap is in use at any time. With Go's default of 100, the heap
// would grow to twice the size of the used part.
const collectAt = 50

// limitMemory sets GOGC to collectAt, and keeps Go's heap below the container's memory limit. The parameter limit is in
// bytes; empty means no limit. If the environment has GOGC or GOMEMLIMIT, limitMemory leaves that setting as it is.
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
