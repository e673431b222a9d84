package estimate

import "testing"

func TestIntervalRank(t *testing.T) {
	// The ranks up to 40 are from Conover, Practical Nonparametric Statistics, and from tables of the sign test. The
	// larger ranks were computed from binomial coefficients with whole numbers.
	for n, want := range map[int]int{5: -1, 6: 0, 10: 1, 20: 5, 30: 9, 40: 13, 1200: 565, 5000: 2430} {
		if got := intervalRank(n); got != want {
			t.Errorf("of %d: %d, want %d", n, got, want)
		}
	}
}

func TestQuantile(t *testing.T) {
	var list []float64
	for i := range 100 {
		list = append(list, float64(99-i))
	}
	for part, want := range map[float64]float64{0: 0, 0.5: 50, 0.99: 99, 1: 99} {
		if got := Quantile(list, part); got != want {
			t.Errorf("%v: %v, want %v", part, got, want)
		}
	}
}
