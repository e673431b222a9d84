package main

import (
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
)

// TestDocumentedTests: each test that docs/security-windows.md names is there, in the package that it says.
func TestDocumentedTests(t *testing.T) {
	const root = "../.."
	packages := map[string][]string{} // by test
	err := filepath.WalkDir(root, func(path string, _ fs.DirEntry, err error) error {
		if err != nil || !strings.HasSuffix(path, "_test.go") {
			return err
		}
		text, err := os.ReadFile(path)
		for _, m := range regexp.MustCompile(`(?m)^func (Test\w+)\(`).FindAllStringSubmatch(string(text), -1) {
			dir, _ := filepath.Rel(root, filepath.Dir(path))
			packages[m[1]] = append(packages[m[1]], dir)
		}
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	text, err := os.ReadFile(root + "/docs/security-windows.md")
	if err != nil {
		t.Fatal(err)
	}
	// Names stand one after the other, and behind the last of a package its path, in brackets.
	named := regexp.MustCompile("((?:`Test\\w+`(?:, | and )?)+)(?:\\s*\\(([\\w/, ]+)\\))?")
	found := 0
	for _, m := range named.FindAllStringSubmatch(string(text), -1) {
		for _, name := range regexp.MustCompile(`Test\w+`).FindAllString(m[1], -1) {
			found++
			in := append(strings.Split(m[2], ", "), "plugins/weir")
			if !slices.ContainsFunc(packages[name], func(p string) bool { return slices.Contains(in, p) }) {
				t.Errorf("the document names the test %s, of %q; it is in %q", name, m[2], packages[name])
			}
		}
	}
	if found < 100 {
		t.Errorf("the document names %d tests: are they still read?", found)
	}
}

// TestDocumentedTargets: each "make TARGET" that a document or a script names is one that make help lists.
func TestDocumentedTargets(t *testing.T) {
	const root = "../.."
	help, err := exec.Command("make", "--no-print-directory", "-C", root, "help").Output()
	if err != nil {
		t.Fatal(err)
	}
	documents, err := filepath.Glob(root + "/docs/*.md")
	if err != nil {
		t.Fatal(err)
	}
	found := 0
	for _, path := range append(documents, root+"/README.md", root+"/CONTRIBUTING.md") {
		text, err := os.ReadFile(path)
		if err != nil {
			t.Fatal(err)
		}
		// As a command: in a block, or in backquotes, alone or behind settings of variables.
		for _, m := range regexp.MustCompile("(?m)(?:^    |`)(?:[A-Z]+=\\S+ )*make ([a-z0-9-]+)").FindAllStringSubmatch(string(text), -1) {
			found++
			if !strings.Contains(string(help), "make "+m[1]+" ") {
				t.Errorf("%s names make %s, which make help doesn't list:\n%s", filepath.Base(path), m[1], help)
			}
		}
	}
	if found < 20 {
		t.Errorf("the documents name %d targets: are they still read?", found)
	}
}
