package scale_test

import (
	"encoding/xml"
	"errors"
	"fmt"
	"io"
	"math"
	"strings"
	"testing"

	"github.com/weir-net/weir/test/estimate"
)

// chart is a picture with curves over the size of the cluster. Both axes are logarithmic.
type chart struct {
	name        string // name of the picture's file, without .svg
	title, unit string
	curves      []curve
}

type curve struct {
	name   string
	dashed bool
	points [][2]float64 // pairs of a number of pods and a value
}

func charts(r *runs) []chart {
	rate := 0.0
	if len(r.Rates) > 0 {
		rate = r.Rates[0]
	}
	return []chart{
		{
			"scale-latency", "Time of an ADD, and from a change until it is enforced, median", "ms",
			r.curves(rowADD.under(0), rowADD.under(rate),
				rowPolicy.under(0), rowPolicy.under(rate), rowPeer.under(rate)),
		},
		{"scale-cpu", "CPU time of the agent", "% of a core", r.curves(rowCPU.under(rate), rowDecoding.under(rate), rowToggle,
			rowIdle)},
		{"scale-memory", "Memory of the agent", "MB", r.curves(rowPeak, rowRSS, rowAnonymous)},
		{"scale-start", "Start of the agent", "s", r.curves(rowReady, rowAfterLists)},
	}
}

func (r *runs) curves(rows ...string) (all []curve) {
	sizes, agents := r.columns()
	for _, a := range agents {
		for i, row := range rows {
			c := curve{name: row, dashed: a == "before"}
			if i > 0 && row == rows[i-1] {
				continue
			}
			if len(agents) > 1 {
				c.name += " (" + a + ")"
			}
			for _, s := range sizes {
				if x := r.get(a, s, row); x != nil {
					if m := estimate.Median(x.all()); m > 0 {
						c.points = append(c.points, [2]float64{float64(s), m})
					}
				}
			}
			all = append(all, c)
		}
	}
	return all
}

const (
	chartWidth, chartHeight        = 900, 420
	plotLeft, plotRight            = 70, 480
	plotTop, plotBottom            = 50, 370
	legendLeft, legendLine, labels = 510, 24, 18
)

// These colours can be told apart even by people who can't distinguish red and green (Okabe and Ito).
var colours = []string{"#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9"}

func (c chart) svg() string {
	var b strings.Builder
	fmt.Fprintf(&b, `<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 %d %d" font-family="sans-serif" font-size="13">
<style>text{fill:#24292f}.line{stroke:#d0d7de}
@media(prefers-color-scheme:dark){text{fill:#e6edf3}.line{stroke:#484f58}}</style>
`, chartWidth, chartHeight)
	fmt.Fprintf(&b, `<text x="%d" y="28" font-size="16">%s, %s</text>`+"\n", plotLeft, escaped(c.title), escaped(c.unit))
	x, y := c.axis(0, plotLeft, plotRight), c.axis(1, plotBottom, plotTop)
	for _, p := range x.powers() {
		fmt.Fprintf(&b, `<line class="line" x1="%.1f" x2="%.1f" y1="%d" y2="%d"/>`, x.at(p), x.at(p), plotTop, plotBottom)
		fmt.Fprintf(&b, `<text x="%.1f" y="%d" text-anchor="middle">%s</text>`+"\n", x.at(p), plotBottom+labels, short(p))
	}
	for _, p := range y.powers() {
		fmt.Fprintf(&b, `<line class="line" x1="%d" x2="%d" y1="%.1f" y2="%.1f"/>`, plotLeft, plotRight, y.at(p), y.at(p))
		fmt.Fprintf(&b, `<text x="%d" y="%.1f" text-anchor="end">%s</text>`+"\n", plotLeft-8, y.at(p)+4, short(p))
	}
	fmt.Fprintf(&b, `<text x="%d" y="%d" text-anchor="middle">pods in the cluster</text>`+"\n", (plotLeft+plotRight)/2,
		plotBottom+2*labels)
	for i, curve := range c.curves {
		style := fmt.Sprintf(`stroke="%s" stroke-width="2"`, colours[i%len(colours)])
		if curve.dashed {
			style += ` stroke-dasharray="6 4"`
		}
		var points []string
		for _, p := range curve.points {
			points = append(points, fmt.Sprintf("%.1f,%.1f", x.at(p[0]), y.at(p[1])))
			fmt.Fprintf(&b, `<circle cx="%.1f" cy="%.1f" r="3.5" fill="%s"/>`, x.at(p[0]), y.at(p[1]),
				colours[i%len(colours)])
		}
		fmt.Fprintf(&b, `<polyline points="%s" fill="none" %s/>`+"\n", strings.Join(points, " "), style)
		at := plotTop + legendLine*i
		fmt.Fprintf(&b, `<line x1="%d" x2="%d" y1="%d" y2="%d" %s/>`, legendLeft, legendLeft+26, at, at, style)
		name := escaped(strings.TrimSuffix(curve.name, ", "+c.unit))
		fmt.Fprintf(&b, `<text x="%d" y="%d">%s</text>`+"\n", legendLeft+34, at+4, name)
	}
	b.WriteString("</svg>\n")
	return b.String()
}

type axis struct {
	low, high float64 // powers of ten
	from, to  float64 // positions in the picture
}

func (c chart) axis(dimension int, from, to float64) axis {
	low, high := math.Inf(1), math.Inf(-1)
	for _, curve := range c.curves {
		for _, p := range curve.points {
			low, high = min(low, math.Floor(math.Log10(p[dimension]))), max(high, math.Ceil(math.Log10(p[dimension])))
		}
	}
	if low > high { // there are no points
		low, high = 0, 1
	}
	return axis{low, max(high, low+1), from, to}
}

func (a axis) at(v float64) float64 {
	return a.from + (math.Log10(v)-a.low)/(a.high-a.low)*(a.to-a.from)
}

func (a axis) powers() (all []float64) {
	for p := a.low; p <= a.high; p++ {
		all = append(all, math.Pow(10, p))
	}
	return all
}

func short(v float64) string {
	if v >= 1 {
		return thousands(int(math.Round(v)))
	}
	return fmt.Sprintf("%g", v)
}

func escaped(s string) string {
	return strings.NewReplacer("&", "&amp;", "<", "&lt;", ">", "&gt;").Replace(s)
}

// TestChart: a chart is drawn as valid XML with all its curves, even if a curve has no points.
func TestChart(t *testing.T) {
	c := chart{"name", "Title", "ms", []curve{
		{"a -> b", false, [][2]float64{{100, 0.5}, {100000, 2000}}}, {"empty", true, nil},
	}}
	text := c.svg()
	for d := xml.NewDecoder(strings.NewReader(text)); ; {
		if _, err := d.Token(); errors.Is(err, io.EOF) {
			break
		} else if err != nil {
			t.Fatalf("%v\n%s", err, text)
		}
	}
	if n := strings.Count(text, "<polyline"); n != 2 {
		t.Errorf("%d curves", n)
	}
	y := c.axis(1, plotBottom, plotTop)
	if y.at(0.1) != plotBottom || y.at(10000) != plotTop {
		t.Errorf("%+v", y)
	}
	if !strings.Contains((chart{}).svg(), "</svg>") {
		t.Error("a picture without curves isn't drawn")
	}
}
