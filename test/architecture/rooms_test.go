package architecture

import (
	"fmt"
	"go/ast"
	"maps"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"testing"
)

// floors orders the rooms, which are the top-level folders. Each inner list is a floor, and the top floor comes first.
// A package may import packages of its own floor and of lower floors.
var floors = [][]string{
	{"plugins"},
	{"agent"},
	{"attachment"},
	{"source"},
	{"agentapi"},
	{"bridge", "overlay", "ipam"},
	{"netfilter"},
	{"policy"},
	{"endpoint"},
	{"conf"},
	{"internal"},
}

// outside has folders with programs that aren't part of weir. No room imports them.
var outside = []string{"scripts", "test"}

// TestRooms: a package imports only packages of its own floor and of lower floors (see floors). Imports between rooms
// (top-level folders) form no cycle. No production code imports code for tests.
func TestRooms(t *testing.T) {
	arrows := imports(production(t, tree(t)))
	complain(t, upward(arrows))
	complain(t, cycles(arrows))
	between := map[string]bool{}
	for _, a := range arrows {
		if from, to := room(a.from), room(a.to); from != to {
			between[from+" -> "+to] = true
		}
	}
	t.Log("imports between rooms:\n" + strings.Join(slices.Sorted(maps.Keys(between)), "\n"))
}

type arrow struct{ at, from, to string }

func imports(code []goFile) (arrows []arrow) {
	for _, f := range code {
		for _, i := range f.ast.Imports {
			if to, own := strings.CutPrefix(imported(i), module); own {
				arrows = append(arrows, arrow{f.at(i), f.pkg(), to})
			}
		}
	}
	return arrows
}

func imported(i *ast.ImportSpec) string {
	path, _ := strconv.Unquote(i.Path.Value)
	return path
}

func upward(arrows []arrow) (wrong []string) {
	floor := map[string]int{}
	for i, rooms := range floors {
		for _, r := range rooms {
			floor[r] = i
		}
	}
	for _, a := range arrows {
		from, known := floor[room(a.from)]
		to, inHouse := floor[room(a.to)]
		switch {
		case forTests(a.to):
			wrong = append(wrong, fmt.Sprintf("%s: %s imports %s, which is for tests", a.at, a.from, a.to))
		case !known && slices.Contains(outside, room(a.from)): // a folder in outside may import any package
		case !known:
			wrong = append(wrong, fmt.Sprintf("%s: %s is on no floor", a.at, room(a.from)))
		case !inHouse:
			wrong = append(wrong, fmt.Sprintf("%s: %s imports %s, which is on no floor", a.at, a.from, a.to))
		case to < from:
			wrong = append(wrong, fmt.Sprintf("%s: %s imports %s, which is on a higher floor", a.at, a.from, a.to))
		}
	}
	return wrong
}

// cycles finds cycles between rooms. Cycles between packages are impossible, because the compiler refuses them.
func cycles(arrows []arrow) (wrong []string) {
	next := map[string]map[string]bool{}
	for _, a := range arrows {
		if from, to := room(a.from), room(a.to); from != to {
			if next[from] == nil {
				next[from] = map[string]bool{}
			}
			next[from][to] = true
		}
	}
	done := map[string]bool{}
	var walk func(way []string)
	walk = func(way []string) {
		at := way[len(way)-1]
		if i := slices.Index(way, at); i < len(way)-1 {
			wrong = append(wrong, "import cycle between rooms: "+strings.Join(way[i:], " -> "))
			return
		}
		if done[at] {
			return
		}
		for _, to := range slices.Sorted(maps.Keys(next[at])) {
			walk(append(slices.Clone(way), to))
		}
		done[at] = true
	}
	for _, r := range slices.Sorted(maps.Keys(next)) {
		walk([]string{r})
	}
	return wrong
}

func TestRoomsFindsArrowsThatPointUp(t *testing.T) {
	arrows := []arrow{
		{"1", "agent", "policy/ruleset"},
		{"2", "bridge", "ipam"},
		{"3", "policy", "policy/ruleset"},
		{"4", "scripts/image", "conf"},
		{"5", "ipam", "bridge"},
		{"6", "conf", "endpoint"},
		{"7", "endpoint", "conf"},
		{"8", "policy", "policy/policytest"},
		{"9", "cellar", "conf"},
		{"10", "agent", "scripts/image"},
	}
	wants(t, upward(arrows), "6: conf imports endpoint, which is on a higher floor",
		"8: policy imports policy/policytest, which is for tests", "9: cellar is on no floor",
		"10: agent imports scripts/image, which is on no floor")
	wants(t, cycles(arrows), "import cycle between rooms: conf -> endpoint -> conf",
		"import cycle between rooms: bridge -> ipam -> bridge")
	wants(t, cycles(arrows[:4]))
	source := "package a\n\nimport (\n\t\"os\"\n\tb \"" + module + "b/c\"\n)\n"
	if got := imports([]goFile{parse(t, file{"a/a.go", []byte(source)})}); !slices.Equal(got,
		[]arrow{{"a/a.go:5", "a", "b/c"}}) {
		t.Errorf("%v", got)
	}
}

// TestInvariants: each package in the table of rooms (docs/architecture.md) lists its invariants in its comment.
func TestInvariants(t *testing.T) {
	files := tree(t)
	i := slices.IndexFunc(files, func(f file) bool { return f.path == "docs/architecture.md" })
	folders := roomsIn(string(files[i].text))
	if len(folders) == 0 {
		t.Fatal("docs/architecture.md has no table of rooms")
	}
	silent, stating := invariants(production(t, files), folders)
	complain(t, silent)
	t.Logf("%d packages list their invariants", stating)
}

// roomsIn returns the folders in the first column of the page's table of rooms.
func roomsIn(page string) (folders []string) {
	_, table, _ := strings.Cut(page, "\n| room |")
	table, _, _ = strings.Cut(table, "\n\n")
	for row := range strings.Lines(table) {
		first, _, _ := strings.Cut(strings.TrimPrefix(row, "|"), "|")
		for i, part := range strings.Split(first, "`") {
			if i%2 == 1 { // between backticks
				folders = append(folders, strings.TrimSuffix(part, "/"))
			}
		}
	}
	return folders
}

var listOfInvariants = regexp.MustCompile(`(?m)^Invariants:\n\n?  - `)

// invariants complains of each package in the folders if the package's comment has no list of invariants. stating is
// the number of packages that have a list.
func invariants(code []goFile, folders []string) (wrong []string, stating int) {
	states := map[string]bool{}
	for _, f := range code {
		if slices.ContainsFunc(folders, func(folder string) bool { return within(f.pkg(), folder) }) {
			states[f.pkg()] = states[f.pkg()] || listOfInvariants.MatchString(f.ast.Doc.Text())
		}
	}
	for _, pkg := range slices.Sorted(maps.Keys(states)) {
		if states[pkg] {
			stating++
		} else {
			wrong = append(wrong, pkg+": no package comment has a list that begins with \"Invariants:\"")
		}
	}
	return wrong, stating
}

func TestInvariantsFindsSilentPackages(t *testing.T) {
	folders := roomsIn("# P\n\n| x |\n|---|\n| `x` |\n\n| room | owns |\n|---|---|\n| `a`, `b/` | `c` |\n\n| `d` |\n")
	if !slices.Equal(folders, []string{"a", "b"}) {
		t.Errorf("%v", folders)
	}
	var code []goFile
	for path, text := range map[string]string{
		"a/a.go": "// Package a.\n//\n// Invariants:\n//   - It holds.\npackage a\n", "a/other.go": "package a\n",
		"b/c/c.go": "// Package c. Invariants: none.\npackage c\n", "b/d/d.go": "package d\n", "c/c.go": "package c\n",
	} {
		code = append(code, parse(t, file{path, []byte(text)}))
	}
	wrong, stating := invariants(code, folders)
	wants(t, wrong, "b/c: no package comment has a list that begins with \"Invariants:\"",
		"b/d: no package comment has a list that begins with \"Invariants:\"")
	if stating != 1 {
		t.Errorf("%d packages", stating)
	}
}
