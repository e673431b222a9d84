package nodetest

import (
	_ "embed"
	"os"
	"regexp"
	"strings"
	"testing"
)

// Most tests run with either backend, which WEIR_BACKEND names. These functions return the names and commands of that
// backend.

// Nftables reports whether agents in tests use the backend nftables.
func Nftables() bool { return os.Getenv(backendEnv) == "nftables" }

// AboutIptables is for a test about iptables' own tables: its agents use the backend iptables in any case.
func AboutIptables(t *testing.T) {
	t.Helper()
	t.Setenv(backendEnv, "iptables")
}

var (
	listedSet      = regexp.MustCompile(`(?s)(?:set|map) (\S+) \{(.*?)\n\t\}`)
	listedElements = regexp.MustCompile(`(?s)elements = \{ (.*) \}`)
	listedElement  = regexp.MustCompile(`(?:"[^"]*"|[^,"\s])(?:"[^"]*"|[^,"])*`)
)

// ListSets lists weir's sets. Each element is a line that begins with its address.
func ListSets() (string, error) {
	if !Nftables() {
		return Try("ipset", "list")
	}
	var b strings.Builder
	for _, family := range []string{"ip", "ip6"} {
		text, err := Try("nft", "list", "table", family, "weir")
		if err != nil && family == "ip6" { // a node without IPv6 pods has no such table
			continue
		}
		if err != nil {
			return "", err
		}
		for _, set := range listedSet.FindAllStringSubmatch(text, -1) {
			b.WriteString("Name: " + set[1] + "\n")
			for _, elements := range listedElements.FindAllStringSubmatch(set[2], -1) {
				b.WriteString(strings.Join(listedElement.FindAllString(elements[1], -1), "\n") + "\n")
			}
		}
	}
	return b.String(), nil
}

//go:embed testdata/flush-checks
var flushChecks string

// ListChecks lists the rules that check IPv4 packets, and perhaps other rules.
func ListChecks() (string, error) {
	if Nftables() {
		return Try("nft", "list", "table", "ip", "weir")
	}
	return Try("iptables-nft-save")
}

// FlushChecks is the command after which no rule checks IPv4 packets. Connections are still tracked, because the
// rules that masquerade stay.
func FlushChecks() string {
	if Nftables() {
		return "nft flush chain ip weir WEIR-FORWARD; flush chain ip weir WEIR-INPUT"
	}
	return strings.TrimSpace(flushChecks)
}

// PodSet is the name of the set of the node's IPv4 pods, as weir's messages have it.
const PodSet = "weir-pods"

func setIn(set, address string) string {
	if strings.Contains(address, ":") {
		return "ip6 weir " + set + "6"
	}
	return "ip weir " + set
}

// TakeOutOf is the command that takes an address out of a set of weir's.
func TakeOutOf(set, address string) string {
	if Nftables() {
		return "nft delete element " + setIn(set, address) + " { " + address + " }"
	}
	return "ipset del " + strings.Fields(setIn(set, address))[2] + " " + address
}

// PutInto is the command that puts an address into a set of weir's. In weir-in and weir-eg, the entry is that of a
// pod which no policy isolates.
func PutInto(set, address string) string {
	class := set == "weir-in" || set == "weir-eg"
	switch {
	case Nftables() && class:
		return "nft add element " + setIn(set, address) + " { " + address + " : return }"
	case Nftables():
		return "nft add element " + setIn(set, address) + " { " + address + " }"
	}
	command := "ipset add " + strings.Fields(setIn(set, address))[2] + " " + address
	switch set {
	case "weir-in":
		command += " skbmark 0x10010000/0x1fff0000"
	case "weir-eg":
		command += " skbmark 0x10000/0x1fff0000"
	}
	return command
}
