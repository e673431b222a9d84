package kernel

import (
	"math/rand/v2"
	"os"
	"os/exec"
	"strings"
	"testing"

	"github.com/weir-net/weir/internal/nodetest"
	"github.com/weir-net/weir/policy"
	"github.com/weir-net/weir/policy/policytest"
)

// driver for the flavour, whatever the node seems to use.
func driver(t *testing.T, f Flavour) *Driver {
	t.Helper()
	d, err := Open(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(d.Close)
	d.Flavour = f
	return d
}

func mustApply(t *testing.T, d *Driver, want policy.Ruleset, verify Verify) Result {
	t.Helper()
	r, err := d.Apply(t.Context(), want, verify)
	if err != nil {
		t.Fatal(err)
	}
	return r
}

func TestApplyLegacy(t *testing.T) { testApply(t, Legacy) }
func TestApplyNFT(t *testing.T)    { testApply(t, NFT) }

// testApply applies random rulesets one after the other. After each, a driver that knows nothing must find nothing to
// do: the kernel lists exactly what was written.
func testApply(t *testing.T, f Flavour) {
	if !nodetest.Isolated(t) {
		return
	}
	d := driver(t, f)
	r := rand.New(rand.NewPCG(3, 3))
	s := policytest.State(r)
	for i := range 25 {
		want := policy.Compile(s)
		mustApply(t, d, want, Verify(i%3))
		if got := mustApply(t, driver(t, f), want, All); got.Changed {
			t.Fatalf("round %d: applied again by another driver, the ruleset changed something", i)
		}
		s = policytest.Change(r, s)
	}
	nodetest.Run(t, "iptables-"+string(f), "-t", "mangle", "-N", "SOMEBODY")
	nodetest.Run(t, "ipset", "create", "somebody", "hash:ip")
	if err := d.Remove(t.Context()); err != nil {
		t.Fatal(err)
	}
	save := nodetest.Run(t, "iptables-"+string(f)+"-save")
	sets := nodetest.Run(t, "ipset", "list", "-name")
	if strings.Contains(save, "WEIR") || strings.Contains(sets, "weir") {
		t.Errorf("left after Remove:\n%s%s", save, sets)
	}
	if !strings.Contains(save, "SOMEBODY") || !strings.Contains(sets, "somebody") {
		t.Errorf("Remove took what isn't weir's:\n%s%s", save, sets)
	}
}

func TestDriftIsRepaired(t *testing.T) {
	if !nodetest.Isolated(t) {
		return
	}
	d := driver(t, NFT)
	r := rand.New(rand.NewPCG(5, 1))
	s := policytest.State(r)
	for len(s.Policies) < 2 || len(s.Endpoints) < 3 {
		s = policytest.State(r)
	}
	want := policy.Compile(s)
	mustApply(t, d, want, All)
	golden := listing(t)
	for _, drift := range []string{
		"iptables -t mangle -F WEIR-FORWARD",
		"iptables -t mangle -D FORWARD 1",
		"iptables -t mangle -I FORWARD 1 -j ACCEPT",
		"iptables -t mangle -F",
		"iptables -t nat -F WEIR-POSTROUTING",
		"iptables -t mangle -I WEIR-INGRESS 1 -j RETURN",
		"ipset flush weir-pods",
		"ipset add weir-in-open 203.0.113.9",
		"ipset del weir-networks 10.88.0.0/24",
		"nft flush ruleset",
		"iptables -t mangle -N WEIR-STALE",
		"ipset create weir-stale hash:ip",
	} {
		f := strings.Fields(drift)
		nodetest.Run(t, f[0], f[1:]...)
		mustApply(t, d, want, All)
		if drift == "iptables -t mangle -I FORWARD 1 -j ACCEPT" {
			nodetest.Run(t, "iptables", "-t", "mangle", "-D", "FORWARD", "-j", "ACCEPT") // a stranger's; only its place is weir's affair
		}
		if got := listing(t); got != golden {
			t.Errorf("after %q:\n%s\nwant\n%s", drift, got, golden)
		}
	}
}

// listing is what a person sees.
func listing(t *testing.T) string {
	var lines []string
	for line := range strings.Lines(nodetest.Run(t, "iptables-save")) {
		if strings.HasPrefix(line, "-A") || strings.HasPrefix(line, ":WEIR") {
			lines = append(lines, strings.Split(line, " [")[0])
		}
	}
	sets, err := exec.Command("sh", "-c", "ipset save | sort | sed 's/ initval [^ ]*//; s/ hashsize [^ ]*//'").Output()
	if err != nil {
		t.Fatal(err)
	}
	return strings.Join(lines, "") + string(sets)
}

func TestFlavour(t *testing.T) {
	if !nodetest.Isolated(t) {
		return
	}
	want := func(f Flavour) {
		t.Helper()
		if got, err := Detect(t.Context()); got != f || err != nil {
			t.Errorf("detected %q, %v; want %q", got, err, f)
		}
	}
	want(NFT) // nothing there
	mustApply(t, driver(t, Legacy), policy.Compile(policy.State{}), All)
	want(NFT) // weir's own rules don't count
	d := driver(t, NFT)
	mustApply(t, d, policy.Compile(policy.State{}), All)
	if err := d.CleanOtherFlavour(t.Context()); err != nil {
		t.Fatal(err)
	}
	if out := nodetest.Run(t, "iptables-legacy-save"); strings.Contains(out, "WEIR") {
		t.Errorf("left in the other flavour:\n%s", out)
	}
	nodetest.Run(t, "iptables-legacy", "-A", "FORWARD", "-s", "203.0.113.1", "-j", "DROP")
	want(Legacy)
	nodetest.Run(t, "iptables-nft", "-t", "mangle", "-N", "KUBE-IPTABLES-HINT")
	want(NFT)
	// No iptables at all is an error that says so.
	if err := os.Setenv("PATH", ""); err != nil {
		t.Fatal(err)
	}
	if _, err := Detect(t.Context()); err == nil || !strings.Contains(err.Error(), "iptables") {
		t.Errorf("without iptables: %v", err)
	}
}
