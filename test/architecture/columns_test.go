package architecture

import (
	"bytes"
	"fmt"
	"path"
	"regexp"
	"strings"
	"testing"
	"unicode/utf8"
)

// columns is the largest number of columns that a line may have. A tab counts as one column, as in golangci-lint's lll.
const columns = 120

// TestColumns: no line of Go, shell, Markdown or YAML has more than 120 columns, except lines that the function wide
// leaves out. golangci-lint checks only Go.
func TestColumns(t *testing.T) {
	files := tree(t)
	complain(t, wide(files))
	lines := map[string]int{}
	for _, f := range files {
		lines[kind(f)] += f.lines()
	}
	t.Logf("lines of at most %d columns: %d in Go, %d in shell, %d in Markdown, %d in YAML",
		columns, lines["go"], lines["shell"], lines["markdown"], lines["yaml"])
}

var shebang = regexp.MustCompile(`^(#!.*sh$|# shellcheck shell=)`)

func kind(f file) string {
	first, _, _ := bytes.Cut(f.text, []byte("\n"))
	switch ext := path.Ext(f.path); {
	case ext == ".go":
		return "go"
	case ext == ".md":
		return "markdown"
	case ext == ".yaml" || ext == ".yml":
		return "yaml"
	case shebang.Match(first) || path.Base(f.path) == "Makefile" || strings.HasPrefix(path.Base(f.path), "Dockerfile"):
		return "shell"
	}
	return ""
}

// address matches text that can't be wrapped: a URL, or the target of a link in Markdown.
var address = regexp.MustCompile(`https?://\S+|\]\([^)]*\)`)

// wide returns a complaint for each line that is too long. Tables in Markdown, and addresses in Markdown and YAML, are
// left out.
func wide(files []file) (wrong []string) {
	for _, f := range files {
		k := kind(f)
		if k == "" {
			continue
		}
		for i, line := range strings.Split(string(f.text), "\n") {
			if k == "markdown" && strings.HasPrefix(strings.TrimSpace(line), "|") {
				continue
			}
			if k == "markdown" || k == "yaml" {
				line = address.ReplaceAllString(line, "")
			}
			if n := utf8.RuneCountInString(line); n > columns {
				wrong = append(wrong, fmt.Sprintf("%s:%d: %d columns; at most %d", f.path, i+1, n, columns))
			}
		}
	}
	return wrong
}

func TestColumnsFindsLongLines(t *testing.T) {
	long, fits := strings.Repeat("é", 121), "\t"+strings.Repeat("é", 119)
	url := " https://example.com/" + long
	wants(t, wide([]file{
		{"a.go", []byte("package a\n" + fits + "\n// " + long + "\n")},
		{"docs/a.md", []byte(long + "\n| " + long + " |\n" + fits[21:] + url + "\n[" + long + "](x)\n[x](" + long + ")\n")},
		{"a/script", []byte("#!/usr/bin/env bash\n# " + long + "\n" + fits)},
		{"conf/a.yaml", []byte("# " + long + "\n# " + url)},
		{"a/data", []byte(long)},
		{"Makefile", []byte("# " + long)},
	}), "a.go:3: 124 columns; at most 120", "docs/a.md:1: 121 columns; at most 120",
		"docs/a.md:4: 122 columns; at most 120",
		"a/script:2: 123 columns; at most 120", "conf/a.yaml:1: 123 columns; at most 120",
		"Makefile:1: 123 columns; at most 120")
}
