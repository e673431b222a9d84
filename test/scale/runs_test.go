package scale_test

import (
	"encoding/json"
	"fmt"
	"math"
	"runtime"
	"slices"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/weir-net/weir/test/estimate"
)

// These are the names of the table's rows. A name of the type latency is the beginning of several rows' names.
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
	rowBeyond      = "of it beyond decoding, ms"
	rowBytes       = "bytes of an event"

	rowADD        latency = "ADD"
	rowPolicy     latency = "policy -> enforced"
	rowPolicyDeny latency = "policy that denies -> enforced"
	rowPeer       latency = "label or pod elsewhere -> enforced"
	rowPeerDeny   latency = "label or pod elsewhere -> denied"
	rowCPU        latency = "CPU"
	rowDecoding   latency = "CPU of decoding alone"
)

type latency string

func (l latency) under(rate float64) string {
	unit := "ms"
	if l == rowCPU || l == rowDecoding {
		unit = "% of a core"
	}
	if rate == 0 {
		return string(l) + ", idle, " + unit
	}
	return fmt.Sprintf("%s, %.0f events/s, %s", l, rate, unit)
}

func (l latency) attacked(name string) string {
	if name == "" {
		return string(l) + ", other tenants, ms"
	}
	return string(l) + ", other tenants, under " + name + ", ms"
}

// rowAttackMemory, followed by the name of an attack, is the row with the agent's peak memory until the end of the
// attack.
const rowAttackMemory = "peak RSS, MB, under "

type runs struct {
	Machine struct {
		CPUs     int
		Kernel   string
		Go       string
		IPTables string
	}
	Mix       string
	Reference int // number of pods in the cluster with which other clusters are compared
	Rates     []float64
	Runs      []*run
}

// run has the values of one row for one agent and one cluster: a list for each round.
type run struct {
	Agent  string
	Pods   int
	Row    string
	Values [][]float64
}

func (r *runs) prepare(rates []float64, reference int) {
	r.Machine.CPUs, r.Machine.Go, r.Mix = runtime.NumCPU(), runtime.Version(), *mixFlag
	r.Rates, r.Reference = rates, reference
	var u unix.Utsname
	if err := unix.Uname(&u); err == nil {
		var major, minor int // the rest of the release could name the machine
		_, _ = fmt.Sscanf(unix.ByteSliceToString(u.Release[:]), "%d.%d", &major, &minor)
		r.Machine.Kernel = fmt.Sprintf("%d.%d", major, minor)
	}
}

func (r *runs) json() []byte {
	short := *r
	short.Runs = nil
	head, _ := json.Marshal(short) // never fails for these types
	var b strings.Builder
	b.Write(head[:len(head)-len(`null}`)])
	b.WriteString("[\n")
	for i, x := range r.Runs {
		rounded := *x
		rounded.Values = nil
		for _, list := range x.Values {
			var values []float64
			for _, v := range list {
				digits := math.Pow(10, 4-math.Ceil(math.Log10(max(math.Abs(v), 1e-6))))
				values = append(values, math.Round(v*digits)/digits)
			}
			rounded.Values = append(rounded.Values, values)
		}
		line, _ := json.Marshal(rounded)
		b.Write(line)
		if i < len(r.Runs)-1 {
			b.WriteByte(',')
		}
		b.WriteByte('\n')
	}
	b.WriteString("]}\n")
	return []byte(b.String())
}

func (r *runs) get(agent string, pods int, row string) *run {
	i := slices.IndexFunc(r.Runs, func(x *run) bool { return x.Agent == agent && x.Pods == pods && x.Row == row })
	if i < 0 {
		return nil
	}
	return r.Runs[i]
}

func (r *runs) record(agent string, pods int, row string, values []float64) {
	x := r.get(agent, pods, row)
	if x == nil {
		x = &run{Agent: agent, Pods: pods, Row: row}
		r.Runs = append(r.Runs, x)
	}
	x.Values = append(x.Values, values)
}

func (x *run) all() []float64 { return slices.Concat(x.Values...) }

func (x *run) medians() (all []float64) {
	for _, list := range x.Values {
		all = append(all, estimate.Median(list))
	}
	return all
}

func (r *runs) median(agent string, pods int, row string) float64 {
	return estimate.Median(r.get(agent, pods, row).all())
}

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
