package architecture

import (
	"fmt"
	"go/ast"
	"go/token"
	"path"
	"regexp"
	"strings"
	"testing"
)

// backend is the only folder whose production code may use the words that itsWords matches.
const backend = "netfilter/iptables"

var itsWords = regexp.MustCompile(`-j |--match-set|mangle`)

// TestWordsOfIptables: only the backend iptables and tests have iptables' words in strings, names and the prose of
// comments. All code may have these words in the commands after a comment's line "Equivalent to:".
func TestWordsOfIptables(t *testing.T) {
	var code []goFile
	for _, f := range tree(t) {
		if path.Ext(f.path) == ".go" && !strings.HasSuffix(f.path, "_test.go") {
			code = append(code, parse(t, f))
		}
	}
	complain(t, iptablesWords(code))
}

func iptablesWords(code []goFile) (wrong []string) {
	for _, f := range code {
		if within(f.pkg(), backend) {
			continue
		}
		ast.Inspect(f.ast, func(n ast.Node) bool {
			text := ""
			switch n := n.(type) {
			case *ast.BasicLit:
				if n.Kind == token.STRING {
					text = n.Value
				}
			case *ast.Ident:
				text = n.Name
			}
			if text != "" {
				wrong = append(wrong, itsWord(f.at(n), text)...)
			}
			return true
		})
		for _, comment := range f.ast.Comments {
			prose := true
			for _, line := range comment.List {
				prose = prose && !strings.HasPrefix(line.Text, "// Equivalent to")
				if prose {
					wrong = append(wrong, itsWord(f.at(line), line.Text)...)
				}
			}
		}
	}
	return wrong
}

func itsWord(at, text string) []string {
	w := itsWords.FindString(text)
	if w == "" {
		return nil
	}
	return []string{fmt.Sprintf("%s: %q is a word of iptables', in a package beside %s", at, w, backend)}
}

func TestWordsOfIptablesFindsThem(t *testing.T) {
	source := []byte(`package a

// a is a rule.
//
// Equivalent to: iptables -t mangle -A WEIR -j DROP, and
// the same in table mangle
var (
	a, mangled = "-A x -j y", "" // of table mangle
	c          = "--matches"
	d          = "" +
		"--match-set x"
)
`)
	wants(t, iptablesWords([]goFile{
		parse(t, file{"a/a.go", source}), parse(t, file{backend + "/a.go", source}),
	}), `a/a.go:8: "mangle" is a word of iptables', in a package beside netfilter/iptables`,
		`a/a.go:8: "-j " is a word of iptables', in a package beside netfilter/iptables`,
		`a/a.go:11: "--match-set" is a word of iptables', in a package beside netfilter/iptables`,
		`a/a.go:8: "mangle" is a word of iptables', in a package beside netfilter/iptables`)
}
