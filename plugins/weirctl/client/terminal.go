package client

import (
	"encoding/json"
	"fmt"
	"io"
	"os"
	"strings"
	"unicode"

	"golang.org/x/term"
	"sigs.k8s.io/yaml"

	"github.com/weir-net/weir/internal/excerpt"
)

// YAML is a format of commands that print whole objects.
const YAML Format = "yaml"

// Styles of text on a terminal (ECMA-48, "SGR").
const (
	Bold  = "1"
	Red   = "1;31"
	Green = "32"
)

// Printer prints lines of text for people. What comes from objects can't act on a terminal: each text loses its control
// characters before it gets a style.
type Printer struct {
	out    io.Writer
	styled bool
	err    error
}

// NewPrinter returns a Printer. It uses styles only if out is a terminal, and neither NO_COLOR (no-color.org) nor
// TERM=dumb asks for plain text.
func NewPrinter(out io.Writer) *Printer {
	f, isFile := out.(*os.File)
	styled := isFile && term.IsTerminal(int(f.Fd())) && os.Getenv("NO_COLOR") == "" && os.Getenv("TERM") != "dumb"
	return &Printer{out: out, styled: styled}
}

// Styled is a text with a style.
type Styled struct{ Style, Text string }

// Line prints a line of the parts, which are strings and Styled texts.
func (p *Printer) Line(parts ...any) {
	var b strings.Builder
	for _, part := range parts {
		s, ok := part.(Styled)
		if !ok {
			s.Text = fmt.Sprint(part)
		}
		text := strings.ReplaceAll(excerpt.Of(s.Text), "\n", " ")
		if p.styled && s.Style != "" {
			text = "\x1b[" + s.Style + "m" + text + "\x1b[0m"
		}
		b.WriteString(text)
	}
	b.WriteByte('\n')
	if _, err := io.WriteString(p.out, b.String()); p.err == nil {
		p.err = err
	}
}

// Err returns the first error of writing.
func (p *Printer) Err() error { return p.err }

// PrintObject prints an object as JSON or YAML. Characters that aren't printable are escaped in JSON, and question
// marks in YAML.
func PrintObject(out io.Writer, f Format, v any) error {
	text, err := json.MarshalIndent(v, "", "  ")
	if err != nil {
		return err
	}
	escape := func(r rune) string { return fmt.Sprintf(`\u%04x`, r) }
	if f == YAML {
		if text, err = yaml.JSONToYAML(text); err != nil {
			return err
		}
		escape = func(rune) string { return "?" }
	}
	var b strings.Builder
	for _, r := range string(text) {
		if r == '\n' || unicode.IsPrint(r) {
			b.WriteRune(r)
		} else if r > 0xffff {
			b.WriteByte('?')
		} else {
			b.WriteString(escape(r))
		}
	}
	_, err = io.WriteString(out, strings.TrimRight(b.String(), "\n")+"\n")
	return err
}
