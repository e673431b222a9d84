package packettest

import (
	"fmt"
	"strconv"
	"strings"
	"testing"

	"github.com/weir-net/weir/netfilter/iptables"
	"github.com/weir-net/weir/policy"
	"github.com/weir-net/weir/policy/ruleset"
	"github.com/weir-net/weir/policy/verdict"
	"github.com/weir-net/weir/test/nodetest"
)

const weirsBits = 0x1fff0000

// TestMarks: no packet leaves weir's chains with the number of a class in its mark. If other programs have set all bits
// of the mark, the bits that weir doesn't use stay, and weir's verdicts are still right.
func TestMarks(t *testing.T) {
	if !nodetest.Isolated(t) {
		return
	}
	n := randomNode(t)
	for _, flavour := range []iptables.Flavour{iptables.Legacy, iptables.NFT} {
		n.Use(map[iptables.Flavour]Name{iptables.Legacy: IptablesLegacy, iptables.NFT: IptablesNFT}[flavour])
		// IGMP isn't counted, because the kernel's own IGMP reports don't pass PREROUTING, where the test sets marks.
		count := func(condition string) {
			for _, program := range []string{"iptables-", "ip6tables-"} {
				for _, at := range []string{"filter FORWARD", "filter INPUT", "mangle POSTROUTING"} {
					table, chain, _ := strings.Cut(at, " ")
					nodetest.Run(t, program+string(flavour), strings.Fields(
						fmt.Sprintf("-w -t %s -I %s ! -p igmp -m conntrack --ctstate NEW -m mark %s", table, chain, condition))...)
				}
			}
		}
		count(fmt.Sprintf("! --mark 0x0/%#x", weirsBits))
		for seed := uint64(1); seed <= 3; seed++ {
			compare(t, n, seed)
		}
		if counted, all := counters(t, flavour, fmt.Sprintf("0x0/%#x", weirsBits)); counted > 0 || all != 6 {
			t.Errorf("iptables-%s: %d packets left with a number, of %d rules", flavour, counted, all)
		}
		for _, program := range []string{"iptables-", "ip6tables-"} {
			nodetest.Run(t, program+string(flavour), "-w", "-t", "mangle", "-I", "PREROUTING", "-j", "MARK", "--set-xmark",
				"0xffffffff/0xffffffff")
		}
		foreign := ^uint32(weirsBits)
		count(fmt.Sprintf("! --mark %#x/%#x", foreign, foreign))
		for seed := uint64(4); seed <= 6; seed++ {
			compare(t, n, seed)
		}
		if counted, all := counters(t, flavour, fmt.Sprintf("%#x/%#x", foreign, foreign)); counted > 0 || all != 6 {
			t.Errorf("iptables-%s: %d packets left without another program's bits, of %d rules", flavour, counted, all)
		}
		for _, program := range []string{"iptables-", "ip6tables-"} {
			for _, table := range []string{"filter", "mangle"} {
				nodetest.Run(t, program+string(flavour), "-w", "-t", table, "-F")
			}
		}
	}
}

func counters(t *testing.T, flavour iptables.Flavour, mark string) (packets, rules int) {
	t.Helper()
	for _, program := range []string{"iptables-", "ip6tables-"} {
		for line := range strings.Lines(nodetest.Run(t, program+string(flavour)+"-save", "-c")) {
			count, _, ok := strings.Cut(strings.TrimPrefix(line, "["), ":")
			if !ok || !strings.Contains(line, "--ctstate NEW -m mark ! --mark "+mark) {
				continue
			}
			n, err := strconv.Atoi(count)
			if err != nil {
				t.Fatalf("%q: %v", line, err)
			}
			packets, rules = packets+n, rules+1
		}
	}
	return packets, rules
}

// TestAPodsOwnMark: the mark that a pod sets on its packets (SO_MARK) doesn't change which packets arrive.
func TestAPodsOwnMark(t *testing.T) {
	if !nodetest.Isolated(t) {
		return
	}
	n, state := attached(t, []uint16{80}, pod("x", "web", "10.88.0.2"), pod("x", "client", "10.88.0.3"))
	web, client := state.Pods[0].Addresses[0], state.Pods[1].Addresses[0]
	state.Namespaces = []policy.Namespace{{Name: "x"}}
	n.Enforce(state)
	n.want("without a policy", to(web, client, 80), nil)
	for _, closed := range []string{"web", "client"} { // the policy selects the receiver, then the sender
		s := state
		s.Policies = append(s.Policies, networkPolicy(t, fmt.Sprintf(
			"{metadata: {namespace: x, name: np}, spec: {podSelector: {matchLabels: {app: %s}}, "+
				"policyTypes: [Ingress, Egress]}}", closed)))
		n.Enforce(s)
		for _, mark := range []int{0, 1 << 16, 1<<28 | 1<<16, 2 << 16, -1} {
			h := n.hosts[client]
			h.mark = mark
			n.want(fmt.Sprintf("closed: %s, mark %#x", closed, uint32(mark)), nil,
				append(to(web, client, 80), verdict.Packet{Src: client, Dst: web, Proto: ruleset.UDP, Port: 80}))
			h.mark = 0
		}
	}
}
