// Package excerpt bounds texts that others wrote, for logs, problems and errors.
package excerpt

import (
	"fmt"
	"strings"
	"unicode"
	"unicode/utf8"
)

// maxLength is how many bytes of a text of others' a log line, a problem or an error carries. That is enough for the
// longest names of a namespace and an object (317 bytes) with a sentence about them.
const maxLength = 1024

// Of returns the beginning of a text that others wrote: an object's field, a program's output, an error that has
// either. It is bounded, as a field may have megabytes. Characters that aren't printed, such as those that a terminal
// obeys or that reverse a text, become question marks.
func Of(text string) string {
	more := 0
	if len(text) > maxLength {
		kept := maxLength
		for kept > maxLength-utf8.UTFMax && !utf8.RuneStart(text[kept]) {
			kept--
		}
		text, more = text[:kept], len(text)-kept
	}
	text = strings.Map(func(r rune) rune {
		if !unicode.IsPrint(r) && r != '\n' {
			return '?'
		}
		return r
	}, text)
	if more > 0 {
		text += fmt.Sprintf(" … and %d bytes more", more)
	}
	return text
}
