package policy

import (
	"fmt"
	"strings"
	"unicode"
	"unicode/utf8"
)

// maxExcerpt is how many bytes of a text of others' a log line, a problem or an error carries. That is enough for the
// longest names of a namespace and an object (317 bytes) with a sentence about them.
const maxExcerpt = 1024

// Excerpt is the beginning of a text that others wrote: an object's field, a program's output, an error that holds
// either. It is bounded, as a field may have megabytes, and has no character that isn't printed, such as those that a
// terminal obeys or by which a text runs backwards.
func Excerpt(text string) string {
	more := 0
	if len(text) > maxExcerpt {
		kept := maxExcerpt
		for kept > maxExcerpt-utf8.UTFMax && !utf8.RuneStart(text[kept]) {
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
