package main

import (
	"math"
	"runtime/debug"
	"testing"
)

// TestLimitMemory: GOGC in the environment takes precedence over collectAt, and GOMEMLIMIT takes precedence over the
// container's memory limit. A limit that isn't a positive number is refused.
func TestLimitMemory(t *testing.T) {
	percent, bytes := debug.SetGCPercent(100), debug.SetMemoryLimit(-1)
	t.Cleanup(func() {
		debug.SetGCPercent(percent)
		debug.SetMemoryLimit(bytes)
	})
	for _, tc := range []struct {
		limit, gogc, gomemlimit string
		percent                 int
		bytes                   int64
		refused                 bool
	}{
		{limit: "", percent: collectAt, bytes: math.MaxInt64},
		{limit: "1000000000", percent: collectAt, bytes: 900_000_000},
		{limit: "1000000000", gogc: "200", percent: 100, bytes: 900_000_000},
		{limit: "1000000000", gomemlimit: "1GiB", percent: collectAt, bytes: math.MaxInt64},
		{limit: "1Gi", percent: collectAt, bytes: math.MaxInt64, refused: true},
		{limit: "0", percent: collectAt, bytes: math.MaxInt64, refused: true},
	} {
		debug.SetGCPercent(100) // Go's defaults
		debug.SetMemoryLimit(math.MaxInt64)
		t.Setenv("GOGC", tc.gogc)
		t.Setenv("GOMEMLIMIT", tc.gomemlimit)
		if err := limitMemory(tc.limit); (err != nil) != tc.refused {
			t.Errorf("%+v: %v", tc, err)
		}
		if p, b := debug.SetGCPercent(100), debug.SetMemoryLimit(-1); p != tc.percent || b != tc.bytes {
			t.Errorf("%+v: Go has %d %% and %d bytes", tc, p, b)
		}
	}
}
