package excerpt_test

import (
	"encoding/json"
	"strings"
	"testing"
	"unicode"

	"github.com/weir-net/weir/internal/excerpt"
)

// TestWriteJSON: the output has no character that a terminal could act on, and can be read back as the same value.
func TestWriteJSON(t *testing.T) {
	odd := "a\x00\x1b[2J\x7f\u0085\u009b31m\u00a0\u200b\u202e\u2028\ue000\U000e0041é語\U0001f600\n\t<&>"
	value := map[string][]string{odd: {odd, "plain"}}
	for _, indent := range []string{"", "  "} {
		var b strings.Builder
		if err := excerpt.WriteJSON(&b, indent, value); err != nil {
			t.Fatal(err)
		}
		for _, r := range b.String() {
			if r != '\n' && !unicode.IsPrint(r) {
				t.Errorf("%U is in %q", r, b.String())
			}
		}
		for _, want := range []string{`\u0085\u009b31m`, `\udb40\udc41`, "é語\U0001f600"} {
			if !strings.Contains(b.String(), want) {
				t.Errorf("%s is not in %q", want, b.String())
			}
		}
		var back map[string][]string
		if err := json.Unmarshal([]byte(b.String()), &back); err != nil || len(back[odd]) != 2 || back[odd][0] != odd {
			t.Errorf("%v: %q", err, back)
		}
		if lines := strings.Count(b.String(), "\n"); lines != map[string]int{"": 1, "  ": 6}[indent] {
			t.Errorf("%d lines: %q", lines, b.String())
		}
	}
	if err := excerpt.WriteJSON(&strings.Builder{}, "", func() {}); err == nil {
		t.Error("a function is JSON")
	}
}
