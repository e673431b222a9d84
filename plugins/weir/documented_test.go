package main

import (
	"io/fs"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
)

const documentedWindows = "../../docs/security-windows.md"

// TestDocumentedTests: each test that docs/security-windows.md names exists in plugins/weir, or in the package whose
// path follows the test's name in brackets.
func TestDocumentedTests(t *testing.T) {
	const root = "../.."
	packages := map[string][]string{} // the packages that have a test, by the test's name
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
	text, err := os.ReadFile(documentedWindows)
	if err != nil {
		t.Fatal(err)
	}
	// A package's path comes in brackets after the names of its tests.
	named := regexp.MustCompile("((?:`Test\\w+`(?:,\\s+|\\s+and\\s+)?)+)(?:\\s*\\(([\\w/, ]+)\\))?")
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

// TestDocumentedWindows: each window of docs/security-windows.md has the same four parts and a row in the index.
func TestDocumentedWindows(t *testing.T) {
	text, err := os.ReadFile(documentedWindows)
	if err != nil {
		t.Fatal(err)
	}
	page := string(text)
	var windows []string
	for _, section := range strings.Split(page, "\n### ")[1:] {
		title, body, _ := strings.Cut(section, "\n")
		body, _, _ = strings.Cut(body, "\n## ")
		windows = append(windows, title)
		at := 0
		for _, part := range []string{"What can happen", "How long", "Why", "Test"} {
			i := strings.Index(body[at:], "\n- **"+part+":** ")
			if i < 0 {
				t.Errorf("the window %q has no part %q, or not in the place that it has in others", title, part)
				continue
			}
			at += i
		}
	}
	if len(windows) < 70 {
		t.Errorf("the document has %d windows: are they still read?", len(windows))
	}
	row := regexp.MustCompile(`(?m)^\| \[(.+)\]\(#(.+)\) \| [^|]+ \| (?:yes|no)\b[^|]*\|$`)
	var rows []string
	for _, m := range row.FindAllStringSubmatch(page, -1) {
		rows = append(rows, m[1])
		if anchor := anchorOf(m[1]); m[2] != anchor {
			t.Errorf("the index links %q to #%s; its anchor is #%s", m[1], m[2], anchor)
		}
	}
	if !slices.Equal(rows, windows) {
		for _, w := range windows {
			if !slices.Contains(rows, w) {
				t.Errorf("the index has no row for %q", w)
			}
		}
		t.Errorf("the index has %d rows, and the page %d windows; they must be the same, in the same order", len(rows),
			len(windows))
	}
}

func anchorOf(heading string) string {
	bare := regexp.MustCompile(`[^\w\- ]`).ReplaceAllString(strings.ToLower(heading), "")
	return strings.ReplaceAll(bare, " ", "-")
}

// TestDocumentedMessages: the code has all parts of each message that docs/troubleshooting.md or docs/metrics.md
// explains.
func TestDocumentedMessages(t *testing.T) {
	const root = "../.."
	var code strings.Builder
	err := filepath.WalkDir(root, func(path string, _ fs.DirEntry, err error) error {
		if err != nil || !strings.HasSuffix(path, ".go") || strings.HasSuffix(path, "_test.go") {
			return err
		}
		text, err := os.ReadFile(path)
		code.Write(text)
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	joined := regexp.MustCompile(`" ?\+\s*"`).ReplaceAllString(code.String(), "") // joins strings of several lines
	table := regexp.MustCompile(`(?m)^\| (?:message|error) \|.*\n\|---.*\n((?:\|.*\n)+)`)
	logged := regexp.MustCompile(`msg="([^"]+)"`)
	found := 0
	for _, page := range []string{"troubleshooting.md", "metrics.md"} {
		text, err := os.ReadFile(root + "/docs/" + page)
		if err != nil {
			t.Fatal(err)
		}
		var messages []string
		for _, m := range table.FindAllStringSubmatch(string(text), -1) {
			for _, row := range strings.Split(strings.TrimSpace(m[1]), "\n") {
				cell, _, _ := strings.Cut(strings.TrimPrefix(row, "| "), " |")
				messages = append(messages, cell)
			}
		}
		for _, m := range logged.FindAllStringSubmatch(string(text), -1) {
			messages = append(messages, m[1])
		}
		for _, message := range messages {
			if message == "`cni plugin not initialized`" { // this message is containerd's
				continue
			}
			// In a documented message, an ellipsis stands for text that varies. A colon precedes a wrapped error.
			for _, part := range regexp.MustCompile("…|; |: ").Split(strings.Trim(message, "`"), -1) {
				if part = strings.Trim(part, " :"); len(part) < 6 {
					continue
				}
				found++
				if !strings.Contains(joined, part) {
					t.Errorf("docs/%s explains %q, and the code has no %q", page, message, part)
				}
			}
		}
	}
	if found < 45 {
		t.Errorf("the documents explain %d parts of messages: are they still read?", found)
	}
}
