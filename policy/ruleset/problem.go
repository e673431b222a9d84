package ruleset

import (
	"fmt"
	"strings"
)

// maxFields is how many fields Together names in one problem.
const maxFields = 3

// Together returns the problems for people, in the same order. Those of one object that differ only in their fields are
// one problem, which names the first fields and says how many more there are.
func Together(problems []Problem) []Problem {
	type same struct{ object, message string }
	at := map[same]int{}
	var all []Problem
	var fields [][]string
	for _, p := range problems {
		k := same{p.Object, p.Message}
		i, ok := at[k]
		if !ok {
			i, at[k] = len(all), len(all)
			all, fields = append(all, p), append(fields, nil)
		}
		fields[i] = append(fields[i], p.Field)
	}
	for i, f := range fields {
		if len(f) == 1 {
			continue
		}
		all[i].Field = strings.Join(f[:min(len(f), maxFields)], ", ")
		if more := len(f) - maxFields; more > 0 {
			all[i].Field += fmt.Sprintf(" and %d more fields", more)
		}
	}
	return all
}
