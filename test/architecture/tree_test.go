// Package architecture tests what the project promises about its own structure: which rooms a room imports, which
// packages are linked, and how long files, functions and lines are. It also tests that each target and each file that a
// document names exists. To print the sizes and the imports: go test ./test/architecture -v
//
// Each rule is a function that returns complaints. A second test calls this function with input that breaks the rule.
package architecture

import (
	"bytes"
	"go/ast"
	"go/parser"
	"go/token"
	"io/fs"
	"os"
	"path"
	"path/filepath"
	"slices"
	"strings"
	"testing"
)

const (
	root   = "../.."
	module = "github.com/weir-net/weir/"
)

// testOnly has folders with code for tests in files that aren't named _test.go.
var testOnly = []string{"test", "internal/packettest", "policy/policytest"}

type file struct {
	path string
	text []byte
}

type goFile struct {
	file
	fset *token.FileSet
	ast  *ast.File
}

func (f goFile) pkg() string { return path.Dir(f.path) }

func (f file) lines() int { return bytes.Count(f.text, []byte("\n")) }

func (f goFile) at(n ast.Node) string { return f.path + ":" + f.line(n.Pos()) }

func (f goFile) line(p token.Pos) string {
	_, line, _ := strings.Cut(f.fset.Position(p).String(), ":")
	line, _, _ = strings.Cut(line, ":")
	return line
}

// tree returns the project's files, without .git, bin, testdata, go.sum, LICENSE and pictures.
func tree(t *testing.T) []file {
	t.Helper()
	var files []file
	err := filepath.WalkDir(root, func(name string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		name, err = filepath.Rel(root, name)
		switch {
		case err != nil:
			return err
		case d.IsDir() && (name == ".git" || name == "bin" || d.Name() == "testdata"):
			return filepath.SkipDir
		case !d.Type().IsRegular() || d.Name() == "go.sum" || d.Name() == "LICENSE" || path.Ext(name) == ".svg":
			return nil
		}
		text, err := os.ReadFile(filepath.Join(root, name))
		files = append(files, file{name, text})
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	return files
}

func production(t *testing.T, files []file) []goFile {
	t.Helper()
	var code []goFile
	for _, f := range files {
		if path.Ext(f.path) == ".go" && !strings.HasSuffix(f.path, "_test.go") && !forTests(path.Dir(f.path)) {
			code = append(code, parse(t, f))
		}
	}
	return code
}

func parse(t *testing.T, f file) goFile {
	t.Helper()
	fset := token.NewFileSet()
	tree, err := parser.ParseFile(fset, f.path, f.text, parser.ParseComments|parser.SkipObjectResolution)
	if err != nil {
		t.Fatal(err)
	}
	return goFile{f, fset, tree}
}

func forTests(pkg string) bool {
	return slices.ContainsFunc(testOnly, func(folder string) bool { return within(pkg, folder) })
}

// within reports whether the package is the folder or below it. policy/policytest is within policy, and policytest
// isn't.
func within(pkg, folder string) bool { return pkg == folder || strings.HasPrefix(pkg, folder+"/") }

func room(pkg string) string {
	top, _, _ := strings.Cut(pkg, "/")
	return top
}

func complain(t *testing.T, wrong []string) {
	t.Helper()
	for _, w := range wrong {
		t.Error(w)
	}
}

func wants(t *testing.T, got []string, want ...string) {
	t.Helper()
	if !slices.Equal(got, want) {
		t.Errorf("the rule complains of\n\t%s\nand not of\n\t%s", strings.Join(got, "\n\t"), strings.Join(want, "\n\t"))
	}
}
