package architecture

import (
	"fmt"
	"go/ast"
	"maps"
	"os/exec"
	"slices"
	"strings"
	"testing"
)

var (
	kubernetes = []string{"k8s.io", "sigs.k8s.io"}
	// client-go reaches the API server. The other libraries reach the kernel.
	drivers = []string{
		"github.com/vishvananda", "github.com/google/nftables", "github.com/mdlayher", "k8s.io/client-go",
	}
)

// promises has, for each folder, the packages that code in the folder must not link. A path in the list "never" stands
// for the package at this path and for all packages below it.
var promises = []struct {
	folder, why string
	except      []string // subfolders for which the promise doesn't hold
	never       []string
}{
	{
		"plugins/weir", "its start is on the path of every pod", nil,
		append([]string{"net/http", "os/exec", module + "policy"}, kubernetes...),
	},
	{"agentapi", "the plugin links it", nil, append([]string{"net/http", "os/exec"}, kubernetes...)},
	{"netfilter", "no backend needs the compiler", nil, kubernetes},
	{"netfilter", "only iptables needs programs", []string{"netfilter/iptables"}, []string{"os/exec"}},
	{"netfilter/ipset", "it knows nothing of policies", nil, []string{module + "policy"}},
	{"netfilter/nftnl", "it knows nothing of policies", nil, []string{module + "policy"}},
	{"netfilter/conntrack", "it knows nothing of policies", nil, []string{module + "policy"}},
	{
		"netfilter/probe", "the backends use it", nil,
		[]string{module + "netfilter/iptables", module + "netfilter/nftables"},
	},
	{"policy/ruleset", "every backend links it", nil, kubernetes},
	{
		"plugins/weirctl/client", "it runs on machines that are no nodes", nil,
		append([]string{module + "netfilter"}, drivers[:3]...),
	},
	{"test/nodetest", "tests of every room use it", nil, []string{strings.TrimSuffix(module, "/")}},
}

// TestLinks: each package keeps the promise for its folder: it links none of the packages that the promise forbids.
func TestLinks(t *testing.T) {
	deps := dependencies(t)
	for _, p := range promises {
		found := 0
		for _, pkg := range slices.Sorted(maps.Keys(deps)) {
			if !within(pkg, p.folder) || slices.ContainsFunc(p.except, func(e string) bool { return within(pkg, e) }) {
				continue
			}
			found++
			complain(t, linked(pkg, deps[pkg], p.never))
			t.Logf("%s links %d packages: %s", pkg, len(deps[pkg]), p.why)
		}
		if found == 0 {
			t.Errorf("there is no package in %s", p.folder)
		}
	}
}

// pure reports whether a package must be pure: it may use no file, no socket and no part of the kernel. Of weir's own
// packages, it may link only pure ones.
func pure(pkg string) bool {
	return !forTests(pkg) && (within(pkg, "policy") || within(pkg, "conf")) ||
		slices.Contains([]string{"agent/choice", "internal/excerpt", "internal/hashed", "internal/ordered"}, pkg)
}

// harmless are the packages that a pure package may import directly. Indirectly it may link more packages: Kubernetes'
// types link net/http and os.
var harmless = []string{
	"bytes", "cmp", "container/heap", "crypto/sha256", "encoding/base32", "encoding/binary", "encoding/json", "errors",
	"fmt", "hash/maphash", "io", "iter", "maps", "math", "math/bits", "math/rand/v2", "net/netip", "reflect", "regexp",
	"slices", "strconv", "strings", "time", "unicode", "unicode/utf16", "unicode/utf8",
	"github.com/containernetworking/cni/pkg/types", "github.com/containernetworking/cni/pkg/version",
	"go4.org/netipx",
}

var harmlessFolders = []string{"k8s.io/api", "k8s.io/apimachinery"}

// harmlessOfNet has the names of the package net that a pure package may use. These names only convert a MAC to and
// from text.
var harmlessOfNet = []string{"HardwareAddr", "ParseMAC"}

// TestPure: of weir's own packages, a pure package links only pure ones. It links no library that reaches the kernel
// or the API server. Directly, it imports only packages in the list harmless.
func TestPure(t *testing.T) {
	deps := dependencies(t)
	found := map[string]bool{}
	for _, f := range production(t, tree(t)) {
		if pure(f.pkg()) {
			found[f.pkg()] = true
			complain(t, harmful(f))
		}
	}
	for _, pkg := range slices.Sorted(maps.Keys(found)) {
		if len(deps[pkg]) == 0 {
			t.Errorf("go list doesn't know %s", pkg)
		}
		complain(t, impure(pkg, deps[pkg]))
		t.Logf("%s is pure", pkg)
	}
}

func harmful(f goFile) (wrong []string) {
	for _, i := range f.ast.Imports {
		path := imported(i)
		switch {
		// weir's own packages pass here: TestPure checks all packages that a pure package links, directly or indirectly.
		case strings.HasPrefix(path, module), slices.Contains(harmless, path):
		case slices.ContainsFunc(harmlessFolders, func(h string) bool { return within(path, h) }):
		case path == "net" && i.Name == nil:
			wrong = append(wrong, harmfulOfNet(f)...)
		default:
			wrong = append(wrong, fmt.Sprintf("%s: %s is pure, and imports %s", f.at(i), f.pkg(), path))
		}
	}
	return wrong
}

func harmfulOfNet(f goFile) (wrong []string) {
	ast.Inspect(f.ast, func(n ast.Node) bool {
		if s, ok := n.(*ast.SelectorExpr); ok {
			x, ok := s.X.(*ast.Ident)
			if ok && x.Name == "net" && !slices.Contains(harmlessOfNet, s.Sel.Name) {
				wrong = append(wrong, fmt.Sprintf("%s: %s is pure, and uses net.%s", f.at(n), f.pkg(), s.Sel.Name))
			}
		}
		return true
	})
	return wrong
}

func impure(pkg string, deps []string) []string {
	wrong := linked(pkg, deps, append([]string{"os/exec"}, drivers...))
	for _, d := range deps {
		if own, ok := strings.CutPrefix(d, module); ok && !pure(own) {
			wrong = append(wrong, fmt.Sprintf("%s links %s, which isn't pure", pkg, own))
		}
	}
	return wrong
}

func TestPureFindsWhatIsNot(t *testing.T) {
	deps := []string{"os", "os/exec", "github.com/mdlayher/netlink", module + "conf", module + "endpoint"}
	deps = append(deps, module+"internal/ordered", module+"policy/policytest", module+"policy/ruleset")
	wants(t, impure("policy/suggest", deps), "policy/suggest links os/exec",
		"policy/suggest links github.com/mdlayher/netlink", "policy/suggest links endpoint, which isn't pure",
		"policy/suggest links policy/policytest, which isn't pure")
	source := `package a

import (
	"io"
	"io/fs"
	"net"
	"net/netip"
	"path/filepath"

	"github.com/vishvananda/netlink"
	"k8s.io/api/core/v1"
	"k8s.io/client-go/rest"
)

var mac net.HardwareAddr
var c, err = net.Dial("tcp", "")
`
	wants(t, harmful(parse(t, file{"conf/a.go", []byte(source)})), "conf/a.go:5: conf is pure, and imports io/fs",
		"conf/a.go:16: conf is pure, and uses net.Dial", "conf/a.go:8: conf is pure, and imports path/filepath",
		"conf/a.go:10: conf is pure, and imports github.com/vishvananda/netlink",
		"conf/a.go:12: conf is pure, and imports k8s.io/client-go/rest")
	wants(t, harmful(parse(t, file{"conf/a.go", []byte("package a\n\nimport . \"net\"\n")})),
		"conf/a.go:3: conf is pure, and imports net")
}

// dependencies returns for each of weir's packages all packages that it links, directly or indirectly.
func dependencies(t *testing.T) map[string][]string {
	t.Helper()
	cmd := exec.Command("go", "list", "-f", `{{.ImportPath}} {{join .Deps " "}}`, "./...")
	cmd.Dir = root
	var errors strings.Builder
	cmd.Stderr = &errors
	out, err := cmd.Output()
	if err != nil {
		t.Fatalf("go list ./...: %v: %s", err, errors.String())
	}
	deps := map[string][]string{}
	for line := range strings.Lines(string(out)) {
		pkg, rest, _ := strings.Cut(line, " ")
		deps[strings.TrimPrefix(pkg, module)] = strings.Fields(rest)
	}
	return deps
}

func linked(pkg string, deps, never []string) (wrong []string) {
	for _, d := range deps {
		if slices.ContainsFunc(never, func(n string) bool { return within(d, n) }) {
			wrong = append(wrong, fmt.Sprintf("%s links %s", pkg, d))
		}
	}
	return wrong
}

func TestLinksFindsWhatMustNotBeLinked(t *testing.T) {
	deps := []string{
		"fmt", "net", "net/http", "net/http/internal", "k8s.io/api/core/v1", "k8s.iota",
		module + "policy/ruleset",
	}
	wants(t, linked("plugins/weir", deps, []string{"k8s.io", "net/http"}), "plugins/weir links net/http",
		"plugins/weir links net/http/internal", "plugins/weir links k8s.io/api/core/v1")
}
