// Package excerpt shortens texts from outside weir and makes them safe to print in logs, problems and errors.
package excerpt

import (
	"fmt"
	"strings"
	"unicode"
	"unicode/utf8"
)

// maxLength is the length in bytes to which a text is shortened. The longest names of a namespace and an object (317
// bytes) fit, with a sentence about them.
const maxLength = 1024

// Of shortens a text from outside weir: an object's field, which may have megabytes, a program's output, or an error
// that contains either. It returns the beginning and, if it left something out, how many bytes. Characters that aren't
// printable, such as a terminal's control characters or those that reverse a text, become question marks. Newlines
// stay.
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
