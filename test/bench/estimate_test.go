//go:build bench

package bench_test

import (
	"fmt"
	"slices"
	"testing"
	"time"
)

func median[T time.Duration | float64](list []T) T {
	sorted := slices.Sorted(slices.Values(list))
	return (sorted[(len(sorted)-1)/2] + sorted[len(sorted)/2]) / 2
}

// ratios returns, for each round, the ratio of two times of the round. The machine's load affects both times, so it
// cancels out.
func ratios(of, to []time.Duration) []float64 {
	all := make([]float64, len(of))
	for i := range of {
		all[i] = float64(of[i]) / float64(to[i])
	}
	return all
}

// estimate returns the median as text, with the interval that contains the true median with a probability of 95 %.
func estimate(list []float64, digits int) string {
	rank := intervalRank(len(list))
	if rank < 0 {
		return fmt.Sprintf("%.*f (%d rounds are too few for an interval)", digits, median(list), len(list))
	}
	sorted := slices.Sorted(slices.Values(list))
	return fmt.Sprintf(
		"%.*f (95 %% interval %.*f to %.*f, %d rounds)",
		digits,
		median(list),
		digits,
		sorted[rank],
		digits,
		sorted[len(sorted)-1-rank],
		len(list),
	)
}

// intervalRank returns how many of n values lie below the interval that contains their true median with a probability
// of 95 %. As many values lie above the interval. The number comes from the sign test, which assumes nothing about the
// distribution: with a probability of at most 2.5 %, n throws of a coin show that many heads or fewer. If there is no
// such number, intervalRank returns -1.
func intervalRank(n int) int {
	p := 1.0
	for range n {
		p /= 2 // probability of no heads
	}
	rank := -1
	for k, sum := 0, p; sum <= 0.025; k++ {
		rank = k
		p *= float64(n-k) / float64(k+1)
		sum += p
	}
	return rank
}

func TestIntervalRank(t *testing.T) {
	// The expected ranks are from Conover, Practical Nonparametric Statistics, and from tables of the sign test.
	for n, want := range map[int]int{5: -1, 6: 0, 10: 1, 20: 5, 30: 9, 40: 13} {
		if got := intervalRank(n); got != want {
			t.Errorf("of %d: %d, want %d", n, got, want)
		}
	}
}
