package blackbox

import (
	"bytes"
	"os"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/weir-net/weir/test/nodetest"
)

// podSet lists the set of the node's IPv4 pods.
func podSet() (string, error) {
	if nodetest.Nftables() {
		return nodetest.Try("nft", "list", "set", "ip", "weir", nodetest.PodSet)
	}
	return nodetest.Try("ipset", "list", nodetest.PodSet)
}

// takeOut removes an IPv4 address from weir's sets. With the backend iptables, it removes the address from all ipsets.
// With nftables, it removes the address from the sets in the list below.
func takeOut(t testing.TB, address string) {
	t.Helper()
	sets := []string{nodetest.PodSet, "weir-self", "weir-errors", "weir-in", "weir-eg"}
	if !nodetest.Nftables() {
		sets = strings.Fields(nodetest.Run(t, "ipset", "list", "-name"))
	}
	for _, set := range sets {
		command := strings.Fields(nodetest.TakeOutOf(set, address))
		_, _ = nodetest.Try(command[0], command[1:]...) // fails for sets that don't have the address
	}
}

// disturbRules adds another program's rule to a chain that also has weir's rules, and deletes it again. The kernel
// reports both changes to the agent.
func disturbRules() {
	table, place := "mangle", "-A"
	if nodetest.Nftables() {
		table, place = "filter", "-I" // weir's rules in this chain must stay the last ones
	}
	rule := []string{"FORWARD", "-s", "203.0.113.1", "-j", "ACCEPT"}
	for _, verb := range []string{place, "-D"} {
		_, _ = nodetest.Try("iptables-nft", append([]string{"-w", "-t", table, verb}, rule...)...)
	}
}

// These are kinds of nf_tables' requests (enum nf_tables_msg_types).
const (
	newRule    = 6
	newSet     = 9
	newElement = 12
)

// refuseRequests makes nf_tables refuse requests of this kind that contain the text, until the file /run/loaded exists.
// It affects only programs that are started afterwards.
func refuseRequests(t *testing.T, kind byte, with string) {
	t.Helper()
	nodetest.EditNetlink(t, true, func(message []byte) unix.Errno {
		const unknown = 0xff
		if message[5] != unix.NFNL_SUBSYS_NFTABLES || message[4] != kind || !bytes.Contains(message, []byte(with)) {
			return 0
		}
		if _, err := os.Stat("/run/loaded"); err != nil {
			message[4] = unknown
		}
		return 0
	})
}
