package blackbox

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/weir-net/weir/test/nodetest"
)

// wrapped replaces the program by a script. In the script, $real is the path of the replaced program. If the program
// belongs to iptables, agents don't choose the backend themselves, because the script may make the program fail. They
// use nftables if the tests run with nftables, and otherwise iptables.
func wrapped(t *testing.T, name, script string) {
	t.Helper()
	if !nodetest.Nftables() && strings.Contains(name, "tables") {
		nodetest.AboutIptables(t)
	}
	real, err := exec.LookPath(name)
	if err != nil {
		t.Fatal(err)
	}
	dir := t.TempDir()
	if err := os.WriteFile(filepath.Join(dir, name), fmt.Appendf(nil, "#!/bin/bash\nreal=%s\n%s\n", real, script),
		0o700); err != nil {
		t.Fatal(err)
	}
	t.Setenv("PATH", dir+":"+os.Getenv("PATH"))
}

const web = `
apiVersion: v1
kind: Pod
metadata: {name: web, namespace: shop, labels: {app: web}}
`

// TestErrorsOfIptablesAreShort: if iptables refuses one line of a long input, log and status quote only this line.
func TestErrorsOfIptablesAreShort(t *testing.T) {
	if !nodetest.IsolatedWithWeir(t) {
		return
	}
	nodetest.AboutIptables(t)
	n := nodetest.NewNode(t, nil)
	wrapped(t, "iptables-nft-restore", `
all=$(cat)
n=$(grep -n -m1 -- '-A WEIR-POSTROUTING' <<<"$all" | cut -d: -f1)
if [ -z "$n" ]; then exec $real "$@" <<<"$all"; fi
for ((i = 0; i < 10000; i++)); do
  echo "iptables-restore v1.8.9 (nf_tables): line $n: RULE_APPEND failed (No such file or directory)"
done >&2
exit 1`)
	var peers []string
	for i := range 900 {
		peers = append(peers, fmt.Sprintf(`{podSelector: {matchLabels: {number: "%d"}}}`, i))
	}
	n.Manifest("web.yaml", web+fmt.Sprintf(`
---
apiVersion: networking.k8s.io/v1
kind: NetworkPolicy
metadata: {name: large, namespace: shop}
spec: {podSelector: {}, ingress: [{from: [%s]}]}
`, strings.Join(peers, ", ")))
	n.SpawnAgent()
	n.Eventually("the agent says what is wrong", func() error {
		if !strings.Contains(n.AgentLog(), "RULE_APPEND") {
			return fmt.Errorf("it doesn't")
		}
		return nil
	})
	time.Sleep(3 * time.Second) // in this time, the agent applies its rules again
	if log := n.AgentLog(); len(log) > 32<<10 || !strings.Contains(log, "-A WEIR-POSTROUTING ") {
		t.Errorf("the log has %d bytes, and should have few, and the line that is wrong: %.3000s", len(log), log)
	}
	n.Eventually("the status says what is wrong", func() error { // the agent logs an error before the status has it
		out, err := n.Ctl("status")
		if err == nil || len(out) > 32<<10 || !strings.Contains(out, "-A WEIR-POSTROUTING ") {
			return fmt.Errorf("it has %d bytes: %.3000s", len(out), out)
		}
		return nil
	})
}

// TestFieldsOfAMegabyteAreCut: even if a field of an object has a megabyte, log and status stay shorter than 32 KB.
func TestFieldsOfAMegabyteAreCut(t *testing.T) {
	if !nodetest.IsolatedWithWeir(t) {
		return
	}
	n := nodetest.NewNode(t, nil)
	n.Manifest("web.yaml", web)
	n.StartAgent()
	large := strings.Repeat("9", 1<<20)
	for i, spec := range []string{
		fmt.Sprintf(`{podSelector: {}, ingress: [{from: [{ipBlock: {cidr: "10.0.0.0/%s"}}]}]}`, large),
		fmt.Sprintf(`{podSelector: {}, egress: [{ports: [{port: "a%s"}]}]}`, large),
		fmt.Sprintf(`{podSelector: {matchExpressions: [{key: a, operator: "%s", values: [b]}]}}`, large),
		fmt.Sprintf(`{podSelector: {}, policyTypes: ["%s"]}`, large),
	} {
		name := fmt.Sprintf("%d.yaml", i)
		n.Manifest(name, fmt.Sprintf(`
apiVersion: networking.k8s.io/v1
kind: NetworkPolicy
metadata: {name: p%d, namespace: shop}
spec: %s
`, i, spec))
		n.Eventually("the problem is logged", func() error {
			if !strings.Contains(n.AgentLog(), fmt.Sprintf("shop/p%d", i)) && !strings.Contains(n.AgentLog(), name) {
				return fmt.Errorf("it isn't")
			}
			return nil
		})
		out, _ := n.Ctl("status")
		if len(out) > 32<<10 {
			t.Errorf("%s: weirctl status has %d bytes", name, len(out))
		}
		if log := n.AgentLog(); len(log) > 32<<10 {
			t.Fatalf("%s: the log has %d bytes", name, len(log))
		}
		n.Manifest(name, "")
	}
}
