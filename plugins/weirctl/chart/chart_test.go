package chart_test

import (
	"bytes"
	"context"
	"encoding/json"
	"encoding/xml"
	"errors"
	"io"
	"net/netip"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"
	"unicode"

	networkingv1 "k8s.io/api/networking/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/weir-net/weir/plugins/weirctl/chart"
	"github.com/weir-net/weir/policy"
	"github.com/weir-net/weir/policy/reach"
)

const hostile = "x\x1b[2J\u202e\r\n\"];evil[label=\"" +
	"</script></text><img src=x onerror=document.title='owned'>{{data}}&\\N\\\""

func view(name string) chart.View {
	pod := func(namespace, name, address string) policy.Pod {
		return policy.Pod{
			Namespace: namespace, Name: name, Labels: map[string]string{"app": name, name: name},
			Addresses: []netip.Addr{netip.MustParseAddr(address)},
		}
	}
	np := &networkingv1.NetworkPolicy{ObjectMeta: metav1.ObjectMeta{Namespace: "shop", Name: name}}
	np.Spec.PodSelector.MatchLabels = map[string]string{"app": "db"}
	np.Spec.Ingress = []networkingv1.NetworkPolicyIngressRule{{From: []networkingv1.NetworkPolicyPeer{
		{PodSelector: &metav1.LabelSelector{}}, {IPBlock: &networkingv1.IPBlock{CIDR: "192.0.2.0/24"}},
	}}}
	m := reach.New(policy.State{Objects: policy.Objects{
		Pods: []policy.Pod{
			pod("shop", "db", "10.0.0.2"), pod("shop", name, "10.0.0.3"), pod("other", "spy", "10.0.0.4"),
		},
		Policies: []*networkingv1.NetworkPolicy{np},
	}}, []policy.Service{{Namespace: "shop", Name: name, Selector: map[string]string{"app": "db"}}})
	return chart.View{Matrix: m, Rows: m.Rows(), Title: "title " + name, Policies: []string{name}, Notes: []string{name}}
}

func draw(t *testing.T, f func(io.Writer, chart.View) error, v chart.View) string {
	t.Helper()
	var out bytes.Buffer
	if err := f(&out, v); err != nil {
		t.Fatal(err)
	}
	return out.String()
}

// TestEscapes: control characters, quotes and tags in an object's name are only text in each format.
func TestEscapes(t *testing.T) {
	v := view(hostile)
	change := func(out io.Writer, v chart.View) error {
		return chart.DiffTable(out, chart.Change{View: v, Opened: v.Rows, Applied: reach.Applied{Added: []string{hostile}}})
	}
	for name, f := range map[string]func(io.Writer, chart.View) error{
		"text": chart.Table, "diff": change, "dot": chart.Dot, "svg": chart.SVG, "html": chart.HTML, "json": chart.JSON,
	} {
		for _, r := range draw(t, f, v) {
			// U+202E changes only how text is shown. JSON is for programs, so it keeps U+202E.
			if unicode.IsControl(r) && r != '\n' || r == '\u202e' && name != "json" {
				t.Errorf("%s has %U", name, r)
			}
		}
	}
	for line := range strings.Lines(draw(t, chart.Dot, v)) {
		strings := regexp.MustCompile(`"(\\.|[^"\\])*"`)
		if rest := strings.ReplaceAllString(line, ""); regexp.MustCompile(`evil|"`).MatchString(rest) {
			t.Errorf("a string ends early: %s", line)
		}
	}
	picture := xml.NewDecoder(strings.NewReader(draw(t, chart.SVG, v)))
	for {
		token, err := picture.Token()
		if errors.Is(err, io.EOF) {
			break
		}
		if err != nil {
			t.Fatal(err)
		}
		if e, ok := token.(xml.StartElement); ok && e.Name.Local == "img" {
			t.Error("the picture has the element img")
		}
	}
	page := draw(t, chart.HTML, v)
	for element, want := range map[string]int{"<script": 2, "</script": 2, "<img": 0} {
		if n := strings.Count(page, element); n != want {
			t.Errorf("the page has %s %d times", element, n)
		}
	}
	data := regexp.MustCompile(`(?s)id="data">(.*)</script>`).FindStringSubmatch(page)
	var decoded struct{ Title string }
	if err := json.Unmarshal([]byte(data[1]), &decoded); err != nil || decoded.Title != "title "+chart.OneLine(hostile) {
		t.Errorf("the page's data: %v, %q", err, decoded.Title)
	}
}

// TestDot: in the graph for Graphviz, a frame surrounds each namespace. Each sender and receiver (pods, or a
// network) and each row of the matrix is a node of the graph.
func TestDot(t *testing.T) {
	got := draw(t, chart.Dot, view("web"))
	for _, want := range []string{
		"digraph reach {\n", `label="shop"`, `[label="shop/web"]`, `[label="192.0.2.0/24"; shape=ellipse]`,
		`[shape=plaintext; label="everything"]`,
	} {
		if !strings.Contains(got, want) {
			t.Errorf("%s is missing in\n%s", want, got)
		}
	}
}

// browser returns the path of a Chromium. Without one, the test fails in CI, and is skipped elsewhere.
func browser(t *testing.T) string {
	t.Helper()
	for _, name := range []string{"chromium", "chromium-browser", "google-chrome", "chrome-headless-shell"} {
		if path, err := exec.LookPath(name); err == nil {
			return path
		}
	}
	if os.Getenv("CI") != "" {
		t.Fatal("no Chromium is here: scripts/packages browser installs it")
	}
	t.Skip("no Chromium is here: scripts/packages browser installs it")
	return ""
}

// runBrowser returns what the browser prints. A browser that crashes or hangs is started again, twice at most.
func runBrowser(t *testing.T, chromium string, args ...string) string {
	t.Helper()
	for try := 1; ; try++ {
		dir, err := os.MkdirTemp("", "weir-chart-")
		if err != nil {
			t.Fatal(err)
		}
		// t.TempDir would fail the test if child processes of the browser still wrote into the directory.
		t.Cleanup(func() { _ = os.RemoveAll(dir) })
		ctx, cancel := context.WithTimeout(t.Context(), 3*time.Minute)
		var errors strings.Builder
		cmd := exec.CommandContext(ctx, chromium, append([]string{"--user-data-dir=" + dir}, args...)...)
		cmd.Stderr, cmd.WaitDelay = &errors, 10*time.Second
		out, err := cmd.Output()
		cancel()
		if err == nil {
			return string(out)
		}
		if try == 3 {
			t.Fatalf("%v\n%s", err, &errors)
		}
		t.Logf("the browser is started again: %v\n%s", err, &errors)
	}
}

// TestPage: in a headless Chromium without a network, each view of the page contains the expected texts, and a name
// with HTML tags stays text. If the variable SCREENSHOTS names a directory, the test writes pictures of the views
// there.
func TestPage(t *testing.T) {
	chromium := browser(t)
	dir := t.TempDir()
	for _, tc := range []struct {
		name, pod, view string
		want            []string
		cells           int
	}{
		{"matrix", "web", "view=matrix", []string{
			"shop/web", `aria-label="shop/web → shop/db: everything"`,
			`aria-label="other/spy → shop/db: nothing"`,
		}, 25},
		{"namespace", "web", "view=matrix&namespace=other", []string{"other/spy"}, 0},
		{"port", "web", "view=matrix&port=80&theme=dark", []string{`aria-label="shop/web → shop/db: TCP 80"`}, 25},
		{"list", "web", "view=list&to=shop/db", []string{"192.0.2.0/24</td>", "<td>shop/db</td>"}, 0},
		{"pair", "web", "pair=shop/web>shop/db", []string{
			"shop/web → shop/db</h2>", "<li>no policy isolates it: all is allowed</li>", "<li>isolated by shop/web</li>",
			"<li>shop/web ingress[0] allows everything</li>",
		}, 25},
		{"graph", "web", "view=graph", []string{"shop/web ingress[0]", "192.0.2.0/24"}, 0},
		{"hostile", hostile, "view=matrix", []string{"&lt;img src=x"}, 25},
		{"hostile-list", hostile, "view=list", []string{"&lt;img src=x"}, 0},
		{"hostile-graph", hostile, "view=graph", []string{"&lt;img src=x"}, 0},
	} {
		t.Run(tc.name, func(t *testing.T) {
			file := filepath.Join(dir, tc.name+".html")
			if err := os.WriteFile(file, []byte(draw(t, chart.HTML, view(tc.pod))), 0o600); err != nil {
				t.Fatal(err)
			}
			u := url.URL{Scheme: "file", Path: file, Fragment: tc.view}
			args := []string{
				"--headless", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage",
				"--hide-scrollbars",
				"--proxy-server=127.0.0.1:1", "--virtual-time-budget=5000", "--window-size=1400,900",
			}
			shown, _, _ := strings.Cut(runBrowser(t, chromium, append(args, "--dump-dom", u.String())...), "<script>")
			for _, want := range tc.want {
				if !strings.Contains(shown, want) {
					t.Errorf("%q is missing in\n%s", want, shown)
				}
			}
			if strings.Contains(shown, "<img") || !strings.Contains(shown, "<title>Who can reach whom") {
				t.Errorf("a name became a part of the page:\n%s", shown)
			}
			if n := strings.Count(shown, "<td"); tc.cells > 0 && n != tc.cells {
				t.Errorf("%d cells, want %d", n, tc.cells)
			}
			if to := os.Getenv("SCREENSHOTS"); to != "" {
				picture := "--screenshot=" + filepath.Join(to, tc.name+".png")
				runBrowser(t, chromium, append(args, picture, u.String())...)
			}
		})
	}
}

// TestTableIsBounded: if a table has too many rows, its last line counts the further rows, and says how to get a
// smaller table.
func TestTableIsBounded(t *testing.T) {
	v := view("web")
	v.MaxRows = 1
	lines := slices.Collect(strings.Lines(draw(t, chart.Table, v)))
	last := lines[len(lines)-1]
	if len(lines) != 6 || !strings.Contains(last, "more rows. Narrow the table with -n NAMESPACE") {
		t.Errorf("%d lines, the last of them %q", len(lines), last)
	}
}
