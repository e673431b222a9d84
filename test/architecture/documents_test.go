package architecture

import (
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
)

func documents(t *testing.T) map[string]string {
	t.Helper()
	pages := map[string]string{}
	for _, pattern := range []string{"*.md", "docs/*.md"} {
		paths, err := filepath.Glob(filepath.Join(root, pattern))
		if err != nil {
			t.Fatal(err)
		}
		for _, p := range paths {
			text, err := os.ReadFile(p)
			if err != nil {
				t.Fatal(err)
			}
			name, _ := filepath.Rel(root, p)
			pages[name] = string(text)
		}
	}
	if len(pages) < 10 {
		t.Fatalf("%d pages: are they still read?", len(pages))
	}
	return pages
}

// TestDocumentedTargets: each target that a page names as "make TARGET" is in the output of "make help".
func TestDocumentedTargets(t *testing.T) {
	help, err := exec.Command("make", "--no-print-directory", "-C", root, "help").Output()
	if err != nil {
		t.Fatal(err)
	}
	for name, text := range documents(t) {
		complain(t, unknownTargets(name, text, string(help)))
	}
}

func unknownTargets(name, text, help string) (wrong []string) {
	command := regexp.MustCompile("(?m)(?:^ {4,}|`)(?:[A-Z]+=\\S+ )*make ([a-z0-9-]+)")
	for _, m := range command.FindAllStringSubmatch(text, -1) {
		if !strings.Contains(help, "make "+m[1]+" ") {
			wrong = append(wrong, fmt.Sprintf("%s names make %s, which make help doesn't list", name, m[1]))
		}
	}
	return wrong
}

// TestDocumentedPaths: each file or folder of the project that a page names exists. Only the changelog may name files
// that no longer exist.
func TestDocumentedPaths(t *testing.T) {
	var paths []string
	for _, f := range everything(t) {
		for p := f; p != "."; p = path.Dir(p) {
			paths = append(paths, p)
		}
	}
	slices.Sort(paths)
	paths = slices.Compact(paths)
	for name, text := range documents(t) {
		if name != "CHANGELOG.md" {
			complain(t, unknownPaths(name, text, paths))
		}
	}
}

// everything returns the paths of all files below the root, except those in .git and bin.
func everything(t *testing.T) (paths []string) {
	t.Helper()
	err := filepath.WalkDir(root, func(p string, d fs.DirEntry, err error) error {
		name, _ := filepath.Rel(root, p)
		if d != nil && d.IsDir() && (name == ".git" || name == "bin") {
			return fs.SkipDir
		}
		if err == nil && !d.IsDir() {
			paths = append(paths, name)
		}
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	return paths
}

// unknownPaths complains of each word in backquotes or code blocks that looks like a path of the project, if no file or
// folder has this path.
func unknownPaths(name, text string, paths []string) (wrong []string) {
	for _, span := range regexp.MustCompile("`[^`\n]+`|(?m)^ {4,}.*$").FindAllString(text, -1) {
		for word := range strings.FieldsSeq(strings.Trim(span, "`")) {
			word = strings.TrimSuffix(strings.TrimPrefix(strings.Trim(word, ",;:()"), "./"), "/")
			top, rest, deep := strings.Cut(word, "/")
			if !deep || strings.ContainsAny(rest, "*{$<…") || strings.Contains(rest, "...") || top == "bin" ||
				!slices.Contains(paths, top) {
				continue
			}
			if !slices.Contains(paths, word) {
				wrong = append(wrong, fmt.Sprintf("%s names %s, which isn't there", name, word))
			}
		}
	}
	return wrong
}

// TestDocumentedRuns: for each "go test ./PACKAGE -run TEST" that a page names, each of the packages has a test that
// matches TEST.
func TestDocumentedRuns(t *testing.T) {
	names := map[string][]string{} // names of tests, by folder
	for _, f := range tree(t) {
		if strings.HasSuffix(f.path, "_test.go") {
			for _, m := range regexp.MustCompile(`(?m)^func (Test\w+)\(`).FindAllSubmatch(f.text, -1) {
				names[path.Dir(f.path)] = append(names[path.Dir(f.path)], string(m[1]))
			}
		}
	}
	for name, text := range documents(t) {
		complain(t, unknownRuns(name, text, names))
	}
}

func unknownRuns(name, text string, tests map[string][]string) (wrong []string) {
	command := regexp.MustCompile(`go test (?:-\w+ (?:\w+ )?)*((?:\./[\w/.]+ )+)-run '?([\w|]+)`)
	for _, m := range command.FindAllStringSubmatch(text, -1) {
		pattern := regexp.MustCompile(m[2])
		for pkg := range strings.FieldsSeq(m[1]) {
			dir := strings.TrimPrefix(pkg, "./")
			below, all := strings.CutSuffix(dir, "...")
			found := false
			for folder, names := range tests {
				if folder == dir || all && strings.HasPrefix(folder, below) {
					found = found || slices.ContainsFunc(names, pattern.MatchString)
				}
			}
			if !found {
				wrong = append(wrong, fmt.Sprintf("%s: go test %s -run %s finds no test", name, pkg, m[2]))
			}
		}
	}
	return wrong
}

// TestLinksOfPages: the target of each link from a page to a file, a folder or a heading exists.
func TestLinksOfPages(t *testing.T) {
	pages := documents(t)
	anchors := map[string][]string{}
	for name, text := range pages {
		anchors[name] = headings(text)
	}
	paths := everything(t)
	for name, text := range pages {
		complain(t, brokenLinks(name, text, anchors, paths))
	}
}

func brokenLinks(name, text string, anchors map[string][]string, paths []string) (wrong []string) {
	for _, m := range regexp.MustCompile(`\]\(([^)\s]+)\)|src="([^"]+)"`).FindAllStringSubmatch(text, -1) {
		link := m[1] + m[2]
		if strings.Contains(link, "://") {
			continue
		}
		to, anchor, _ := strings.Cut(link, "#")
		target := name
		if to != "" {
			target = path.Join(path.Dir(name), to)
		}
		switch {
		case anchor == "" && slices.ContainsFunc(paths, func(p string) bool { return p == target || path.Dir(p) == target }):
		case anchor != "" && slices.Contains(anchors[target], anchor):
		default:
			wrong = append(wrong, fmt.Sprintf("%s links to %s, which isn't there", name, link))
		}
	}
	return wrong
}

// headings returns the anchors that GitHub gives to the page's headings.
func headings(text string) (anchors []string) {
	for _, m := range regexp.MustCompile(`(?m)^#+ (.+)$`).FindAllStringSubmatch(text, -1) {
		words := regexp.MustCompile(`[^\p{L}\p{N} _-]`).ReplaceAllString(strings.ToLower(m[1]), "")
		anchors = append(anchors, strings.ReplaceAll(words, " ", "-"))
	}
	return anchors
}

func TestDocumentsFindWhatIsNotThere(t *testing.T) {
	wants(t, unknownTargets("a.md", "    make test\n    N=3 make tset\n`make demmo`, make it", "make test   every test"),
		"a.md names make tset, which make help doesn't list", "a.md names make demmo, which make help doesn't list")
	wants(t, unknownPaths("a.md", "`policy/base.go`, `policy/basis.go`, `policy/*.go`, `/run/weir`, policy/none",
		[]string{"policy", "policy/base.go"}), "a.md names policy/basis.go, which isn't there")
	tests := map[string][]string{"policy": {"TestGolden"}, "policy/verdict": {"TestRandom"}}
	wants(t, unknownRuns("a.md", "`go test ./policy -run Golden`, `go test -race ./policy -run 'TestGolden/x' -v`,\n"+
		"`go test ./... -run Random`, `go test ./policy ./policy/verdict -run TestRandom`", tests),
		"a.md: go test ./policy -run TestRandom finds no test")
	wants(t,
		brokenLinks("docs/a.md", "[b](b.md#what-isnt-there) [c](../c.md) [d](d.md) [e](#x) [f](https://f) [g](b.md#gone)",
			map[string][]string{"docs/b.md": headings("# B\n\n## What isn't there?\n"), "docs/a.md": nil},
			[]string{"docs/b.md", "c.md"}),
		"docs/a.md links to d.md, which isn't there", "docs/a.md links to #x, which isn't there",
		"docs/a.md links to b.md#gone, which isn't there")
}
