package blackbox

import (
	"errors"
	"fmt"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/weir-net/weir/test/nodetest"
)

func denied(t *testing.T) (n *nodetest.Node, a, b *nodetest.Pod) {
	t.Helper()
	n = nodetest.NewNode(t, nil)
	n.Manifest("pods.yaml", pods("x", "a", "b", "c"))
	n.Manifest("deny.yaml", denyX)
	n.StartAgent()
	a, b = n.AddPod("x", "a"), n.AddPod("x", "b")
	n.Serve(b.Netns, "tcp", ":80")
	return n, a, b
}

const denyX = `
apiVersion: networking.k8s.io/v1
kind: NetworkPolicy
metadata: {namespace: x, name: deny}
spec: {podSelector: {}, policyTypes: [Ingress, Egress]}
`

func sh(t testing.TB, line string) string {
	t.Helper()
	return nodetest.Run(t, "sh", "-c", line)
}

func notReadyFor(n *nodetest.Node, why string) {
	n.Helper()
	n.Eventually("the status says what is wrong with "+why, func() error {
		out, err := n.Ctl("status")
		if err == nil {
			return fmt.Errorf("the node is ready:\n%s", out)
		}
		if !strings.Contains(err.Error(), why) {
			return err
		}
		return nil
	})
}

func refused(n *nodetest.Node, why string) {
	n.Helper()
	if _, err := n.TryAddPod("x", "c"); err == nil || !strings.Contains(err.Error(), why) {
		n.Errorf("a pod starts while %s is unknown: %v", why, err)
	}
}

func well(n *nodetest.Node) {
	n.Helper()
	n.Eventually("the node is ready again", func() error {
		_, err := n.Ctl("status")
		return err
	})
	// A runtime calls DEL after a failed ADD.
	if _, err := n.CNI("del", "/run/netns/x.c", nodetest.Args("x", "c", "")); err != nil {
		n.Error(err)
	}
	if _, err := n.TryAddPod("x", "c"); err != nil {
		n.Errorf("when all is known again: %v", err)
	}
}

func stays(n *nodetest.Node, within time.Duration, f func() error) {
	n.Helper()
	for end := time.Now().Add(within); time.Now().Before(end); time.Sleep(20 * time.Millisecond) {
		if err := f(); err != nil {
			n.Fatal(err)
		}
	}
}

// TestATableThatIptablesCantPrint: if iptables-save fails, the agent isn't ready, and no pod starts.
func TestATableThatIptablesCantPrint(t *testing.T) {
	if !nodetest.IsolatedWithWeir(t) {
		return
	}
	nodetest.AboutIptables(t)
	n, a, b := denied(t)
	n.Reach(a, b.IP+":80", false)
	sh(t, `nft 'add rule ip nat POSTROUTING meta mark set meta mark & 0xff00ffff | 0x00040000'`)
	sh(t,
		`nft delete rule ip mangle FORWARD handle $(nft -a list chain ip mangle FORWARD `+
			`| sed -n 's/.*WEIR-FORWARD.* handle //p')`)
	n.Eventually("weir's rule is back", func() error { return jumps("ip mangle FORWARD", 1) })
	n.Reach(a, b.IP+":80", false)
	notReadyFor(n, "nat")
	refused(n, "nat")
	stays(n, 2*time.Second, func() error { // the agent tries again in this time, and still can't read the table
		if out, err := n.Ctl("status"); err == nil {
			return fmt.Errorf("the node is ready though its nat table can't be read:\n%s", out)
		}
		return nil
	})
	sh(t, `nft delete rule ip nat POSTROUTING handle $(nft -a list chain ip nat POSTROUTING `+
		`| sed -n 's/.*0x00040000.* handle //p')`)
	well(n)
}

// TestATableThatIptablesCallsIncompatible: if iptables-save leaves out a table because of a rule of nft, weir doesn't
// treat the table as empty.
func TestATableThatIptablesCallsIncompatible(t *testing.T) {
	for family, program := range map[string]string{"ip": "iptables", "ip6": "ip6tables"} {
		t.Run(program, func(t *testing.T) {
			if !nodetest.IsolatedWithWeir(t) {
				return
			}
			nodetest.AboutIptables(t)
			n := nodetest.NewNode(t, nodetest.Conf{"ranges": []any{
				nodetest.Conf{"subnet": "10.88.0.0/24"}, nodetest.Conf{"subnet": "fd00:88::/64"},
			}})
			n.Manifest("pods.yaml", pods("x", "a", "b", "c"))
			n.Manifest("deny.yaml", denyX)
			n.StartAgent()
			a, b := n.AddPod("x", "a"), n.AddPod("x", "b")
			n.Serve(b.Netns, "tcp", ":80")
			address := map[string]string{"ip": b.IP + ":80", "ip6": "[" + b.IP6 + "]:80"}[family]
			forward := family + " mangle FORWARD"
			for range 4 { // the kernel reports each of these changes to the agent
				sh(t, "nft add rule "+forward+" ct state established counter")
				stays(n, 500*time.Millisecond, func() error { return jumps(forward, 1) })
			}
			notReadyFor(n, "mangle")
			refused(n, "mangle")
			// The agent still repairs weir's own rules, and applies changes of policies.
			sh(t, "nft insert rule "+forward+" ct state established counter")
			n.Eventually("weir's rule is first, and there once", func() error {
				rules := strings.Split(sh(t, "nft list chain "+forward+" 2>/dev/null | grep counter"), "\n")
				if !strings.Contains(rules[0], "jump WEIR-FORWARD") {
					return errors.New(rules[0])
				}
				return jumps(forward, 1)
			})
			sh(t, "nft flush chain "+family+" mangle WEIR-INGRESS; nft flush chain "+family+" mangle WEIR-EGRESS")
			n.Eventually("weir's chains are whole", func() error {
				if out := sh(t, "nft list chain "+family+" mangle WEIR-INGRESS"); !strings.Contains(out, "drop") {
					return errors.New(out)
				}
				return nil
			})
			n.Reach(a, address, false)
			n.Manifest("deny.yaml", "")
			n.Reach(a, address, true)
			n.Manifest("deny.yaml", denyX)
			n.Reach(a, address, false)
			sh(t, `for h in $(nft -a list chain `+forward+
				` | sed -n 's/.*ct state established.* handle //p'); do nft delete rule `+forward+` handle $h; done`)
			well(n)
			n.Reach(a, address, false)
			if err := jumps(forward, 1); err != nil {
				t.Error(err)
			}
		})
	}
}

func jumps(chain string, want int) error {
	out, err := exec.Command("sh", "-c", "nft list chain "+chain).CombinedOutput()
	if err != nil {
		return fmt.Errorf("list chain %s: %w: %s", chain, err, out)
	}
	if got := strings.Count(string(out), "jump WEIR-"); got != want {
		return fmt.Errorf("%d rules lead to weir's, want %d:\n%s", got, want, out)
	}
	return nil
}

// withoutMatch hides the library of a match from iptables, so that iptables can't print rules with this match. In a
// shell command that begins with undo, iptables finds the library.
func withoutMatch(t *testing.T, match string) (undo string) {
	t.Helper()
	dir := t.TempDir()
	lib := strings.TrimSpace(sh(t, "dirname $(find / -xdev -name libxt_"+match+".so 2>/dev/null | head -1)"))
	sh(t, "cp "+lib+"/*.so "+dir+" && rm "+filepath.Join(dir, "libxt_"+match+".so"))
	t.Setenv("XTABLES_LIBDIR", dir)
	return "XTABLES_LIBDIR=" + lib + " "
}

// TestALegacyTableThatIptablesCantPrint: if iptables-legacy can't print a table, the agent isn't ready.
func TestALegacyTableThatIptablesCantPrint(t *testing.T) {
	if !nodetest.IsolatedWithWeir(t) {
		return
	}
	nodetest.AboutIptables(t)
	sh(t, "iptables-legacy -A INPUT -s 203.0.113.1 -j DROP") // this rule makes the agent use iptables-legacy
	undo := withoutMatch(t, "statistic")
	n, a, b := denied(t)
	n.Reach(a, b.IP+":80", false)
	if out := sh(t, "iptables-legacy-save -t mangle"); !strings.Contains(out, "-A FORWARD -j WEIR-FORWARD") {
		t.Fatalf("weir's rules aren't in iptables-legacy:\n%s", out)
	}
	const rule = "FORWARD -m statistic --mode random --probability 0.5"
	sh(t, undo+"iptables-legacy -w -t mangle -A "+rule)
	sh(t, undo+"iptables-legacy -w -t mangle -D FORWARD 1")
	n.Reach(a, b.IP+":80", false)
	notReadyFor(n, "mangle")
	refused(n, "mangle")
	stays(n, 3*time.Second, func() error {
		if out := sh(t, undo+"iptables-legacy -w -t mangle -S FORWARD"); strings.Count(out, "-j WEIR-FORWARD") > 1 {
			return fmt.Errorf("weir's rule is there more than once:\n%s", out)
		}
		return nil
	})
	n.Reach(a, b.IP+":80", false)
	sh(t, undo+"iptables-legacy -w -t mangle -D "+rule)
	well(n)
}

// TestWhichIptablesIsUnknown: if kubelet's chain is in iptables-nft, the agent uses iptables-nft, even if it can't read
// the table nat. If there is no such chain, and iptables-legacy can't print its rules, the agent isn't ready.
func TestWhichIptablesIsUnknown(t *testing.T) {
	t.Run("nft", func(t *testing.T) {
		if !nodetest.IsolatedWithWeir(t) {
			return
		}
		nodetest.AboutIptables(t)
		sh(t, `iptables-nft -t nat -N KUBE-KUBELET-CANARY; iptables-legacy -A INPUT -s 203.0.113.1 -j DROP`)
		sh(t, `nft add chain ip nat x; nft 'add rule ip nat x meta mark set meta mark & 0xff00ffff | 0x00040000'`)
		n := nodetest.NewNode(t, nil)
		n.Manifest("pods.yaml", pods("x", "a"))
		n.SpawnAgent()
		n.Eventually("weir's rules are in iptables-nft", func() error { return jumps("ip mangle FORWARD", 1) })
		if out := sh(t, "iptables-legacy-save"); strings.Contains(out, "WEIR") {
			t.Errorf("weir's rules are in iptables-legacy:\n%s", out)
		}
	})
	t.Run("legacy", func(t *testing.T) {
		if !nodetest.IsolatedWithWeir(t) {
			return
		}
		nodetest.AboutIptables(t)
		undo := withoutMatch(t, "statistic")
		sh(t, undo+"iptables-legacy -A INPUT -m statistic --mode random --probability 0.5")
		n := nodetest.NewNode(t, nil)
		n.Manifest("pods.yaml", pods("x", "c"))
		n.SpawnAgent()
		notReadyFor(n, "which iptables")
		refused(n, "which iptables")
		sh(t, undo+"iptables-legacy -w -F INPUT")
		well(n)
	})
}

// TestAGuardThatCantBeMadeIsNotForgotten: if the guard can't be written at first, the agent isn't ready until the guard
// is written.
func TestAGuardThatCantBeMadeIsNotForgotten(t *testing.T) {
	if !nodetest.IsolatedWithWeir(t) {
		return
	}
	n, _, _ := denied(t)
	sh(t, `nft 'delete table bridge weir; add table bridge weir; add set bridge weir senders4 { type ipv4_addr; }'`)
	guarded := func() error {
		if out := sh(t, "nft list table bridge weir"); !strings.Contains(out, "drop") {
			return errors.New("the guard isn't there:\n" + out)
		}
		return nil
	}
	n.Eventually("the node isn't ready, or has its guard", func() error {
		if _, err := n.Ctl("status"); err == nil {
			return guarded()
		}
		return nil
	})
	stays(n, 3*time.Second, func() error {
		if out, err := n.Ctl("status"); err == nil && guarded() != nil {
			return fmt.Errorf("the node is ready without the guard:\n%s", out)
		}
		return nil
	})
}

// TestATableThatIsSwitchedOff: if another program makes a table dormant, so that the kernel doesn't use it, the agent
// switches it on again.
func TestATableThatIsSwitchedOff(t *testing.T) {
	if !nodetest.IsolatedWithWeir(t) {
		return
	}
	n, a, b := denied(t)
	n.Reach(a, b.IP+":80", false)
	checks := "ip mangle"
	if nodetest.Nftables() {
		checks = "ip weir"
	}
	for _, table := range []string{checks, "bridge weir"} {
		sh(t, "nft 'add table "+table+" { flags dormant; }'")
		n.Eventually("table "+table+" is switched on again", func() error {
			if out := sh(t, "nft list table "+table+" 2>/dev/null"); strings.Contains(out, "dormant") {
				return errors.New(out)
			}
			return nil
		})
	}
	n.Reach(a, b.IP+":80", false)
	well(n)
}

// TestAChainThatHangsElsewhere: if the chain FORWARD of iptables' table mangle has a wrong hook, a wrong priority or no
// hook, the agent attaches it to the right hook again.
func TestAChainThatHangsElsewhere(t *testing.T) {
	if !nodetest.IsolatedWithWeir(t) {
		return
	}
	nodetest.AboutIptables(t)
	n, a, b := denied(t)
	for _, hook := range []string{
		"", "type filter hook output priority -150;", "type filter hook forward priority 300;",
		"type filter hook forward priority -151;",
	} {
		n.Reach(a, b.IP+":80", false)
		sh(t, `cat > /run/forward.nft <<END
flush chain ip mangle FORWARD
delete chain ip mangle FORWARD
table ip mangle {
	chain FORWARD {
		`+hook+`
		counter jump WEIR-FORWARD comment "weir: what no policy lets through to or from a pod is dropped"
	}
}
END
nft -f /run/forward.nft`)
		n.Eventually("mangle FORWARD hangs where it belongs, after "+hook, func() error {
			out := sh(t, "nft list chain ip mangle FORWARD 2>/dev/null || true")
			if !strings.Contains(out, "hook forward priority mangle;") {
				return errors.New(out)
			}
			return jumps("ip mangle FORWARD", 1)
		})
		n.Reach(a, b.IP+":80", false)
		n.Eventually("the node is ready", func() error { _, err := n.Ctl("status"); return err })
	}
	// If a chain without a hook has another program's rule, the agent doesn't replace the chain, and isn't ready.
	sh(t,
		"nft 'flush chain ip mangle FORWARD; delete chain ip mangle FORWARD; add chain ip mangle FORWARD; "+
			"add rule ip mangle FORWARD counter'")
	notReadyFor(n, "FORWARD")
	refused(n, "FORWARD")
	sh(t, "nft 'flush chain ip mangle FORWARD; delete chain ip mangle FORWARD'")
	well(n)
	n.Reach(a, b.IP+":80", false)
}

// TestASetThatCantBeRead: if another program's set has a name like weir's sets, and a type that the agent can't read,
// the agent isn't ready.
func TestASetThatCantBeRead(t *testing.T) {
	if !nodetest.IsolatedWithWeir(t) {
		return
	}
	nodetest.AboutIptables(t)
	n, a, b := denied(t)
	n.Reach(a, b.IP+":80", false)
	sh(t, `ipset create x hash:ip; ipset create y list:set; ipset add y x; ipset rename y weir-x`)
	sh(t, `iptables-nft -w -t mangle -D FORWARD 1`)
	n.Eventually("weir's rule is back", func() error { return jumps("ip mangle FORWARD", 1) })
	n.Reach(a, b.IP+":80", false)
	notReadyFor(n, "weir-x")
	refused(n, "weir-x")
	sh(t, `ipset destroy weir-x`)
	well(n)
}

// TestStoppedAgent: if the agent doesn't answer, each command ends with an error, and none reports success or an empty
// result.
func TestStoppedAgent(t *testing.T) {
	if !nodetest.IsolatedWithWeir(t) {
		return
	}
	n, _, _ := denied(t)
	if err := syscall.Kill(n.AgentPID(), syscall.SIGSTOP); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = syscall.Kill(n.AgentPID(), syscall.SIGCONT) })
	var asked sync.WaitGroup
	for _, question := range []string{
		"drops", "drops -o json", "audit", "audit x/deny", "flows", "matrix", "explain x/a x/b:80", "diff --delete x/deny",
	} {
		asked.Go(func() {
			cmd := exec.CommandContext(t.Context(), filepath.Join(n.Bin, "weirctl"), strings.Fields(question)...)
			out, err := cmd.CombinedOutput()
			var exit *exec.ExitError
			if !errors.As(err, &exit) || exit.ExitCode() != 1 || strings.Count(string(out), "\n") != 1 {
				t.Errorf("weirctl %s: %v\n%s", question, err, out)
			}
		})
	}
	for question, what := range map[string]string{"pods": "x/b", "pods -o json": `"x/b"`, "status": "weir-pods"} {
		asked.Go(func() { // these commands still print what they read from files and the kernel
			cmd := exec.CommandContext(t.Context(), filepath.Join(n.Bin, "weirctl"), strings.Fields(question)...)
			out, err := cmd.CombinedOutput()
			if cmd.ProcessState.ExitCode() != 1 || !strings.Contains(string(out), what) ||
				!strings.Contains(string(out), "has not answered within") {
				t.Errorf("weirctl %s: %v, want %s\n%s", question, err, what, out)
			}
		})
	}
	asked.Wait()
}

// TestGapsOfTheAgent: if the agent can't read a manifest, the commands "weirctl explain" and "weirctl matrix" name the
// manifest, and "weirctl diff" fails, because it can't compare.
func TestGapsOfTheAgent(t *testing.T) {
	if !nodetest.IsolatedWithWeir(t) {
		return
	}
	n, _, _ := denied(t)
	n.Manifest("z.yaml", "{{{")
	n.Eventually("the status names the manifest", func() error {
		if out, err := n.Ctl("status"); err != nil || !strings.Contains(out, "z.yaml: ") {
			return fmt.Errorf("%s: %w", out, errors.Join(err, errors.New("no z.yaml")))
		}
		return nil
	})
	for question, code := range map[string]int{"explain x/a x/b:80": 3, "matrix": 0, "diff --delete x/deny": 1} {
		cmd := exec.CommandContext(t.Context(), filepath.Join(n.Bin, "weirctl"), strings.Fields(question)...)
		out, err := cmd.CombinedOutput()
		if cmd.ProcessState.ExitCode() != code || !strings.Contains(string(out), "z.yaml") {
			t.Errorf("weirctl %s: %v, want exit code %d\n%s", question, err, code, out)
		}
	}
}
