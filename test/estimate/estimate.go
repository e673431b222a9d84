// Package estimate has the statistics of the benchmarks. Its intervals are valid for any distribution of times.
package estimate

import (
	"fmt"
	"math"
	"slices"
	"time"
)

// Median returns the median of the list, which must not be empty.
func Median[T time.Duration | float64](list []T) T {
	sorted := slices.Sorted(slices.Values(list))
	return (sorted[(len(sorted)-1)/2] + sorted[len(sorted)/2]) / 2
}

// Quantile returns the value below which the given part (0 to 1) of the list lies. The list must not be empty.
func Quantile(list []float64, part float64) float64 {
	sorted := slices.Sorted(slices.Values(list))
	return sorted[min(int(part*float64(len(sorted))), len(sorted)-1)]
}

// Ratios divides each value of the first list by the second list's value of the same round. The load of the machine
// affects both values, so it cancels out.
func Ratios[T time.Duration | float64](of, to []T) []float64 {
	all := make([]float64, len(of))
	for i := range of {
		all[i] = float64(of[i]) / float64(to[i])
	}
	return all
}

// Interval returns an interval that contains the true median with a probability of at least 95 %. ok is false if there
// are too few values.
func Interval(list []float64) (low, high float64, ok bool) {
	rank := intervalRank(len(list))
	if rank < 0 {
		return 0, 0, false
	}
	sorted := slices.Sorted(slices.Values(list))
	return sorted[rank], sorted[len(sorted)-1-rank], true
}

// Text returns the median with its interval (see Interval), or with a remark that there are too few values. The
// numbers have as many decimals as the parameter digits says.
func Text(list []float64, digits int) string {
	low, high, ok := Interval(list)
	if !ok {
		return fmt.Sprintf("%.*f (%d rounds are too few for an interval)", digits, Median(list), len(list))
	}
	return fmt.Sprintf("%.*f (95 %% interval %.*f to %.*f, %d rounds)", digits, Median(list), digits, low, digits, high,
		len(list))
}

// intervalRank returns how many of n sorted values lie below the interval for the true median. The same number lies
// above. The interval follows from the sign test. If n is too small, intervalRank returns -1.
func intervalRank(n int) int {
	rank, sum := -1, 0.0
	for k := range n {
		sum += math.Exp(logFactorial(n) - logFactorial(k) - logFactorial(n-k) - float64(n)*math.Ln2)
		if sum > 0.025 {
			break
		}
		rank = k
	}
	return rank
}

// logFactorial returns the logarithm of n!, because n! itself is too large for a float64.
func logFactorial(n int) float64 {
	l, _ := math.Lgamma(float64(n) + 1)
	return l
}
