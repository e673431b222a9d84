package nodetest

import (
	_ "embed"
	"os"
	"regexp"
	"strings"
	"testing"
)

// WEIR_BACKEND names the backend with which tests run. The functions in this file return the names and commands of this
// backend.

func Nftables() bool { return os.Getenv(backendEnv) == "nftables" }

// AboutIptables makes a test's agents use the backend iptables. It is for tests about iptables' own tables.
func AboutIptables(t *testing.T) {
	t.Helper()
	t.Setenv(backendEnv, "iptables")
}

var (
	listedSet      = regexp.MustCompile(`(?s)(?:set|map) (\S+) \{(.*?)\n\t\}`)
	listedElements = regexp.MustCompile(`(?s)elements = \{ (.*) \}`)
	listedElement  = regexp.MustCompile(`(?:"[^"]*"|[^,"\s])(?:"[^"]*"|[^,"])*`)
)

// ListSets lists weir's sets. The line of each element begins with the element's address.
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

// ListChecks lists rules: at least all rules that check IPv4 packets.
func ListChecks() (string, error) {
	if Nftables() {
		return Try("nft", "list", "table", "ip", "weir")
	}
	return Try("iptables-nft-save")
}

// FlushChecks returns the command that deletes all rules which check IPv4 packets. Rules that masquerade stay, so that
// connections are still tracked.
func FlushChecks() string {
	if Nftables() {
		return "nft flush chain ip weir WEIR-FORWARD; flush chain ip weir WEIR-INPUT"
	}
	return strings.TrimSpace(flushChecks)
}

// PodSet is the name of the set with the IPv4 addresses of the node's pods. Both backends use this name.
const PodSet = "weir-pods"

func setIn(set, address string) string {
	if strings.Contains(address, ":") {
		return "ip6 weir " + set + "6"
	}
	return "ip weir " + set
}

// TakeOutOf returns the command that deletes an address from one of weir's sets. An IPv6 address is in the set's IPv6
// counterpart, whose name has a 6 at its end.
func TakeOutOf(set, address string) string {
	if Nftables() {
		return "nft delete element " + setIn(set, address) + " { " + address + " }"
	}
	return "ipset del " + strings.Fields(setIn(set, address))[2] + " " + address
}

// PutInto returns the command that adds an address to one of weir's sets. In weir-in and weir-eg, the entry is like
// that of a pod that no policy isolates.
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
