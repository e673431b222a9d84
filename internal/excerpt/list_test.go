package excerpt

import (
	"slices"
	"testing"
)

func TestList(t *testing.T) {
	for n, want := range map[int]string{
		0: "", 1: "a", 2: "a, a", 11: "a, a, a, a, a, a, a, a, a, a, a", 12: "a, a, a, a, a, a, a, a, a, a, and 2 more",
		1000: "a, a, a, a, a, a, a, a, a, a, and 990 more",
	} {
		if got := List(slices.Repeat([]string{"a"}, n), ", "); got != want {
			t.Errorf("%d: %s, want %s", n, got, want)
		}
	}
}
