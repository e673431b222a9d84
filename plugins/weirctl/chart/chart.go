// Package chart shows who can reach whom: as a table, JSON, a graph for Graphviz, an SVG picture, or a page for
// browsers.
//
// Invariants:
//   - Each format escapes names and labels, which may come from a hostile object.
//   - The page loads nothing, and runs no script but its own.
//   - A table or picture that leaves out rows says how many.
package chart

import (
	"fmt"
	"io"
	"slices"
	"strings"
	"text/tabwriter"
	"unicode/utf8"

	"github.com/weir-net/weir/internal/excerpt"
	"github.com/weir-net/weir/policy/reach"
	"github.com/weir-net/weir/policy/ruleset"
)

type View struct {
	*reach.Matrix
	Rows []reach.Row
	// Title names the part of the cluster that the matrix shows, such as "namespace shop".
	Title    string
	Policies []string
	// Notes are sentences about connections and objects that the matrix leaves out.
	Notes []string
	// MaxRows limits the rows of a table or an SVG picture. 0 means no limit.
	MaxRows int
}

const maxNames = 6

// OneLine makes a text from an object safe to print: shortened, and on one line.
func OneLine(s string) string { return strings.ReplaceAll(excerpt.Of(s), "\n", " ") }

func few(names []string, most int) string {
	shown := names[:min(len(names), most)]
	text := OneLine(strings.Join(shown, ", "))
	if more := len(names) - len(shown); more > 0 {
		text += fmt.Sprintf(", and %d more", more)
	}
	return text
}

// Table prints who reaches whom, on which ports, and through which Services. It prints at most MaxRows rows, and
// the number of further rows.
func Table(out io.Writer, v View) error {
	pods, groups, regions := 0, 0, 0
	for _, p := range v.Parties {
		if p.Kind == reach.World {
			regions++
			continue
		}
		groups++
		pods += p.Count()
	}
	_, err := fmt.Fprintf(out, "%s: %s in %s, the world in %s, %s\n\n", OneLine(v.Title), count(pods, "pod"),
		count(groups, "group"), count(regions, "region"), plural(len(v.Policies), "policy", "policies"))
	if err != nil {
		return err
	}
	if len(v.Rows) == 0 {
		_, err = fmt.Fprintln(out, "No connection is possible.")
		return err
	}
	if err := v.print(out, v.Rows, ""); err != nil {
		return err
	}
	return v.more(out, len(v.Rows))
}

func count(n int, what string) string { return plural(n, what, what+"s") }

func plural(n int, one, many string) string {
	if n == 1 {
		return "1 " + one
	}
	return fmt.Sprint(n, " ", many)
}

func (v View) print(out io.Writer, rows []reach.Row, mark string) error {
	var table strings.Builder
	w := tabwriter.NewWriter(&table, 0, 8, 2, ' ', 0)
	if v.MaxRows > 0 {
		rows = rows[:min(len(rows), v.MaxRows)]
	}
	services := slices.ContainsFunc(rows, func(r reach.Row) bool { return len(v.Services(r)) > 0 })
	line := func(cells ...string) {
		if mark != "" {
			cells = append([]string{mark}, cells...)
		}
		if !services {
			cells = cells[:len(cells)-1]
		}
		wrapped, height := make([][]string, len(cells)), 1
		for i, c := range cells {
			wrapped[i] = wrap(c)
			height = max(height, len(wrapped[i]))
		}
		for l := range height {
			for i := range cells {
				if cells[i] = ""; l < len(wrapped[i]) {
					cells[i] = wrapped[i][l]
				}
			}
			_, _ = fmt.Fprintln(w, strings.Join(cells, "\t")) // Flush returns any error
		}
	}
	if mark == "" {
		line("FROM", "TO", "PORTS", "SERVICES")
	}
	for _, r := range rows {
		ports := r.Ports.String()
		if r.Family != "" {
			ports += " (" + r.Family + ")"
		}
		line(few(v.Words(r.From, r.To), maxNames), few(v.Words(r.To, r.From), maxNames), ports, few(v.Services(r), 3))
	}
	if err := w.Flush(); err != nil {
		return err
	}
	for l := range strings.Lines(table.String()) {
		if _, err := fmt.Fprintln(out, strings.TrimRight(l, " \n")); err != nil {
			return err
		}
	}
	return nil
}

const columnWidth = 44

func wrap(list string) (lines []string) {
	line := ""
	for name := range strings.SplitSeq(list, ", ") {
		switch {
		case line == "":
			line = name
		case utf8.RuneCountInString(line)+utf8.RuneCountInString(name) > columnWidth:
			lines = append(lines, line+",")
			line = name
		default:
			line += ", " + name
		}
	}
	return append(lines, line)
}

func (v View) more(out io.Writer, rows int) error {
	left := rows - v.MaxRows
	if v.MaxRows == 0 || left <= 0 {
		return nil
	}
	_, err := fmt.Fprintf(out, "\n%d more rows. Narrow the table with -n NAMESPACE, --from, --to or --port; "+
		"show all with --rows 0, -o json or -o html.\n", left)
	return err
}

// Services returns the Services that lead to one of the row's ports, such as "shop/web:80".
func (v View) Services(r reach.Row) (names []string) {
	for _, i := range r.To {
		for _, s := range v.Parties[i].Services {
			if s.LeadsTo(r.Ports) {
				names = append(names, serviceName(s))
			}
		}
	}
	slices.Sort(names)
	return slices.Compact(names)
}

func serviceName(s reach.ServicePort) string {
	if s.Port == 0 {
		return s.Service
	}
	name := fmt.Sprintf("%s:%d", s.Service, s.Port)
	if s.Proto != ruleset.TCP {
		name += "/" + string(s.Proto)
	}
	return name
}

type row struct {
	From     []string    `json:"from"`
	To       []string    `json:"to"`
	Ports    reach.Ports `json:"ports"`
	Words    string      `json:"words"`
	Family   string      `json:"family,omitempty"`
	Services []string    `json:"services,omitempty"`
}

func (v View) named(rows []reach.Row) []row {
	names := func(parties []int) (all []string) {
		for _, i := range parties {
			all = append(all, v.Parties[i].Name)
		}
		return all
	}
	all := []row{} // an empty list is printed as [], not as null
	for _, r := range rows {
		all = append(all, row{names(r.From), names(r.To), r.Ports, r.Ports.String(), r.Family, v.Services(r)})
	}
	return all
}

// JSON prints all parties (senders and receivers), and all rows with the parties' names. It also prints the rows
// beyond MaxRows.
func JSON(out io.Writer, v View) error {
	return printJSON(out, struct {
		Parties []reach.Party `json:"parties"`
		Allowed []row         `json:"allowed"`
		Notes   []string      `json:"notes,omitempty"`
	}{v.Parties, v.named(v.Rows), v.Notes})
}

func printJSON(out io.Writer, value any) error { return excerpt.WriteJSON(out, "  ", value) }

type Change struct {
	View
	Opened, Closed []reach.Row
	Applied        reach.Applied
}

// DiffTable prints the changed objects, the connections that open, and the connections that close. It prints at
// most MaxRows rows of each of these two kinds of connections.
func DiffTable(out io.Writer, c Change) error {
	var err error
	say := func(format string, args ...any) {
		if err == nil {
			_, err = fmt.Fprintf(out, format, args...)
		}
	}
	for _, list := range []struct {
		does    string
		objects []string
	}{
		{"adds", c.Applied.Added},
		{"replaces", c.Applied.Replaced},
		{"deletes", c.Applied.Deleted},
		{"names, without an effect on pods that exist,", c.Applied.Unused},
	} {
		if len(list.objects) > 0 {
			say("The change %s %s.\n", list.does, few(list.objects, maxNames))
		}
	}
	for _, list := range []struct {
		what, mark string
		rows       []reach.Row
	}{{"Opens", "+", c.Opened}, {"Closes", "-", c.Closed}} {
		if len(list.rows) == 0 {
			continue
		}
		say("\n%s (from, to, ports):\n", list.what)
		if err == nil {
			err = c.print(out, list.rows, list.mark)
		}
		if err == nil {
			err = c.more(out, len(list.rows))
		}
	}
	if len(c.Opened)+len(c.Closed) == 0 {
		say("\nNo connection opens or closes.\n")
	}
	return err
}

// DiffJSON prints all parties (senders and receivers), and all rows that open or close. It also prints the rows
// beyond MaxRows.
func DiffJSON(out io.Writer, c Change) error {
	return printJSON(out, struct {
		Opened  []row         `json:"opened"`
		Closed  []row         `json:"closed"`
		Parties []reach.Party `json:"parties"`
		Applied reach.Applied `json:"applied"`
		Notes   []string      `json:"notes,omitempty"`
	}{c.named(c.Opened), c.named(c.Closed), c.Parties, c.Applied, c.Notes})
}
