package explain

import (
	"cmp"
	"slices"
	"strings"
)

// NearNames returns the names that are most similar to the wanted name, as the end of an error: "; the nearest names
// are a, b". If no name is similar, it returns "".
func NearNames(want string, names []string) string {
	if near := nearest(want, names); len(near) > 0 {
		return "; the nearest names are " + strings.Join(near, ", ")
	}
	return ""
}

func nearest(want string, names []string) []string {
	type scored struct {
		name     string
		distance int
	}
	var best []scored
	for _, n := range names {
		if d := distance(want, n); d <= max(2, len(want)/4) {
			best = append(best, scored{n, d})
		}
	}
	slices.SortFunc(best, func(a, b scored) int {
		return cmp.Or(cmp.Compare(a.distance, b.distance), cmp.Compare(a.name, b.name))
	})
	var all []string
	for _, s := range best[:min(len(best), 3)] {
		all = append(all, s.name)
	}
	return all
}

// distance returns the Levenshtein distance from a to b. If a has three characters or more, and b begins with a, the
// result is at most 2. So the name of a Deployment finds the names of its pods.
func distance(a, b string) int {
	if len(a) > 2 && len(b) >= len(a) && b[:len(a)] == a {
		return min(len(b)-len(a), 2)
	}
	row := make([]int, len(b)+1)
	for j := range row {
		row[j] = j
	}
	for i := 1; i <= len(a); i++ {
		diagonal := row[0]
		row[0] = i
		for j := 1; j <= len(b); j++ {
			cost := diagonal
			if a[i-1] != b[j-1] {
				cost++
			}
			diagonal = row[j]
			row[j] = min(cost, row[j]+1, row[j-1]+1)
		}
	}
	return row[len(b)]
}
