package chart

import (
	"bufio"
	"cmp"
	"encoding/xml"
	"fmt"
	"html"
	"io"
	"slices"
	"strings"
	"unicode/utf8"

	"github.com/weir-net/weir/policy/reach"
)

// Dot prints a graph for Graphviz. Each row of the matrix is a node of the graph, labelled with the row's ports.
// Lines lead from the senders to this node, and from this node to the receivers.
//
// Equivalent to: weirctl matrix -o dot
func Dot(out io.Writer, v View) error {
	w := bufio.NewWriter(out)
	line := func(format string, args ...any) { _, _ = fmt.Fprintf(w, format+"\n", args...) } // Flush returns any error
	line("digraph reach {")
	line("  label=%s; rankdir=LR; node [shape=box]", quoted(v.Title))
	used := map[int]bool{}
	for _, r := range v.Rows {
		for _, i := range append(r.From[:len(r.From):len(r.From)], r.To...) {
			used[i] = true
		}
	}
	namespace := ""
	for i, p := range v.Parties { // parties are ordered by namespace
		if !used[i] {
			continue
		}
		if p.Namespace != namespace {
			if namespace != "" {
				line("  }")
			}
			if namespace = p.Namespace; namespace != "" {
				line("  subgraph cluster_%d {\n    label=%s", i, quoted(namespace))
			}
		}
		shape := ""
		if p.Kind == reach.World {
			shape = "; shape=ellipse"
		}
		line("    p%d [label=%s%s]", i, quoted(p.String()), shape)
	}
	if namespace != "" {
		line("  }")
	}
	for n, r := range v.Rows {
		line("  r%d [shape=plaintext; label=%s]", n, quoted(portsOf(r)))
		for _, i := range r.From {
			line("  p%d -> r%d [dir=none]", i, n)
		}
		for _, j := range r.To {
			line("  r%d -> p%d", n, j)
		}
	}
	line("}")
	return w.Flush()
}

func portsOf(r reach.Row) string {
	if r.Family != "" {
		return r.Ports.String() + " (" + r.Family + ")"
	}
	return r.Ports.String()
}

// quoted escapes quotes and backslashes. In Graphviz's labels, a backslash begins an escape.
func quoted(s string) string {
	return `"` + strings.NewReplacer(`\`, `\\`, `"`, `\"`).Replace(OneLine(s)) + `"`
}

const (
	boxWidth, boxHeight = 280, 26
	gap                 = 12
	between             = 130 // the space between two columns
	charWidth           = 7
	margin              = 20
	titleHeight         = 40
)

type picture struct {
	columns [3][]box
	edges   [2][][2]int // from each column to the next: the indexes of the two boxes that an edge joins
	index   [3]map[string]int
}

type box struct{ text, class string }

// SVG prints a picture: senders on the left, ports in the middle, receivers on the right. It shows at most MaxRows
// rows, and the title has the number of further rows.
func SVG(out io.Writer, v View) error {
	rows := v.Rows
	if v.MaxRows > 0 {
		rows = rows[:min(len(rows), v.MaxRows)]
	}
	var p picture
	for i := range p.index {
		p.index[i] = map[string]int{}
	}
	for n, r := range rows {
		hub := p.add(1, fmt.Sprint(n), box{portsOf(r), "ports"})
		for _, name := range v.Words(r.From, r.To) {
			p.edges[0] = append(p.edges[0], [2]int{p.add(0, name, box{name, v.class(name)}), hub})
		}
		for _, name := range v.Words(r.To, r.From) {
			p.edges[1] = append(p.edges[1], [2]int{hub, p.add(2, name, box{name, v.class(name)})})
		}
	}
	title := v.Title
	if left := len(v.Rows) - len(rows); left > 0 {
		title += fmt.Sprintf(" (%d more rows are left out: narrow with -n, --from, --to or --port, or use --rows)", left)
	}
	return p.print(out, title)
}

func (v View) class(words string) string {
	for _, p := range v.Parties {
		if p.Kind == reach.World && p.Name == words {
			return "world"
		}
	}
	if words == "the world" || words == "everyone" {
		return "world"
	}
	return "pods"
}

func (p *picture) add(column int, key string, b box) int {
	i, ok := p.index[column][key]
	if !ok {
		i = len(p.columns[column])
		p.index[column][key] = i
		p.columns[column] = append(p.columns[column], b)
	}
	return i
}

const style = `
svg { background: #fff; font: 12px ui-monospace, Menlo, Consolas, monospace }
text { fill: #1f2328 } rect { stroke-width: 1; rx: 5px } path { fill: none; stroke: #8c959f; stroke-width: 1.2 }
.pods rect { fill: #ddf4ff; stroke: #54aeff } .world rect { fill: #fff1e5; stroke: #fb8f44 }
.ports rect { fill: #f6f8fa; stroke: #d0d7de } .title { font-size: 15px; font-weight: 600 }
@media (prefers-color-scheme: dark) {
  svg { background: #0d1117 } text { fill: #e6edf3 } path { stroke: #6e7681 }
  .pods rect { fill: #0c2d6b; stroke: #388bfd } .world rect { fill: #5a1e02; stroke: #db6d28 }
  .ports rect { fill: #161b22; stroke: #30363d }
}
`

func (p *picture) print(out io.Writer, title string) error {
	w := bufio.NewWriter(out)
	line := func(format string, args ...any) { _, _ = fmt.Fprintf(w, format+"\n", args...) } // Flush returns any error
	tallest := max(len(p.columns[0]), len(p.columns[1]), len(p.columns[2]))
	height := titleHeight + 2*margin + tallest*(boxHeight+gap)
	width := max(2*margin+3*boxWidth+2*between, 2*margin+charWidth*9/7*utf8.RuneCountInString(title))
	line(`<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 %d %d" width="%d" height="%d" role="img" aria-label="%s">`,
		width, height, width, height, html.EscapeString(OneLine(title)))
	line("<style>%s</style>", style)
	line(`<defs><marker id="tip" viewBox="0 0 8 8" refX="8" refY="4" markerWidth="8" markerHeight="8" orient="auto">` +
		`<path d="M0,0 L8,4 L0,8"/></marker></defs>`)
	line(`<text class="title" x="%d" y="%d">%s</text>`, margin, margin+14, text(title))
	tops := p.tops(tallest)
	top := func(column, i int) int { return titleHeight + margin + tops[column][i] }
	left := func(column int) int { return margin + column*(boxWidth+between) }
	for c, edges := range p.edges {
		for _, e := range edges {
			x, y := left(c)+boxWidth, top(c, e[0])+boxHeight/2
			to, down := left(c+1), top(c+1, e[1])+boxHeight/2
			tip := ""
			if c == 1 {
				tip = ` marker-end="url(#tip)"`
			}
			line(`<path d="M%d,%d C%d,%d %d,%d %d,%d"%s/>`, x, y, x+between/2, y, to-between/2, down, to, down, tip)
		}
	}
	for c, boxes := range p.columns {
		for i, b := range boxes {
			x, y := left(c), top(c, i)
			line(`<g class="%s"><title>%s</title><rect x="%d" y="%d" width="%d" height="%d"/><text x="%d" y="%d">%s</text></g>`,
				b.class, text(b.text), x, y, boxWidth, boxHeight, x+8, y+17, text(shortened(b.text, (boxWidth-16)/charWidth)))
		}
	}
	line("</svg>")
	return w.Flush()
}

// tops returns the vertical positions of the boxes. The boxes of ports are centred. The box of a sender or receiver is
// near the boxes of its ports.
func (p *picture) tops(tallest int) (tops [3][]int) {
	const step = boxHeight + gap
	free := (tallest - len(p.columns[1])) * step / 2
	for i := range p.columns[1] {
		tops[1] = append(tops[1], free+i*step)
	}
	for _, c := range []int{0, 2} {
		sum, edges := make([]int, len(p.columns[c])), make([]int, len(p.columns[c]))
		for _, e := range p.edges[c/2] {
			own, port := e[c/2], e[1-c/2]
			sum[own] += tops[1][port]
			edges[own]++
		}
		order := make([]int, len(sum))
		for i := range order {
			order[i] = i
			sum[i] /= max(edges[i], 1)
		}
		slices.SortStableFunc(order, func(a, b int) int { return cmp.Compare(sum[a], sum[b]) })
		tops[c] = make([]int, len(sum))
		next := 0
		for _, i := range order {
			tops[c][i] = max(sum[i], next)
			next = tops[c][i] + step
		}
		last := tallest * step
		for _, i := range slices.Backward(order) {
			tops[c][i] = min(tops[c][i], last-step)
			last = tops[c][i]
		}
	}
	return tops
}

func shortened(s string, most int) string {
	s = OneLine(s)
	if utf8.RuneCountInString(s) <= most {
		return s
	}
	return string([]rune(s)[:most-1]) + "…"
}

func text(s string) string {
	var b strings.Builder
	_ = xml.EscapeText(&b, []byte(OneLine(s))) // writing to a strings.Builder never fails
	return b.String()
}
