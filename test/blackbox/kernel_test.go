package blackbox

import (
	"bytes"
	"os"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/weir-net/weir/test/nodetest"
)

// Both backends run these tests: WEIR_BACKEND names one. The helpers here do the same in the kernel's words of the
// backend in use.

// onNftables reports whether the tests' agents use nftables.
func onNftables() bool { return os.Getenv("WEIR_BACKEND") == "nftables" }

// aboutIptables is for a test about the tables of iptables itself: its agent uses the backend iptables in any case.
func aboutIptables(t *testing.T) {
	t.Helper()
	if onNftables() {
		t.Setenv("WEIR_BACKEND", "iptables")
	}
}

// podSet lists the set of the node's IPv4 pods.
func podSet() (string, error) {
	if onNftables() {
		return nodetest.Try("nft", "list", "set", "ip", "weir", "weir-pods")
	}
	return nodetest.Try("ipset", "list", "weir-pods")
}

// addToPodSet adds an IPv4 address to the set of the node's pods.
func addToPodSet(t *testing.T, address string) {
	t.Helper()
	if onNftables() {
		nodetest.Run(t, "nft", "add", "element", "ip", "weir", "weir-pods", "{", address, "}")
		return
	}
	nodetest.Run(t, "ipset", "add", "weir-pods", address)
}

// takeOut takes an IPv4 address out of all of weir's sets.
func takeOut(t testing.TB, address string) {
	t.Helper()
	if onNftables() {
		for _, set := range []string{"weir-pods", "weir-self", "weir-errors", "weir-in", "weir-eg"} {
			_, _ = nodetest.Try("nft", "delete", "element", "ip", "weir", set, "{", address, "}") // not all hold it
		}
		return
	}
	for _, set := range strings.Fields(nodetest.Run(t, "ipset", "list", "-name")) {
		_, _ = nodetest.Try("ipset", "del", set, address) // most sets don't hold it
	}
}

// disturbRules adds a rule of another program to a chain with rules of weir's and deletes it. The kernel reports both
// changes to the agent.
func disturbRules() {
	table, place := "mangle", "-A"
	if onNftables() {
		table, place = "filter", "-I" // weir's rules there stay the last ones
	}
	rule := []string{"FORWARD", "-s", "203.0.113.1", "-j", "ACCEPT"}
	for _, verb := range []string{place, "-D"} {
		_, _ = nodetest.Try("iptables-nft", append([]string{"-w", "-t", table, verb}, rule...)...)
	}
}

// flushChecks removes the rules that check IPv4 packets.
func flushChecks(t *testing.T) {
	t.Helper()
	if onNftables() {
		nodetest.Run(t, "nft", "flush", "table", "ip", "weir")
		return
	}
	nodetest.Run(t, "iptables-nft", "-t", "mangle", "-F")
}

// checks returns the rules that check IPv4 packets.
func checks() (string, error) {
	if onNftables() {
		return nodetest.Try("nft", "list", "table", "ip", "weir")
	}
	return nodetest.Try("iptables-nft", "-t", "mangle", "-S")
}

// Kinds of requests of nf_tables (enum nf_tables_msg_types).
const (
	newRule    = 6
	newSet     = 9
	newElement = 12
)

// refuseRequests makes nf_tables refuse requests of the kind with the bytes, of programs that start from now on, until
// the file /run/loaded exists.
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
