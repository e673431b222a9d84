package nodetest

import (
	"slices"
	"strings"
	"testing"
)

// disturbances are an administrator's settings that disturb packets over the loopback link. An empty string is for a
// command that takes no family.
var disturbances = []struct {
	name     string
	commands []string // "IPTABLES" stands for the programs of both families, ruled by the caller's flavour
}{
	{"NOTRACK", []string{
		"IPTABLES -t raw -A OUTPUT -o lo -j NOTRACK", "IPTABLES -t raw -A PREROUTING -i lo -j NOTRACK",
	}},
	{"notrack of nftables", []string{
		"nft add table inet others",
		"nft add chain inet others out { type filter hook output priority raw; }",
		"nft add rule inet others out meta l4proto udp notrack",
	}},
	{"zones of connection tracking", []string{
		"IPTABLES -t raw -A OUTPUT -m statistic --mode nth --every 2 --packet 0 -j CT --zone 5",
	}},
	{"DROP in OUTPUT", []string{"IPTABLES -P OUTPUT DROP"}},
	{"DROP in INPUT", []string{"IPTABLES -P INPUT DROP"}},
	{"DROP of most packets", []string{
		"IPTABLES -A INPUT -p udp -m limit --limit 2/second --limit-burst 5 -j RETURN", "IPTABLES -A INPUT -p udp -j DROP",
	}},
	{"an early drop of nftables", []string{
		"nft add table inet others",
		"nft add chain inet others in { type filter hook prerouting priority -450; }",
		"nft add rule inet others in iifname lo drop",
	}},
	{"marks", []string{"IPTABLES -t mangle -A OUTPUT -j MARK --set-mark 0xffffffff"}},
	{"other destinations", []string{"IPTABLES -t nat -A OUTPUT -o lo -p udp -j REDIRECT --to-ports 9"}},
	{"other sources", []string{"IPTABLES -t nat -A POSTROUTING -o lo -p udp -j MASQUERADE --to-ports 20000-30000"}},
	{"rp_filter", []string{"sysctl -w net.ipv4.conf.all.rp_filter=1", "sysctl -w net.ipv4.conf.lo.rp_filter=1"}},
	{"no loopback link", []string{"ip link set lo down"}},
}

// EachDisturbance runs f in a subtest for each setting of an administrator that disturbs packets over the loopback
// link. The rules come by the flavour of iptables, such as "nft". Each setting is undone afterwards.
func EachDisturbance(t *testing.T, flavour string, f func(t *testing.T)) {
	t.Helper()
	for _, d := range disturbances {
		t.Run(flavour+" "+d.name, func(t *testing.T) {
			defer RunEach(t, undo...)
			for _, c := range d.commands {
				if rest, ok := strings.CutPrefix(c, "IPTABLES "); ok {
					RunEach(t, "iptables-"+flavour+" "+rest, "ip6tables-"+flavour+" "+rest)
					continue
				}
				RunEach(t, c)
			}
			f(t)
		})
	}
}

var undo = slices.Concat([]string{
	"nft flush ruleset", "sysctl -w net.ipv4.conf.all.rp_filter=0", "sysctl -w net.ipv4.conf.lo.rp_filter=0",
	"ip link set lo up",
}, legacyUndone("iptables-legacy"), legacyUndone("ip6tables-legacy"))

func legacyUndone(program string) (commands []string) {
	for _, table := range []string{"raw", "mangle", "nat", "filter"} {
		commands = append(commands, program+" -t "+table+" -F")
	}
	return append(commands, program+" -P INPUT ACCEPT", program+" -P OUTPUT ACCEPT")
}
