package main

import (
	"fmt"
	"os"
	"runtime/debug"
	"strconv"
)

// heapShare is the part of the container's memory limit that Go's heap may use. iptables-restore also needs memory.
const heapShare = 0.9

// collectAt is how many percent the heap may grow before Go collects garbage. Most of the heap stays, so Go's default
// of 100 would need twice the memory.
const collectAt = 50

// limitMemory sets how much memory Go's heap uses. limit is the container's memory limit in bytes; empty if it isn't
// known. Go's own variables, GOGC and GOMEMLIMIT, take precedence.
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
