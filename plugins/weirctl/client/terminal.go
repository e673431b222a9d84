package client

import (
	"encoding/json"
	"fmt"
	"io"
	"os"
	"strings"

	"golang.org/x/term"
	"sigs.k8s.io/yaml"

	"github.com/weir-net/weir/internal/excerpt"
)

// YAML is an output format. Only commands that print whole objects have it.
const YAML Format = "yaml"

// Styles of text on a terminal (ECMA-48, "SGR").
const (
	Bold   = "1"
	Red    = "1;31"
	Green  = "32"
	Yellow = "33"
)

// Printer prints lines for people. It prints question marks in place of unprintable characters, so that objects' names
// can't act on a terminal.
type Printer struct {
	out    io.Writer
	styled bool
	err    error
}

// NewPrinter returns a Printer. It uses styles only if out is a terminal, NO_COLOR (no-color.org) isn't set, and TERM
// isn't dumb.
func NewPrinter(out io.Writer) *Printer {
	f, isFile := out.(*os.File)
	styled := isFile && term.IsTerminal(int(f.Fd())) && os.Getenv("NO_COLOR") == "" && os.Getenv("TERM") != "dumb"
	return &Printer{out: out, styled: styled}
}

type Styled struct{ Style, Text string }

// width is the length in bytes after which Printer continues on the next line.
const width = 100

// Line prints a line of strings and Styled texts. A long line continues on the next one, indented.
func (p *Printer) Line(parts ...any) {
	var text strings.Builder
	type span struct {
		end   int
		style string
	}
	var spans []span
	for _, part := range parts {
		s, ok := part.(Styled)
		if !ok {
			s.Text = fmt.Sprint(part)
		}
		text.WriteString(strings.ReplaceAll(excerpt.Of(s.Text), "\n", " "))
		spans = append(spans, span{text.Len(), s.Style})
	}
	var b strings.Builder
	line, begin := text.String(), 0
	breaks, indent := wrap(line)
	for _, s := range spans {
		styled := p.styled && s.style != "" && s.end > begin
		if styled {
			b.WriteString("\x1b[" + s.style + "m")
		}
		for at := begin; at < s.end; at++ {
			if breaks[at] {
				b.WriteString("\n" + indent)
				continue
			}
			b.WriteByte(line[at])
		}
		if styled {
			b.WriteString("\x1b[0m")
		}
		begin = s.end
	}
	b.WriteByte('\n')
	if _, err := io.WriteString(p.out, b.String()); p.err == nil {
		p.err = err
	}
}

func wrap(line string) (breaks map[int]bool, indent string) {
	first := len(line) - len(strings.TrimLeft(line, " "))
	indent = strings.Repeat(" ", first+2)
	breaks = map[int]bool{}
	column, space := first, -1
	for at := first; at < len(line); at++ {
		if line[at] == ' ' {
			space = at
		}
		if column++; column > width && space > first {
			breaks[space] = true
			column, space = len(indent)+at-space, -1
		}
	}
	return breaks, indent
}

func (p *Printer) Err() error { return p.err }

// PrintObject prints an object as JSON or YAML. JSON has escapes in place of unprintable characters, and YAML has
// question marks.
func PrintObject(out io.Writer, f Format, v any) error {
	if f != YAML {
		return PrintJSON(out, v)
	}
	text, err := json.Marshal(v)
	if err == nil {
		text, err = yaml.JSONToYAML(text)
	}
	if err != nil {
		return err
	}
	_, err = io.WriteString(out, excerpt.Printable(string(text)))
	return err
}
