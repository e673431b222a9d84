package excerpt

import (
	"bytes"
	"encoding/json"
	"fmt"
	"io"
	"unicode"
	"unicode/utf16"
	"unicode/utf8"
)

// WriteJSON writes the value as JSON, and a newline. indent is the indentation of each level; if it is empty, the JSON
// is one line. Characters that aren't printable are escaped, because a terminal could act on them. encoding/json
// doesn't escape all of them.
func WriteJSON(out io.Writer, indent string, value any) error {
	var b bytes.Buffer
	e := json.NewEncoder(&b)
	e.SetIndent("", indent)
	if err := e.Encode(value); err != nil {
		return err
	}
	_, err := out.Write(escaped(b.Bytes()))
	return err
}

// escaped escapes all characters of the JSON text that aren't printable. In JSON, such characters are always within
// strings.
func escaped(text []byte) []byte {
	if !bytes.ContainsFunc(text, hidden) {
		return text
	}
	b := make([]byte, 0, len(text)+len(text)/8)
	for len(text) > 0 {
		r, size := utf8.DecodeRune(text)
		high, low := utf16.EncodeRune(r)
		switch {
		case !hidden(r):
			b = append(b, text[:size]...)
		case high != unicode.ReplacementChar:
			b = fmt.Appendf(b, `\u%04x\u%04x`, high, low)
		default:
			b = fmt.Appendf(b, `\u%04x`, r)
		}
		text = text[size:]
	}
	return b
}

func hidden(r rune) bool { return r != '\n' && !unicode.IsPrint(r) }
