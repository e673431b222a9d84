package ruleset

import (
	"slices"
	"testing"
)

// TestTogether: problems of one object that differ only in their fields become one. All others stay as they are.
func TestTogether(t *testing.T) {
	got := Together([]Problem{
		{"a", "1", "wrong"},
		{"b", "1", "wrong"},
		{"a", "2", "wrong"},
		{"a", "3", "other"},
		{"a", "4", "wrong"},
		{"a", "5", "wrong"},
		{"a", "6", "wrong"},
	})
	want := []Problem{{"a", "1, 2, 4 and 2 more fields", "wrong"}, {"b", "1", "wrong"}, {"a", "3", "other"}}
	if !slices.Equal(got, want) {
		t.Errorf("%q", got)
	}
}
