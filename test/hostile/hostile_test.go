// Package hostile makes a pod, E, send every kind of frame and packet that it can: first on a bridge without weir, and
// then on a bridge with weir. A policy denies E all ingress and egress. E has CAP_NET_RAW, as container runtimes give
// it by default.
//
// The run without weir is the control. It has the same bridge and veth pairs, but no guard and no rules, and of weir's
// sysctls only those for forwarding. For each class of frames, the control counts three results:
//
//   - A frame is answered if E, another pod or the host outside receives a packet because of it.
//   - A frame reaches IP if the node accepts or forwards it, or keeps it as a fragment.
//   - Any other frame is dropped by the kernel even without weir.
//
// With weir, a frame may enter the IP stack only if it has E's own MAC and address as the sender. Such a frame may be
// answered only if frame.allowed has a reason. No frame may change what the node or another pod knows of other hosts.
package hostile

import (
	"fmt"
	"maps"
	"os"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/weir-net/weir/test/nodetest"
)

func TestMain(m *testing.M) { nodetest.MainAsShipped(m) }

func TestHostileIPv4(t *testing.T) { hostile(t, families{four: true}) }

func TestHostileIPv6(t *testing.T) { hostile(t, families{six: true}) }

func TestHostileDual(t *testing.T) { hostile(t, families{four: true, six: true}) }

func hostile(t *testing.T, fam families) {
	if !nodetest.IsolatedWithWeir(t) {
		return
	}
	table := map[string]*row{}
	for rp := range 3 {
		t.Run(fmt.Sprintf("control, rp_filter=%d", rp), func(t *testing.T) {
			w := control(t, fam, fmt.Sprintf("c%d-", rp))
			sum := count{}
			defer func() {
				if sum.answered < 100 || sum.reached < 100 {
					t.Errorf("%d frames are answered, and %d reach IP: the control shows nothing", sum.answered, sum.reached)
				}
			}()
			for class, r := range attack(t, w, rp, false) {
				sum.answered, sum.reached = sum.answered+r.count.answered, sum.reached+r.count.reached
				if table[class] == nil {
					table[class] = r
				}
				table[class].controls = append(table[class].controls, r.count)
			}
		})
	}
	w := guarded(t, fam)
	for rp := range 3 {
		t.Run(fmt.Sprintf("weir, rp_filter=%d", rp), func(t *testing.T) { attack(t, w, rp, true) })
	}
	report(t, table, fam == families{four: true, six: true})
}

type count struct{ answered, reached, dropped int }

type row struct {
	order    int
	frames   int
	count    count
	dropped  []string // names of the dropped frames
	controls []count  // one for each value of rp_filter
}

func attack(t *testing.T, w *world, rp int, strict bool) map[string]*row {
	t.Helper()
	w.reversePath(t, rp)
	flows := w.converse(t)
	frames := everything(t, w, flows)
	o, end := observe(t, w, frames)
	s := newSender(t, w)
	changes := map[string][]string{}
	before := o.state()
	for start := 0; start < len(frames); {
		class := frames[start].class
		stop := start
		for stop < len(frames) && frames[stop].class == class {
			s.sendOne(t, o, frames[stop])
			stop++
		}
		if after := o.state(); len(news(before, after)) > 0 {
			changes[class] = news(before, after)
			before = after
		}
		start = stop
	}
	time.Sleep(1500 * time.Millisecond) // until incomplete fragments have timed out, which takes a second
	o.collect(200 * time.Millisecond)
	o.record(over, "")
	end()
	return classify(t, frames, o, changes, strict)
}

// sendOne sends the frame. After every 20th frame, it collects the effects, so that no buffer overflows.
func (s *sender) sendOne(t *testing.T, o *observer, f *frame) {
	t.Helper()
	s.send(f)
	if s.sent++; s.sent%20 == 0 {
		o.collect(0)
	}
}

func classify(t *testing.T, frames []*frame, o *observer, changes map[string][]string, strict bool) map[string]*row {
	t.Helper()
	table := map[string]*row{}
	for i, f := range frames {
		r := table[f.class]
		if r == nil {
			r = &row{order: i}
			table[f.class] = r
		}
		r.frames++
		entered, reached, answered := false, false, false
		for what := range o.seen[i] {
			switch what {
			case "enters IP":
				entered = true
			case "taken by the node", "forwarded", "taken as ARP":
				reached = true
			default:
				answered = true
			}
		}
		reached = reached || entered && f.waits
		switch {
		case answered:
			r.count.answered++
		case reached:
			r.count.reached++
		default:
			r.count.dropped++
			r.dropped = append(r.dropped, f.name)
		}
		bad := !f.own && (entered || reached || answered) || f.own && f.allowed == "" && answered
		if strict && bad {
			t.Errorf("%s: %s: %s", f.class, f.name, strings.Join(slices.Sorted(maps.Keys(o.seen[i])), ", "))
			for _, data := range f.data {
				t.Logf("the frame: %x", data)
			}
		}
	}
	for class, lines := range changes {
		if strict {
			t.Errorf("%s: what is known has changed:\n\t%s", class, strings.Join(lines, "\n\t"))
		} else {
			t.Logf("%s: what is known has changed:\n\t%s", class, strings.Join(lines, "\n\t"))
		}
	}
	for packet, times := range o.others {
		if strict {
			t.Errorf("%d frames came to E that answer to none of its own:\n%s", times, packet)
		}
	}
	return table
}

const linkLocalClass = "to 01:80:c2:00:00:"

// report compares the results with docs/hostile-pod.md. The page must have each class. If documentedFrames is true, the
// page's numbers of frames must also be right.
func report(t *testing.T, table map[string]*row, documentedFrames bool) {
	t.Helper()
	documented, err := os.ReadFile("../../docs/hostile-pod.md")
	if err != nil {
		t.Error(err)
	}
	classes := slices.SortedFunc(maps.Keys(table), func(a, b string) int { return table[a].order - table[b].order })
	var text strings.Builder
	total := 0
	for _, class := range classes {
		r := table[class]
		total += r.frames
		begin := fmt.Sprintf("| %s |", class)
		fmt.Fprintf(&text, "%s %d |", begin, r.frames)
		for _, c := range r.controls {
			fmt.Fprintf(&text, " %d, %d, %d |", c.answered, c.reached, c.dropped)
		}
		text.WriteByte('\n')
		if n := 0; strings.HasPrefix(class, linkLocalClass) {
			if _, err := fmt.Sscanf(class, linkLocalClass+"%x", &n); err == nil && n >= 2 {
				begin = "| to each from 01:80:c2:00:00:02 to :0f |" // the page has one row for all of these
			}
		}
		if documentedFrames {
			begin += fmt.Sprintf(" %d |", r.frames)
		}
		if !strings.Contains(string(documented), begin) {
			t.Errorf("docs/hostile-pod.md has no row for %q with %d frames", class, r.frames)
		}
	}
	if sum := fmt.Sprintf("%d,%03d frames", total/1000, total%1000); documentedFrames &&
		!strings.Contains(string(documented), sum) {
		t.Errorf("docs/hostile-pod.md doesn't say that there are %s", sum)
	}
	t.Logf(
		"class, frames, and of these answered, reaching IP, and dropped by the kernel anyway, with rp_filter 0, 1 and 2:\n%s",
		text.String(),
	)
	for _, class := range classes {
		if dropped := table[class].dropped; len(dropped) > 0 {
			t.Logf("dropped by the kernel anyway, with rp_filter 0: %s: %s", class, strings.Join(dropped, "; "))
		}
	}
}
