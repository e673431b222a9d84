// Package excerpt shortens texts that come from outside of weir, and makes them safe to print.
//
// Invariants:
//   - The results of Of, Printable and WriteJSON have only printable characters and newlines.
//   - A text that Of has shortened ends with the number of bytes that were left out. A text that List has shortened
//     ends with the number of elements that were left out. Of cuts no character in two.
package excerpt

import (
	"fmt"
	"strings"
	"unicode/utf8"
)

// maxLength is the largest number of bytes that Of keeps of a text.
const maxLength = 1024

// Of returns the text, or the first maxLength bytes of a longer text with the number of bytes that were left out. It
// replaces characters that aren't printable by question marks, except newlines.
func Of(text string) string {
	more := 0
	if len(text) > maxLength {
		kept := maxLength
		for kept > maxLength-utf8.UTFMax && !utf8.RuneStart(text[kept]) {
			kept--
		}
		text, more = text[:kept], len(text)-kept
	}
	text = Printable(text)
	if more > 0 {
		text += fmt.Sprintf(" … and %d bytes more", more)
	}
	return text
}

// Printable replaces characters that aren't printable by question marks, except newlines.
func Printable(text string) string {
	return strings.Map(func(r rune) rune {
		if hidden(r) {
			return '?'
		}
		return r
	}, text)
}
