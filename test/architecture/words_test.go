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

// TestWordsOfIptables: only the backend iptables and tests have iptables' words in strings and names. All code may have
// these words in comments.
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
			if w := itsWords.FindString(text); w != "" {
				wrong = append(wrong, fmt.Sprintf("%s: %q is a word of iptables', in a package beside %s", f.at(n), w, backend))
			}
			return true
		})
	}
	return wrong
}

func TestWordsOfIptablesFindsThem(t *testing.T) {
	source := []byte(`package a

// iptables -t mangle -A WEIR -j DROP
var (
	a, mangled = "-A x -j y", "" // -t mangle
	c          = "--matches"
	d          = "" +
		"--match-set x"
)
`)
	wants(t, iptablesWords([]goFile{
		parse(t, file{"a/a.go", source}), parse(t, file{backend + "/a.go", source}),
	}), `a/a.go:5: "mangle" is a word of iptables', in a package beside netfilter/iptables`,
		`a/a.go:5: "-j " is a word of iptables', in a package beside netfilter/iptables`,
		`a/a.go:8: "--match-set" is a word of iptables', in a package beside netfilter/iptables`)
}
