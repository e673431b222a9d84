// Package excerpt shortens texts from outside weir and makes them safe to print in logs, problems and errors.
package excerpt

import (
	"fmt"
	"strings"
	"unicode"
	"unicode/utf8"
)

// maxLength is the length in bytes to which a text is shortened.
const maxLength = 1024

// Of shortens a text from outside weir, which may have megabytes. It returns the beginning, and the number of
// bytes that it left out. Characters that aren't printable become question marks. Newlines stay.
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
