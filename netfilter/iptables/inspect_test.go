package iptables

import (
	"math/rand/v2"
	"strings"
	"testing"

	"github.com/weir-net/weir/conf"
	"github.com/weir-net/weir/netfilter"
	"github.com/weir-net/weir/policy"
	"github.com/weir-net/weir/policy/policytest"
	"github.com/weir-net/weir/policy/ruleset"
	"github.com/weir-net/weir/test/golden"
	"github.com/weir-net/weir/test/nodetest"
)

func TestInspectLegacy(t *testing.T) { testInspect(t, Legacy) }
func TestInspectNFT(t *testing.T)    { testInspect(t, NFT) }

// testInspect applies random rulesets. The ruleset that Inspect returns has only the set entries that rules look up
// for the given packets. For these packets, its verdicts must be the same as those of the applied ruleset.
func testInspect(t *testing.T, f Flavour) {
	if !nodetest.Isolated(t) {
		return
	}
	d := driver(t, f)
	d.detected.Store(&f)
	r := rand.New(rand.NewPCG(3, 3))
	dropped := 0
	var want ruleset.Ruleset
	var packets []ruleset.Packet
	for i := range 8 {
		mustRemove(t, d) // so that no set has pods of the last state
		s := policytest.State(r)
		s.Policies = append(s.Policies, policytest.Letting("ports", nil, nil, policytest.OddPorts(100)...))
		if i == 1 {
			s = golden.Load(t, "../../policy/testdata/named-ports.yaml")
		}
		if want = policy.Compile(s); i%2 == 0 {
			want = policytest.Bounds(r).Merge(want, nil)
		}
		mustApply(t, d, want, netfilter.Verify(i%3))
		if packets = policytest.Probes(r, s, 3); i == 1 {
			for n := range packets {
				packets[n].Proto, packets[n].Port = ruleset.TCP, 8080 // a named port has this number
			}
		}
		inspected, err := d.Inspect(t.Context(), want, packets)
		if err != nil || inspected.Unread != "" || len(inspected.Wrong) > 0 {
			t.Fatalf("round %d: %v, %q, %q", i, err, inspected.Unread, inspected.Wrong)
		}
		for _, p := range packets {
			expected, _, err := want.Trace(p)
			got, _, errKernel := inspected.Ruleset.Trace(p)
			if err != nil || errKernel != nil || got != expected {
				t.Fatalf("round %d: %+v passes: %v, and with the kernel's sets %v (%v, %v)", i, p, expected, got, err, errKernel)
			}
			if !expected {
				dropped++
			}
		}
	}
	if dropped < 20 || len(packets) == 0 {
		t.Errorf("only %d packets are dropped", dropped)
	}
	family := conf.FamilyOf(packets[0].Dst)
	nodetest.Run(t, strings.TrimSuffix(f.program(family), "-save"), "-t", "mangle", "-F", conf.IngressChain)
	inspected, err := d.Inspect(t.Context(), want, packets)
	if err != nil || !strings.Contains(strings.Join(inspected.Wrong, " "), conf.IngressChain) {
		t.Errorf("a flushed chain: %q, %v", inspected.Wrong, err)
	}
}
