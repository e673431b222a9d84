package ruleset

import (
	"fmt"
	"strings"
)

const maxFields = 3

// Together returns the problems in a short form for people. Problems of one object with the same message become one
// problem, which names the first fields.
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
