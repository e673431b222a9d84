// Package blackbox tests the built programs with real packets: a pod attacks, a part fails, or an object is hostile.
// It imports none of weir's own packages except nodetest. So it can also test programs of an earlier commit: the
// variable WEIR_PROGRAMS names a directory with weir, weir-agent and weirctl. "make blackbox" shows which tests fail
// with these earlier programs.
package blackbox

import (
	"os/exec"
	"strings"
	"testing"

	"github.com/weir-net/weir/test/nodetest"
)

func TestMain(m *testing.M) { nodetest.MainAsShipped(m) }

// TestControlImports: of weir's own packages, the black-box tests depend only on nodetest.
func TestControlImports(t *testing.T) {
	out, err := exec.Command("go", "list", "-test", "-deps", ".").Output()
	if err != nil {
		t.Fatal(err)
	}
	for _, name := range strings.Fields(string(out)) {
		name, ours := strings.CutPrefix(name, "github.com/weir-net/weir/")
		if ours && !strings.HasPrefix(name, "test/blackbox") && name != "test/nodetest" {
			t.Errorf("the black-box tests depend on the package %s", name)
		}
	}
}
