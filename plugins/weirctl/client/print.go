package client

import (
	"cmp"
	"fmt"
	"io"
	"strings"
	"text/tabwriter"
	"time"

	"k8s.io/apimachinery/pkg/util/duration"

	"github.com/weir-net/weir/agentapi"
	"github.com/weir-net/weir/internal/excerpt"
	"github.com/weir-net/weir/policy/ruleset"
)

type Format string

const (
	Text Format = "text"
	JSON Format = "json"
)

// ParseFormat parses the value of the flag -o. A wrong value is a usage error.
func ParseFormat(s string) (Format, error) {
	if f := Format(s); f == Text || f == JSON {
		return f, nil
	}
	return "", Usage(fmt.Errorf("-o %s: must be text or json", s))
}

// PrintStatus prints the status. The text has problems, faults, and tables of pods, classes and sets.
func PrintStatus(out io.Writer, f Format, s *agentapi.Status) error {
	if f == JSON {
		return PrintJSON(out, s)
	}
	return printTable(out, func(line printLine) { statusLines(line, s) })
}

func PrintPods(out io.Writer, f Format, pods []agentapi.PodStatus) error {
	if f == JSON {
		return PrintJSON(out, pods)
	}
	return printTable(out, func(line printLine) { podLines(line, pods) })
}

func PrintJSON(out io.Writer, v any) error { return excerpt.WriteJSON(out, "  ", v) }

type printLine func(format string, args ...any)

func printTable(out io.Writer, lines func(printLine)) error {
	w := tabwriter.NewWriter(out, 0, 8, 2, ' ', 0)
	lines(func(format string, args ...any) {
		for i, a := range args {
			if text, ok := a.(string); ok {
				args[i] = inTable(text)
			}
		}
		_, _ = fmt.Fprintf(w, format+"\n", args...) // Flush returns any error
	})
	return w.Flush()
}

// inTable makes a text from outside of weir safe to print in a line of a table. It keeps tabs, which separate the
// table's cells.
func inTable(text string) string {
	cells := strings.Split(strings.ReplaceAll(text, "\n", " "), "\t")
	for i, c := range cells {
		cells[i] = excerpt.Printable(c)
	}
	return strings.Join(cells, "\t")
}

func podLines(line printLine, pods []agentapi.PodStatus) {
	line("CONTAINER\tPOD\tADDRESSES\tLINK\tMAC\tINGRESS\tEGRESS\tSINCE")
	for _, p := range pods {
		line("%.13s\t%s\t%s\t%s\t%s\t%s\t%s\t%s", p.ContainerID, p.Pod, strings.Join(p.Addresses, ","), p.HostIf, p.MAC,
			p.Ingress, p.Egress, p.Since.Local().Format(time.RFC3339))
	}
}

// ago returns how long ago the time was, in kubectl's units, such as "2d3h ago". A node's clock may differ from this
// computer's, and a clock may have been set back. So a time may be in the future.
func ago(t time.Time) string {
	since := time.Since(t)
	if since <= -2*time.Second { // for such a time, HumanDuration returns <invalid>
		return "in the future"
	}
	return duration.HumanDuration(since) + " ago"
}

const maxProblems = 50

func statusLines(line printLine, s *agentapi.Status) {
	line("ready:\t%v", s.Ready)
	if s.BackendReason != "" {
		line("backend:\t%s, because %s", cmp.Or(s.Backend, "none"), agentapi.OneLine(s.BackendReason))
	}
	if !s.LastSync.IsZero() {
		backend := "iptables-" + s.IPTables
		if s.IPTables == "nftables" {
			backend = s.IPTables
		}
		line("last sync:\t%s (%s), %s", s.LastSync.Format(time.RFC3339), ago(s.LastSync), backend)
		line("since start:\t%d changes, %d failures, %d repairs, %d connections cut",
			s.Stats.Changes, s.Stats.Failures, s.Stats.Repairs, s.Stats.Cut)
	}
	for _, e := range s.Errors {
		line("ERROR:\t%s", e)
	}
	problems := problemTexts(s.Problems)
	for _, p := range problems[:min(len(problems), maxProblems)] {
		line("PROBLEM:\t%s", p)
	}
	if more := len(problems) - maxProblems; more > 0 {
		line("PROBLEM:\tand %d more (weirctl status -o json lists all)", more)
	}
	if s.DropsUnread != "" {
		line("NOT READ:\tdropped packets, so weirctl drops shows none: %s", agentapi.OneLine(s.DropsUnread))
	}
	for _, u := range s.Unenforced {
		line("WARNING:\t%s", agentapi.OneLine(u.String()))
	}
	if s.Stats.NodeRepairs > 0 {
		line("node repairs:\t%d since start, the last of them:", s.Stats.NodeRepairs)
	}
	for _, r := range s.NodeRepairs {
		line("REPAIRED:\t%s %s: %s (%s)", r.Time.Format(time.RFC3339), r.Kind, r.Was, r.Command)
	}
	line("policies:\t%s", excerpt.List(s.Policies, ", "))
	if len(s.Audited) > 0 {
		line("AUDITED:\t%s (not enforced; weirctl audit shows what they would drop)", excerpt.List(s.Audited, ", "))
	}
	for _, l := range agentapi.FileLines(s.Files) {
		line("%s", l)
	}
	line("\nPOD\tADDRESS\tLINK\tINGRESS\tEGRESS")
	for _, p := range s.Pods {
		line("%s\t%s\t%s\t%s\t%s", p.Pod, strings.Join(p.Addresses, ","), p.HostIf, p.Ingress, p.Egress)
	}
	if len(s.Classes) > 0 {
		line("\nCLASS\tDIRECTION\tFAMILY\tPODS\tPOLICIES")
	}
	for _, c := range s.Classes {
		policies := excerpt.List(c.Policies, ", ")
		switch {
		case len(c.Audited) > 0:
			policies = agentapi.ClassAudited + excerpt.List(c.Audited, ", ")
		case policies == "":
			policies = "none: open"
		}
		// The line names a class by its chain, because not all backends have a set for each class. The class of the pods
		// that no policy isolates has no chain.
		line("%s\t%s\t%s\t%d\t%s", cmp.Or(c.Chain, agentapi.ClassOpen), c.Direction, c.Family, len(c.Pods), policies)
	}
	line("\nSET\tTYPE\tENTRIES")
	for _, set := range s.Sets {
		line("%s\t%s\t%d", set.Name, set.Type, set.Entries)
	}
}

// problemTexts puts problems that differ only in Problem.Field into one line.
func problemTexts(of []agentapi.Problem) (lines []string) {
	problems := make([]ruleset.Problem, len(of))
	for i, p := range of {
		problems[i] = ruleset.Problem(p)
	}
	for _, p := range ruleset.Together(problems) {
		lines = append(lines, agentapi.OneLine(p.String()))
	}
	return lines
}

// PrintLine prints a text from outside weirctl safely, as one line.
func PrintLine(out io.Writer, text string) error {
	_, err := fmt.Fprintln(out, agentapi.OneLine(text))
	return err
}
