package iptables

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/weir-net/weir/conf"
	"github.com/weir-net/weir/test/nodetest"
)

// TestLacksNothing: this kernel has all that weir needs. A trial in the node's own namespace leaves nothing behind.
func TestLacksNothing(t *testing.T) {
	if !nodetest.Isolated(t) {
		return
	}
	nodetest.Outside(t) // gives the node an address of IPv6
	for _, flavour := range []Flavour{NFT, Legacy} {
		for _, f := range conf.Families {
			if lacks := lacksIn(t.Context(), flavour, f); len(lacks) > 0 {
				t.Errorf("%s: the node lacks %q", flavour.program(f), lacks)
			}
		}
	}
	left := nodetest.Run(t, "sh", "-c", "iptables-nft-save; ip6tables-nft-save; iptables-legacy-save; "+
		"ip6tables-legacy-save; ipset list -name")
	if strings.Contains(strings.ToLower(left), conf.TrialSet) {
		t.Errorf("the trials have left:\n%s", left)
	}
	began := time.Now()
	if lacks := Lacks(t.Context()); lacks != nil {
		t.Errorf("the node lacks %q", lacks)
	}
	t.Logf("a trial took %v", time.Since(began))
}

// TestLacks: if iptables-restore leaves rules out without an error, or refuses them, lacksIn names what the node
// lacks.
func TestLacks(t *testing.T) {
	if !nodetest.Isolated(t) {
		return
	}
	original, err := exec.LookPath("iptables-nft-restore")
	if err != nil {
		t.Fatal(err)
	}
	dir := t.TempDir()
	t.Setenv("PATH", dir+":"+os.Getenv("PATH"))
	for _, tc := range []struct {
		name, script string
		want         []string // parts of what the node lacks, in order
	}{
		{"nothing", `exec %s "$@"`, nil},
		{"silent sets", `sed "/-m set/d" | %s "$@"`, []string{
			"sets of addresses (", "outside of a set (", "sets of networks (", "sets of addresses with links (",
			"sets of ports (", "sets of addresses with ports (",
		}},
		{"silent states", `sed "/--ctstate ESTABLISHED/d" | %s "$@"`, []string{"connection tracking with labels ("}},
		{"silent lists", `sed "/multiport/d" | %s "$@"`, []string{"lists of ports ("}},
		{"nothing is written", `cat >/dev/null`, []string{"rules that drop packets ("}},
		{"refused labels", `text=$(cat); case "$text" in *connlabel*) echo "no connlabel: load it" >&2; exit 1;; esac
			echo "$text" | %s "$@"`, []string{
			`like -p udp -m conntrack --ctstate ESTABLISHED -m connlabel`, `-m connlabel --label`,
		}},
		{"refused masquerading", `text=$(cat); case "$text" in *MASQ*) echo "can't load MASQUERADE" >&2; exit 1;; esac
			echo "$text" | %s "$@"`, []string{"rules that masquerade: can't load MASQUERADE"}},
		{"no program", `exit 127`, []string{"iptables-nft-restore"}},
	} {
		script := tc.script
		if strings.Contains(script, "%s") {
			script = fmt.Sprintf(script, original)
		}
		program := []byte("#!/bin/sh\n" + script + "\n")
		if err := os.WriteFile(filepath.Join(dir, "iptables-nft-restore"), program, 0o700); err != nil {
			t.Fatal(err)
		}
		got := lacksIn(t.Context(), NFT, conf.IPv4)
		ok := len(got) == len(tc.want)
		for i := range tc.want {
			ok = ok && strings.Contains(got[i], tc.want[i])
		}
		if !ok {
			t.Errorf("%s: the node lacks\n%s", tc.name, strings.Join(got, "\n"))
		}
	}
}
