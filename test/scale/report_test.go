package scale_test

import (
	"cmp"
	"errors"
	"fmt"
	"math"
	"slices"
	"strings"
	"testing"

	"github.com/weir-net/weir/test/estimate"
	"github.com/weir-net/weir/test/scale/cluster"
)

var latencyRows = []latency{rowADD, rowPolicy, rowPolicyDeny, rowPeer, rowPeerDeny}

func (r *runs) rows() []string {
	var all []string
	for _, l := range latencyRows {
		for _, rate := range append([]float64{0}, r.Rates...) {
			all = append(all, l.under(rate))
		}
	}
	for _, rate := range r.Rates {
		all = append(all, rowCPU.under(rate), rowDecoding.under(rate))
	}
	all = append(all, rowMeaningless, rowBeyond, rowToggle, rowIdle, rowRSS, rowAnonymous, rowPeak, rowRSSEnd, rowPeakEnd,
		rowReady, rowAfterLists, rowFill, rowWrites, rowBytes)
	return slices.DeleteFunc(all, func(row string) bool {
		return !slices.ContainsFunc(r.Runs, func(x *run) bool { return x.Row == row })
	})
}

func (r *runs) growing() []string {
	return slices.DeleteFunc(r.rows(), func(row string) bool {
		return slices.Contains([]string{rowWrites, rowBytes, rowBeyond, rowFill}, row)
	})
}

func (r *runs) report() string {
	var b strings.Builder
	_, agents := r.columns()
	fmt.Fprintf(&b, "Measured on %d cores, Linux %s, %s, iptables %s; streams of %s.\nLatencies are p50 / p99.\n\n",
		r.Machine.CPUs, r.Machine.Kernel, r.Machine.Go, r.Machine.IPTables, r.Mix)
	for _, a := range agents {
		if len(agents) > 1 {
			fmt.Fprintf(&b, "The agent %s:\n\n", a)
		}
		b.WriteString(r.table(a) + "\n" + r.perPod(a))
		fmt.Fprintf(&b, "The ratio to the same agent in a cluster of %s pods, and the slope of the log-log curve from\n"+
			"1,000 pods on. In brackets: the 95 %% interval of the median of the rounds' ratios.\n\n", thousands(r.Reference))
		b.WriteString(r.ratios(a) + "\n")
	}
	if len(agents) > 1 {
		fmt.Fprintf(&b, "The ratio of the agent %s to the agent %s:\n\n%s\n", agents[1], agents[0],
			r.compared(agents[1], agents[0]))
	}
	return b.String()
}

// attacks returns a table for each agent and cluster: the medians during each attack, and their ratios to the medians
// without an attack.
func (r *runs) attacks() string {
	var b strings.Builder
	sizes, agents := r.columns()
	fmt.Fprintf(&b, "Measured on %d cores, Linux %s, %s, iptables %s. Medians.\n\n", r.Machine.CPUs, r.Machine.Kernel,
		r.Machine.Go, r.Machine.IPTables)
	for _, pods := range sizes {
		for _, agent := range agents {
			if len(sizes)*len(agents) > 1 {
				fmt.Fprintf(&b, "%s pods, the agent %s:\n\n", thousands(pods), agent)
			}
			b.WriteString("| one tenant's policies | ADD of another tenant, ms | ratio | denial of another tenant, ms | ratio " +
				"| peak RSS, MB |\n|---|---|---|---|---|---|\n")
			for _, a := range append([]cluster.Attack{{}}, cluster.Attacks...) {
				fmt.Fprintf(&b, "| %s |", cmp.Or(a.Name, "none"))
				for _, l := range []latency{rowADD, rowPolicyDeny} {
					ms, of := r.median(agent, pods, l.attacked(a.Name)), r.median(agent, pods, l.attacked(""))
					fmt.Fprintf(&b, " %s | %s |", figure(ms), figure(ms/of))
				}
				peak := ""
				if a.Name != "" {
					peak = figure(r.median(agent, pods, rowAttackMemory+a.Name))
				}
				fmt.Fprintf(&b, " %s |\n", peak)
			}
			b.WriteString("\n")
		}
	}
	return b.String()
}

// perPod says how much memory each additional pod takes, between the smallest cluster with at least 1,000 pods and the
// largest cluster. It returns "" if fewer than two clusters have at least 1,000 pods.
func (r *runs) perPod(agent string) string {
	sizes, _ := r.columns()
	sizes = slices.DeleteFunc(slices.Sorted(slices.Values(sizes)), func(s int) bool {
		return s < 1000 || r.get(agent, s, rowRSS) == nil
	})
	if len(sizes) < 2 {
		return ""
	}
	small, large := sizes[0], sizes[len(sizes)-1]
	kib := (r.median(agent, large, rowRSS) - r.median(agent, small, rowRSS)) * 1e6 / 1024 / float64(large-small)
	return fmt.Sprintf("From %s to %s pods, each pod takes %s KiB of RSS after the first sync.\n\n", thousands(small),
		thousands(large), figure(kib))
}

// columnsTable returns a table with a column for each size of the cluster. Ratios have no unit, so a table of ratios
// leaves out the units in the rows' names.
func (r *runs) columnsTable(
	rows []string, ratios bool, cell func(row string, pods int) string, more ...string,
) string {
	var b strings.Builder
	sizes, _ := r.columns()
	head := ""
	if ratios {
		head = "ratio "
	}
	fmt.Fprintf(&b, "| %s|", head)
	for _, s := range sizes {
		fmt.Fprintf(&b, " %s pods |", thousands(s))
	}
	for _, m := range more {
		fmt.Fprintf(&b, " %s |", m)
	}
	b.WriteString("\n|---|" + strings.Repeat("---|", len(sizes)+len(more)) + "\n")
	for _, row := range rows {
		name := row
		if ratios {
			name = withoutUnit(row)
		}
		fmt.Fprintf(&b, "| %s |", name)
		for _, s := range sizes {
			fmt.Fprintf(&b, " %s |", cell(row, s))
		}
		for range more {
			fmt.Fprintf(&b, " %s |", cell(row, 0))
		}
		b.WriteString("\n")
	}
	return b.String()
}

func withoutUnit(row string) string {
	for _, unit := range []string{", ms", ", s", ", MB", ", % of a core"} {
		row = strings.TrimSuffix(row, unit)
	}
	return row
}

func (r *runs) table(agent string) string {
	return r.columnsTable(r.rows(), false, func(row string, pods int) string {
		x := r.get(agent, pods, row)
		if x == nil {
			return ""
		}
		text := figure(estimate.Median(x.all()))
		if len(x.Values[0]) > 1 {
			text += " / " + figure(estimate.Quantile(x.all(), 0.99))
		}
		return text
	})
}

func (r *runs) ratios(agent string) string {
	return r.columnsTable(r.growing(), true, func(row string, pods int) string {
		reference := r.get(agent, r.Reference, row)
		switch x := r.get(agent, pods, row); {
		case pods == 0:
			return r.slope(agent, row)
		case x == nil || reference == nil || pods == r.Reference:
			return ""
		default:
			return ratio(x, reference)
		}
	}, "slope")
}

func (r *runs) compared(agent, to string) string {
	return r.columnsTable(r.growing(), true, func(row string, pods int) string {
		x, y := r.get(agent, pods, row), r.get(to, pods, row)
		if x == nil || y == nil {
			return ""
		}
		return ratio(x, y)
	})
}

func ratio(of, to *run) string {
	list := slices.DeleteFunc(estimate.Ratios(of.medians(), to.medians()), func(v float64) bool {
		return math.IsInf(v, 0) || math.IsNaN(v) // there is no measurement to compare with
	})
	if len(list) == 0 {
		return ""
	}
	text := figure(estimate.Median(list))
	if low, high, ok := estimate.Interval(list); ok {
		text += fmt.Sprintf(" (%s to %s)", figure(low), figure(high))
	}
	return text
}

// slope returns the slope of the row's log-log curve, from 1,000 pods on. If fewer than two clusters have at least
// 1,000 pods, it returns "".
func (r *runs) slope(agent, row string) string {
	var xs, ys []float64
	sizes, _ := r.columns()
	for _, s := range sizes {
		if x := r.get(agent, s, row); x != nil && s >= 1000 {
			if m := estimate.Median(x.all()); m > 0 {
				xs, ys = append(xs, math.Log(float64(s))), append(ys, math.Log(m))
			}
		}
	}
	if len(xs) < 2 {
		return ""
	}
	return fmt.Sprintf("%.2f", slope(xs, ys))
}

func slope(xs, ys []float64) float64 {
	var mx, my, xy, xx float64
	for i := range xs {
		mx += xs[i] / float64(len(xs))
		my += ys[i] / float64(len(xs))
	}
	for i := range xs {
		xy += (xs[i] - mx) * (ys[i] - my)
		xx += (xs[i] - mx) * (xs[i] - mx)
	}
	return xy / xx
}

// figure writes a value with three digits, or with more if its whole part is longer. A value below 1 gets two or three
// decimals.
func figure(v float64) string {
	switch a := math.Abs(v); {
	case v == 0:
		return "0"
	case a >= 1000:
		return thousands(int(math.Round(v)))
	case a >= 100:
		return fmt.Sprintf("%.0f", v)
	case a >= 10:
		return fmt.Sprintf("%.1f", v)
	case a >= 0.1:
		return fmt.Sprintf("%.2f", v)
	default:
		return fmt.Sprintf("%.3f", v)
	}
}

func thousands(n int) string {
	s := fmt.Sprint(n)
	for i := len(s) - 3; i > 0 && s[i-1] != '-'; i -= 3 {
		s = s[:i] + "," + s[i:]
	}
	return s
}

// marks is a command that writes a part of docs/benchmarks.md. Two lines with the command mark the beginning and the
// end of the part.
type marks string

const (
	sizeMarks   marks = "scripts/bench-scale"
	attackMarks marks = "scripts/bench-scale -attacks"
)

func (m marks) begin() string { return "<!-- " + string(m) + " writes what follows -->\n" }
func (m marks) end() string   { return "<!-- " + string(m) + " wrote what precedes -->\n" }

func (m marks) between(page, text string) (string, error) {
	before, rest, ok := strings.Cut(page, m.begin())
	_, after, closed := strings.Cut(rest, m.end())
	if !ok || !closed {
		return "", errors.New("the marks of the benchmark are missing")
	}
	return before + m.begin() + "\n" + text + m.end() + after, nil
}

// TestReport: for known measurements, the report has the expected figures, ratios and slopes, and no line that is too
// long for docs. A new report replaces only the text between the marks of the page.
func TestReport(t *testing.T) {
	for v, want := range map[float64]string{
		0: "0", 0.0123: "0.012", 1.234: "1.23", 12.34: "12.3", 123.4: "123", 12345.6: "12,346", -1234567: "-1,234,567",
	} {
		if got := figure(v); got != want {
			t.Errorf("%v: %s, want %s", v, got, want)
		}
	}
	r := &runs{Reference: 100}
	for _, pods := range []int{100, 1000, 10000, 100000} {
		for round := 1; round <= 6; round++ {
			r.record("now", pods, rowADD.under(0), []float64{float64(pods * round), float64(pods * round)})
			r.record("now", pods, rowIdle, []float64{0.5})
			r.record("now", pods, rowRSS, []float64{50 + float64(pods)*2048/1e6})
		}
	}
	text := r.report()
	for _, want := range []string{
		"| ADD, idle, ms | 350 / 600 | 3,500 / 6,000 |", "| 10.0 (10.0 to 10.0) | 100 (100 to 100) |",
		"| idle CPU, % of a core | 0.50 | 0.50 | 0.50 | 0.50 |", "| 1.00 (1.00 to 1.00) | 1.00 (1.00 to 1.00) | 0.00 |",
		"each pod takes 2.00 KiB",
	} {
		if !strings.Contains(text, want) {
			t.Errorf("no %q in\n%s", want, text)
		}
	}
	for line := range strings.Lines(text) {
		if len(line) > 120 && !strings.HasPrefix(line, "|") {
			t.Errorf("a line of a page is too long: %s", line)
		}
	}
	begin, end := sizeMarks.begin(), sizeMarks.end()
	page, err := sizeMarks.between("a\n"+begin+"old\n"+end+"b\n", "new\n")
	if want := "a\n" + begin + "\nnew\n" + end + "b\n"; err != nil || page != want {
		t.Errorf("%q, %v", page, err)
	}
	if _, err := sizeMarks.between("a", "b"); err == nil {
		t.Error("a page without marks is written")
	}
	if text := string(r.json()); strings.Count(text, "\n") != 14 {
		t.Errorf("%s", text)
	}
}

func TestAttacks(t *testing.T) {
	r := &runs{}
	for _, l := range []latency{rowADD, rowPolicyDeny} {
		r.record("now", 100, l.attacked(""), []float64{10, 20, 30})
		for _, a := range cluster.Attacks {
			r.record("now", 100, l.attacked(a.Name), []float64{30, 35, 40})
			r.record("now", 100, rowAttackMemory+a.Name, []float64{123})
		}
	}
	want := "| none | 20.0 | 1.00 | 20.0 | 1.00 |  |\n" +
		"| one policy of 900 peers, each NotIn 100 values | 35.0 | 1.75 | 35.0 | 1.75 | 123 |\n"
	if text := r.attacks(); !strings.Contains(text, want) {
		t.Errorf("%s", text)
	}
}
