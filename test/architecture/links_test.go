package architecture

import (
	"fmt"
	"os/exec"
	"slices"
	"strings"
	"testing"
)

// The package pkg must never link the packages that never lists, nor those in folders below them.
var promises = []struct {
	pkg, why string
	never    []string
}{
	{
		"plugins/weir", "its start is on the path of every pod",
		[]string{"k8s.io", "sigs.k8s.io", "net/http", module + "policy"},
	},
	{"agentapi", "the plugin links it", []string{"k8s.io", "sigs.k8s.io", "net/http"}},
	{"netfilter/iptables", "no backend needs the compiler", []string{"k8s.io", "sigs.k8s.io"}},
	{"policy/ruleset", "every backend links it", []string{"k8s.io", "sigs.k8s.io"}},
	{
		"policy", "it says what should be, and can't touch anything",
		[]string{"github.com/vishvananda", "github.com/google/nftables", "github.com/mdlayher", "k8s.io/client-go"},
	},
	{
		"plugins/weirctl/client", "it runs on machines that are no nodes",
		[]string{"github.com/vishvananda", "github.com/google/nftables", module + "netfilter"},
	},
}

// TestLinks: no package of promises links a package that it must never link.
func TestLinks(t *testing.T) {
	for _, p := range promises {
		deps := dependencies(t, p.pkg)
		complain(t, linked(p.pkg, deps, p.never))
		t.Logf("%s links %d packages: %s", p.pkg, len(deps), p.why)
	}
}

// pure packages use no file, no socket and no part of the kernel. Of weir's own packages, they link only each
// other.
var pure = []string{
	"conf", "internal/excerpt", "internal/ordered", "policy", "policy/claims", "policy/enforced", "policy/explain",
	"policy/propose", "policy/reach", "policy/ruleset", "policy/verdict",
}

// No pure package may import these packages directly. Indirectly is allowed: Kubernetes' types link net/http and
// os.
var touching = []string{"os", "os/exec", "io/fs", "net/http", "syscall", "golang.org/x/sys", "unsafe"}

// TestPure: if a package is pure, it links only pure packages of weir's own. It imports none of the packages in
// touching.
func TestPure(t *testing.T) {
	for _, p := range pure {
		complain(t, impure(p, dependencies(t, p)))
	}
	for _, f := range production(t, tree(t)) {
		if !slices.Contains(pure, f.pkg()) {
			continue
		}
		for _, i := range f.ast.Imports {
			complain(t, linked(f.at(i), []string{imported(i)}, touching))
		}
	}
}

func impure(pkg string, deps []string) (wrong []string) {
	for _, d := range deps {
		if own, ok := strings.CutPrefix(d, module); ok && !slices.Contains(pure, own) {
			wrong = append(wrong, fmt.Sprintf("%s links %s, which isn't pure", pkg, own))
		}
	}
	return wrong
}

func TestPureFindsWhatIsNot(t *testing.T) {
	wants(t, impure("policy", []string{"os", module + "conf", module + "endpoint", module + "policy/ruleset"}),
		"policy links endpoint, which isn't pure")
}

func dependencies(t *testing.T, pkg string) []string {
	t.Helper()
	cmd := exec.Command("go", "list", "-deps", "./"+pkg)
	cmd.Dir = root
	var errors strings.Builder
	cmd.Stderr = &errors
	out, err := cmd.Output()
	if err != nil {
		t.Fatalf("go list -deps ./%s: %v: %s", pkg, err, errors.String())
	}
	return strings.Fields(string(out))
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
