package architecture

import (
	"fmt"
	"go/ast"
	"maps"
	"slices"
	"strconv"
	"strings"
	"testing"
)

// floors are the rooms, from the top down. A package imports only packages of its own floor and of lower floors.
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

// These folders have programs that aren't part of weir. No room imports them.
var outside = []string{"scripts", "test"}

// TestRooms: imports lead to the same floor or down, form no cycle, and never lead from production code to test
// code.
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
		case !known && slices.Contains(outside, room(a.from)): // the folders in outside may import any package
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

// cycles finds cycles between rooms. Within a room, the compiler refuses them.
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
