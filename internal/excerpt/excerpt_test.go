package excerpt_test

import (
	"strings"
	"testing"
	"unicode/utf8"

	"github.com/weir-net/weir/internal/excerpt"
)

// TestOf: Of shortens a text of more than 1,024 bytes, and cuts no character in two. Characters that aren't printable
// become question marks, except newlines.
func TestOf(t *testing.T) {
	for text, want := range map[string]string{
		"":                             "",
		"spec.ports[0]: “x”\nis none":  "spec.ports[0]: “x”\nis none",
		"a\x1b[2Jb\u009bc\rd":          "a?[2Jb?c?d",
		"a\u202eb\u2028c\u200bd":       "a?b?c?d",
		strings.Repeat("a", 1024):      strings.Repeat("a", 1024),
		strings.Repeat("a", 1025):      strings.Repeat("a", 1024) + " … and 1 bytes more",
		"a" + strings.Repeat("é", 1e6): "a" + strings.Repeat("é", 511) + " … and 1998978 bytes more",
	} {
		got := excerpt.Of(text)
		if got != want || !utf8.ValidString(got) {
			t.Errorf("%.40q… (%d bytes): got %.60q… (%d bytes), want %.60q…", text, len(text), got, len(got), want)
		}
	}
}
