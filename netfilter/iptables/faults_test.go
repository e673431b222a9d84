package iptables

import (
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"testing"

	networkingv1 "k8s.io/api/networking/v1"

	"github.com/weir-net/weir/conf"
	"github.com/weir-net/weir/netfilter"
	"github.com/weir-net/weir/policy"
	"github.com/weir-net/weir/policy/policytest"
	"github.com/weir-net/weir/test/nodetest"
)

// TestFault8OneTransactionForAllChanges: one run of iptables-restore makes all changes of rules. If pods of other nodes
// are added, or a pod's labels change, the driver runs no program. weave-npc ran a program for each change.
func TestFault8OneTransactionForAllChanges(t *testing.T) {
	if !nodetest.Isolated(t) {
		return
	}
	dir, calls := t.TempDir(), "/run/calls"
	for _, program := range []string{"iptables-nft", "iptables-nft-save", "iptables-nft-restore", "ipset"} {
		script := fmt.Sprintf("#!/bin/sh\necho %s >>%s\nPATH=${PATH#*:} exec %s \"$@\"\n", program, calls, program)
		// The driver starts this program in advance. So the script counts only runs that get commands.
		if program == "iptables-nft-restore" {
			script = fmt.Sprintf("#!/bin/sh\nread -r first || exit 0\necho %s >>%s\n{ printf '%%s\\n' \"$first\"; cat; } "+
				"| PATH=${PATH#*:} %s \"$@\"\n",
				program, calls, program)
		}
		if err := os.WriteFile(filepath.Join(dir, program), []byte(script), 0o700); err != nil {
			t.Fatal(err)
		}
	}
	t.Setenv("PATH", dir+":"+os.Getenv("PATH"))
	d := driver(t, NFT)
	mustApply(t, d, policy.Compile(policy.State{}), netfilter.All)
	ran := func(s policy.State) string {
		t.Helper()
		if err := os.WriteFile(calls, nil, 0o600); err != nil {
			t.Fatal(err)
		}
		mustApply(t, d, policy.Compile(s), netfilter.Trust)
		data, err := os.ReadFile(calls)
		if err != nil {
			t.Fatal(err)
		}
		return strings.TrimSpace(string(data))
	}
	var s policy.State
	add := func(name, addr string, here bool) {
		a := netip.MustParseAddr(addr)
		s.Pods = append(s.Pods, policy.Pod{
			Namespace: "x",
			Name:      name,
			Labels:    map[string]string{"app": name, "number": "7"},
			Addresses: []netip.Addr{a},
		})
		if here {
			s.Endpoints = append(s.Endpoints, policy.Endpoint{
				ID: name + ":eth0", Enforcement: conf.Strict, Pod: policy.PodRef{Namespace: "x", Name: name},
				Addresses: []policy.Address{{Addr: a, Subnet: policytest.Of[conf.IPv4].Subnet}},
			})
		}
	}
	add("a", "10.88.0.2", true)
	add("b", "10.88.0.3", true)
	for i := range 100 { // two policies for each pod of this node, and 96 for pods elsewhere
		app := map[int]string{0: "a", 1: "a", 2: "b", 3: "b"}[i]
		if app == "" {
			app = "elsewhere"
		}
		s.Policies = append(s.Policies,
			policytest.Letting(fmt.Sprint("np-", i), map[string]string{"app": app}, policytest.Selectors(10*i, 10)))
	}
	if got := ran(s); got != "iptables-nft-restore" {
		t.Errorf("100 policies came, and it ran %q", got)
	}
	rules := nodetest.Run(t, "iptables-nft-save", "-t", "mangle")
	if n := strings.Count(rules, "-j RETURN"); n > 60 || n < 40 {
		t.Errorf("%d rules let something through, want those of the two pods' own policies, 40, and weir's own:\n%s", n,
			rules)
	}
	if strings.Contains(rules, "np-4 ") {
		t.Errorf("a policy that selects no pod here has rules:\n%s", rules)
	}
	add("c", "10.88.0.4", false)
	add("d", "10.88.0.5", false)
	s.Pods[0].Labels = map[string]string{"app": "a"}
	if got := ran(s); got != "" {
		t.Errorf("pods came and changed, and it ran %q", got)
	}
	s.Policies = []*networkingv1.NetworkPolicy{
		policytest.Letting("other", map[string]string{"app": "a"}, policytest.Selectors(0, 3)),
	}
	if got := ran(s); got != "iptables-nft-restore" {
		t.Errorf("100 policies went and one came, and it ran %q", got)
	}
}
