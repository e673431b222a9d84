package scale_test

import (
	"fmt"
	"runtime"
	"slices"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/weir-net/weir/test/estimate"
)

// row names a row of the table. Latencies have one row for each rate.
const (
	rowReady       = "start to ready, s"
	rowAfterLists  = "lists have arrived to ready, s"
	rowRSS         = "RSS after first sync, MB"
	rowAnonymous   = "of it anonymous, MB"
	rowPeak        = "peak RSS of the start, MB"
	rowRSSEnd      = "RSS at the end, MB"
	rowPeakEnd     = "peak RSS at the end, MB"
	rowFill        = "ADD while the node fills, ms"
	rowWrites      = "writes of a restart with nothing changed"
	rowIdle        = "idle CPU, % of a core"
	rowMeaningless = "CPU of an event that means nothing to policy, ms"
	rowToggle      = "CPU while ten policies a second change, % of a core"
	rowBytes       = "bytes of an event"

	rowADD        latency = "ADD"
	rowPolicy     latency = "policy -> enforced"
	rowPolicyDeny latency = "policy that denies -> enforced"
	rowPeer       latency = "label or pod elsewhere -> enforced"
	rowPeerDeny   latency = "label or pod elsewhere -> denied"
	rowCPU        latency = "CPU"
)

// latency is a row that exists for an idle cluster and for each stream.
type latency string

func (l latency) under(rate float64) string {
	unit := "ms"
	if l == rowCPU {
		unit = "% of a core"
	}
	if rate == 0 {
		return string(l) + ", idle, " + unit
	}
	return fmt.Sprintf("%s, %.0f events/s, %s", l, rate, unit)
}

// runs has all measurements.
type runs struct {
	Machine struct {
		CPUs   int
		Kernel string
		Go     string
	}
	Mix  string
	Runs []*run
}

// run has the values of one row, of one agent and cluster, in the order in which they were measured.
type run struct {
	Agent  string
	Pods   int
	Row    string
	Values []float64
}

func (r *runs) prepare() {
	r.Machine.CPUs, r.Machine.Go, r.Mix = runtime.NumCPU(), runtime.Version(), *mixFlag
	var u unix.Utsname
	if err := unix.Uname(&u); err == nil {
		r.Machine.Kernel = unix.ByteSliceToString(u.Release[:])
	}
}

func (r *runs) get(agent string, pods int, row string) *run {
	i := slices.IndexFunc(r.Runs, func(x *run) bool { return x.Agent == agent && x.Pods == pods && x.Row == row })
	if i < 0 {
		return nil
	}
	return r.Runs[i]
}

func (r *runs) note(agent string, pods int, row string, values []float64) {
	x := r.get(agent, pods, row)
	if x == nil {
		x = &run{Agent: agent, Pods: pods, Row: row}
		r.Runs = append(r.Runs, x)
	}
	x.Values = append(x.Values, values...)
}

func (r *runs) median(agent string, pods int, row string) float64 {
	return estimate.Median(r.get(agent, pods, row).Values)
}

// rows returns the rows of the table, in order.
func rows(rates []float64) []string {
	var all []string
	for _, l := range []latency{rowADD, rowPolicy, rowPolicyDeny, rowPeer, rowPeerDeny} {
		for _, rate := range append([]float64{0}, rates...) {
			all = append(all, l.under(rate))
		}
	}
	for _, rate := range rates {
		all = append(all, rowCPU.under(rate))
	}
	return append(all, rowMeaningless, rowToggle, rowIdle, rowRSS, rowAnonymous, rowPeak, rowRSSEnd, rowPeakEnd, rowReady,
		rowAfterLists, rowFill, rowWrites, rowBytes)
}

// sizes returns the sizes of the clusters and the agents that have been measured.
func (r *runs) columns() (sizes []int, agents []string) {
	for _, x := range r.Runs {
		if !slices.Contains(sizes, x.Pods) {
			sizes = append(sizes, x.Pods)
		}
		if !slices.Contains(agents, x.Agent) {
			agents = append(agents, x.Agent)
		}
	}
	return sizes, agents
}

// table returns the table as Markdown: the median of each row, and the 99th percentile of latencies.
func (r *runs) table(rates []float64) string {
	var b strings.Builder
	sizes, agents := r.columns()
	b.WriteString("| |")
	for _, s := range sizes {
		for _, a := range agents {
			fmt.Fprintf(&b, " %d pods", s)
			if len(agents) > 1 {
				fmt.Fprintf(&b, ", %s", a)
			}
			b.WriteString(" |")
		}
	}
	b.WriteString("\n|---|" + strings.Repeat("---|", len(sizes)*len(agents)) + "\n")
	for _, row := range rows(rates) {
		fmt.Fprintf(&b, "| %s |", row)
		for _, s := range sizes {
			for _, a := range agents {
				if x := r.get(a, s, row); x != nil {
					fmt.Fprintf(&b, " %s |", x.cell())
				} else {
					b.WriteString(" |")
				}
			}
		}
		b.WriteString("\n")
	}
	return b.String()
}

func (x *run) cell() string {
	text := figure(estimate.Median(x.Values))
	if strings.HasSuffix(x.Row, ", ms") && x.Row != rowMeaningless {
		text += " / " + figure(estimate.Quantile(x.Values, 0.99))
	}
	return text
}

// figure returns a value with three digits that mean something.
func figure(v float64) string {
	switch {
	case v >= 100:
		return fmt.Sprintf("%.0f", v)
	case v >= 10:
		return fmt.Sprintf("%.1f", v)
	default:
		return fmt.Sprintf("%.2f", v)
	}
}
