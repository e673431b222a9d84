package architecture

import (
	"cmp"
	"fmt"
	"go/ast"
	"maps"
	"slices"
	"strings"
	"testing"
)

const (
	roomShare     = 35 // per cent of the lines of production code
	packageShare  = 15
	fileLines     = 400
	functionLines = 80
	parameters    = 6
)

// TestSizes: no room, package, file or function of production code exceeds its limit (roomShare, packageShare,
// fileLines, functionLines, parameters).
func TestSizes(t *testing.T) {
	code := production(t, tree(t))
	rooms, packages := shares(code, func(f goFile) string { return room(f.pkg()) }), shares(code, goFile.pkg)
	complain(t, above(rooms, roomShare))
	complain(t, above(packages, packageShare))
	complain(t, longFiles(code))
	complain(t, longFunctions(code))
	t.Log("per cent of the production code by room:\n" + table(rooms))
	t.Log("per cent of the production code by package:\n" + table(packages))
	longest := slices.MaxFunc(code, func(a, b goFile) int { return cmp.Compare(a.lines(), b.lines()) })
	t.Logf("longest file: %s, %d lines of %d", longest.path, longest.lines(), fileLines)
	where, lines, most := "", 0, 0
	for _, f := range code {
		for _, fn := range functions(f) {
			most = max(most, fn.parameters)
			if fn.lines > lines {
				where, lines = fn.at+" "+fn.name, fn.lines
			}
		}
	}
	t.Logf("longest function: %s, %d lines of %d; most parameters: %d of %d", where, lines, functionLines, most,
		parameters)
}

func shares(code []goFile, group func(goFile) string) map[string]float64 {
	of, all := map[string]float64{}, 0.0
	for _, f := range code {
		of[group(f)] += float64(f.lines())
		all += float64(f.lines())
	}
	for g := range of {
		of[g] *= 100 / all
	}
	return of
}

func above(shares map[string]float64, limit float64) (wrong []string) {
	for _, g := range slices.Sorted(maps.Keys(shares)) {
		if shares[g] > limit {
			wrong = append(wrong, fmt.Sprintf("%s: %.1f %% of the production code; at most %.0f", g, shares[g], limit))
		}
	}
	return wrong
}

func table(shares map[string]float64) string {
	var b strings.Builder
	largest := func(a, b string) int { return cmp.Compare(shares[b], shares[a]) }
	for _, g := range slices.SortedFunc(maps.Keys(shares), largest) {
		fmt.Fprintf(&b, "%6.1f  %s\n", shares[g], g)
	}
	return b.String()
}

func longFiles(code []goFile) (wrong []string) {
	for _, f := range code {
		if f.lines() > fileLines {
			wrong = append(wrong, fmt.Sprintf("%s: %d lines; at most %d", f.path, f.lines(), fileLines))
		}
	}
	return wrong
}

func longFunctions(code []goFile) (wrong []string) {
	for _, f := range code {
		for _, fn := range functions(f) {
			if fn.lines > functionLines {
				wrong = append(wrong, fmt.Sprintf("%s: %s has %d lines; at most %d", fn.at, fn.name, fn.lines, functionLines))
			}
			if fn.parameters > parameters {
				wrong = append(wrong,
					fmt.Sprintf("%s: %s has %d parameters; at most %d", fn.at, fn.name, fn.parameters, parameters))
			}
		}
	}
	return wrong
}

type function struct {
	at, name          string
	lines, parameters int
}

func functions(f goFile) (fns []function) {
	ast.Inspect(f.ast, func(n ast.Node) bool {
		fn := function{name: "a function literal"}
		var typ *ast.FuncType
		switch n := n.(type) {
		case *ast.FuncDecl:
			fn.name, typ = n.Name.Name, n.Type
		case *ast.FuncLit:
			typ = n.Type
		default:
			return true
		}
		fn.at, fn.parameters = f.at(n), typ.Params.NumFields()
		fn.lines = f.fset.Position(n.End()).Line - f.fset.Position(typ.Pos()).Line + 1
		fns = append(fns, fn)
		return true
	})
	return fns
}

func TestSizesFindsWhatIsTooLarge(t *testing.T) {
	body := func(lines int) string { return strings.Repeat("\n", lines-1) }
	code := []goFile{
		parse(t, file{"a/a.go", []byte("package a\n\nfunc long() {" + body(81) + "}\n\nfunc fits() {" + body(80) + "}\n")}),
		parse(t, file{"a/b/b.go", []byte("package b\n\nfunc (x T) f(a, b, c int, d, e, f string, g bool) {}\n" + body(398))}),
		parse(t, file{"c/c.go", []byte("package c\n\nvar f = func(a, b, c, d, e, f, g int) {}\n" + body(16))}),
	}
	wants(t, longFiles(code))
	wants(t, longFiles([]goFile{parse(t, file{"a/a.go", []byte("package a\n" + body(401))})}),
		"a/a.go: 401 lines; at most 400")
	wants(t, longFunctions(code), "a/a.go:3: long has 81 lines; at most 80",
		"a/b/b.go:3: f has 7 parameters; at most 6", "c/c.go:3: a function literal has 7 parameters; at most 6")
	wants(t, above(shares(code, func(f goFile) string { return room(f.pkg()) }), 90),
		"a: 96.9 % of the production code; at most 90")
	wants(t, above(shares(code, goFile.pkg), 60), "a/b: 68.7 % of the production code; at most 60")
}
