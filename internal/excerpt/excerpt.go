// Package excerpt shortens texts from outside weir and makes them safe to print in logs, problems and errors.
//
// Invariants:
//   - Of, Printable and WriteJSON return only printable characters and newlines.
//   - A text that Of or List has shortened says how much was left out. Of cuts no character in two.
package excerpt

import (
	"fmt"
	"strings"
	"unicode/utf8"
)

// maxLength is how many bytes of a text Of keeps at most.
const maxLength = 1024

// Of returns a text of at most maxLength bytes whole. From a longer text it keeps the beginning, and says how many
// bytes it left out. Characters that aren't printable become question marks. Newlines stay.
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

// Printable returns the text with question marks for the characters that aren't printable. Newlines stay.
func Printable(text string) string {
	return strings.Map(func(r rune) rune {
		if hidden(r) {
			return '?'
		}
		return r
	}, text)
}
