package excerpt

import (
	"fmt"
	"strings"
)

// Named is the number of elements that List names if a list is long.
const Named = 10

// List returns the elements as text, with the separator between them. If there are more than Named+1 elements, it
// returns the first Named elements and the number of the rest.
func List[T ~string](list []T, separator string) string {
	var b strings.Builder
	for i, s := range list {
		if i > 0 {
			b.WriteString(separator)
		}
		// A single left-out element is named, because "and 1 more" would be as long.
		if i == Named && len(list) > Named+1 {
			fmt.Fprintf(&b, "and %d more", len(list)-Named)
			break
		}
		b.WriteString(string(s))
	}
	return b.String()
}
