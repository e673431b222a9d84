package excerpt

import (
	"fmt"
	"strings"
)

// Named is how many elements List names of a long list.
const Named = 10

// List returns the list as text, with the separator between its elements. Of a list with more than Named+1
// elements, it returns the first Named, and the number of the others.
func List[T ~string](list []T, separator string) string {
	var b strings.Builder
	for i, s := range list {
		if i > 0 {
			b.WriteString(separator)
		}
		if i == Named && len(list) > Named+1 { // "and 1 more" would be as long as the name
			fmt.Fprintf(&b, "and %d more", len(list)-Named)
			break
		}
		b.WriteString(string(s))
	}
	return b.String()
}
