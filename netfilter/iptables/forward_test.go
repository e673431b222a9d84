package iptables

import (
	"os"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/weir-net/weir/conf"
	"github.com/weir-net/weir/netfilter"
	"github.com/weir-net/weir/policy"
	"github.com/weir-net/weir/policy/policytest"
	"github.com/weir-net/weir/policy/ruleset"
	"github.com/weir-net/weir/test/nodetest"
)

// TestLegacyForward: the chain FORWARD of iptables-legacy has weir's rules only while the chain drops packets by
// default. The rules come before a rule that refuses everything.
func TestLegacyForward(t *testing.T) {
	if !nodetest.Isolated(t) {
		return
	}
	rules := []ruleset.Rule{{In: conf.Bridge}, {Out: conf.Bridge}}
	for _, f := range conf.Families {
		program := Legacy.program(f)
		var l LegacyForward
		accept := func(wantChanged bool, want ...string) {
			t.Helper()
			for _, changes := range []bool{wantChanged, false} {
				before := nodetest.Run(t, program+"-save", "-t", "filter")
				l.Forget()
				l.Keep(t.Context(), f, rules)
				changed := rulesIn(nodetest.Run(t, program+"-save", "-t", "filter")) != rulesIn(before)
				if notes := l.Notes(); len(notes) > 0 || changed != changes {
					t.Errorf("changed %v, want %v, %q", changed, changes, notes)
				}
			}
			var got []string
			for line := range strings.Lines(nodetest.Run(t, program, "-S", "FORWARD")) {
				if rule, ok := strings.CutPrefix(line, "-A FORWARD "); ok {
					rule = strings.ReplaceAll(strings.TrimSpace(rule), `-m comment --comment "`+comment+`" -j ACCEPT`, "own")
					got = append(got, rule)
				}
			}
			if strings.Join(got, "; ") != strings.Join(want, "; ") {
				t.Errorf("%s: FORWARD has %q, want %q", program, got, want)
			}
		}
		if repaired := l.Keep(t.Context(), f, rules); repaired || len(l.Notes()) > 0 {
			t.Errorf("without a table: %v, %q", repaired, l.Notes())
		}
		if there, err := legacyExists(f, "filter"); there || err != nil {
			t.Errorf("the table filter of %s was made: %v", program, err)
		}
		nodetest.RunEach(t, program+" -A FORWARD -o docker0 -j ACCEPT")
		accept(false, "-o docker0 -j ACCEPT")
		nodetest.RunEach(t, program+" -P FORWARD DROP")
		accept(true, "-o docker0 -j ACCEPT", "-i weir0 own", "-o weir0 own")
		nodetest.RunEach(t, program+" -A FORWARD -j LOG", program+" -A FORWARD -j REJECT")
		accept(true, "-o docker0 -j ACCEPT", "-j LOG", "-i weir0 own", "-o weir0 own", refusal(f))
		nodetest.RunEach(t, program+" -D FORWARD 3")
		accept(true, "-o docker0 -j ACCEPT", "-j LOG", "-i weir0 own", "-o weir0 own", refusal(f))
		nodetest.RunEach(t, program+" -F FORWARD", program+" -P FORWARD ACCEPT", program+" -N all",
			program+" -A all -j DROP", program+" -A FORWARD -j all")
		accept(true, "-i weir0 own", "-o weir0 own", "-j all")
		nodetest.RunEach(t, program+" -D FORWARD -j all")
		accept(true)
		nodetest.RunEach(t, program+" -P FORWARD DROP")
		accept(true, "-i weir0 own", "-o weir0 own")
		nodetest.RunEach(t, program+" -D FORWARD 1")
		if l.Forget(); !l.Keep(t.Context(), f, rules) {
			t.Errorf("%s: a lost rule is no repair", program)
		}
		if l.Keep(t.Context(), f, rules[:1]) {
			t.Errorf("%s: other rules are a repair", program)
		}
		accept(true, "-i weir0 own", "-o weir0 own")
		d := driver(t, NFT)
		mustRemove(t, d)
		if err := d.CleanOtherFlavour(t.Context()); err != nil {
			t.Error(err)
		}
		// The node uses iptables-nft, so CleanOtherFlavour must keep these rules. It removes them only if the node
		// uses iptables-legacy.
		accept(false, "-i weir0 own", "-o weir0 own")
		d.Flavour = Legacy
		if err := d.CleanOtherFlavour(t.Context()); err != nil {
			t.Error(err)
		}
		if all := nodetest.Run(t, program, "-S"); strings.Contains(all, "weir") {
			t.Errorf("left after CleanOtherFlavour:\n%s", all)
		}
	}
}

// rulesIn leaves out iptables-save's comments, because they contain the time.
func rulesIn(saved string) string {
	return saved[strings.Index(saved, "*"):strings.LastIndex(saved, "#")]
}

// TestLegacyForwardNeverWaits: while another program has the lock of xtables, Keep doesn't wait for the lock, and a
// note names the lock. When the lock is free, Keep writes the rules. While the table then stays the same, Keep starts
// no program.
func TestLegacyForwardNeverWaits(t *testing.T) {
	if !nodetest.Isolated(t) {
		return
	}
	rules := []ruleset.Rule{{In: conf.Bridge}, {Out: conf.Bridge}}
	var l LegacyForward
	keep := func() time.Duration {
		began := time.Now()
		for _, f := range conf.Families {
			l.chains[f].again = time.Time{}
			l.Keep(t.Context(), f, rules)
		}
		return time.Since(began)
	}
	nodetest.RunEach(t, "iptables-legacy -P FORWARD DROP", "ip6tables-legacy -P FORWARD DROP")
	lock, err := os.OpenFile(xtablesLock, os.O_RDWR|os.O_CREATE, 0o600)
	if err == nil {
		err = unix.Flock(int(lock.Fd()), unix.LOCK_EX)
	}
	if err != nil {
		t.Fatal(err)
	}
	took := keep()
	for range 20 { // the quickest of several tries counts, because other processes may slow one down
		took = min(took, keep())
	}
	if took > legacyTime {
		t.Errorf("with a foreign lock, Keep takes %v", took)
	}
	notes := l.Notes()
	if len(notes) != 2 || !strings.Contains(notes[0].Message, "another program has locked /run/xtables.lock") {
		t.Errorf("with a foreign lock, the notes are %q", notes)
	}
	if err := lock.Close(); err != nil {
		t.Fatal(err)
	}
	keep()
	if len(l.Notes()) > 0 || strings.Count(nodetest.Run(t, "iptables-legacy", "-S"), "weir0") != 2 {
		t.Errorf("without the lock: %q", l.Notes())
	}
	l.Forget()
	keep() // Keep remembers the table that it has written
	l.Forget()
	l.chains[conf.IPv4].note = "the table could not be read"
	if keep(); len(l.Notes()) > 0 {
		t.Errorf("the table can be read again, and is as before: %q", l.Notes())
	}
	t.Setenv("PATH", t.TempDir())
	l.Forget()
	if keep(); len(l.Notes()) > 0 {
		t.Errorf("nothing has changed, and it needs programs: %q", l.Notes())
	}
}

// TestForwardOfLegacyBesideNFT: if the chain FORWARD of iptables-legacy drops packets by default, the driver for
// iptables-nft adds rules there that accept packets of pods and of chained pods. These rules don't make the node count
// as a node that uses iptables-legacy.
func TestForwardOfLegacyBesideNFT(t *testing.T) {
	if !nodetest.Isolated(t) {
		return
	}
	nodetest.RunEach(t, "iptables-legacy -P FORWARD DROP", "ip6tables-legacy -P FORWARD DROP")
	d := driver(t, NFT)
	want := policy.Compile(policytest.DualStack())
	chained := 0
	for _, f := range conf.Families {
		chained += chainedIn(want, f).Len()
	}
	mustApply(t, d, want, netfilter.All)
	accepted := func() int {
		return strings.Count(nodetest.Run(t, "sh", "-c", "iptables-legacy -S FORWARD; ip6tables-legacy -S FORWARD"), comment)
	}
	if n := accepted(); n != 4+2*chained {
		t.Errorf("%d rules accept packets of pods, want %d", n, 4+2*chained)
	}
	if f, err := detectFlavour(t.Context()); f != NFT || err != nil {
		t.Errorf("detected %s, %v", f, err)
	}
	nodetest.RunEach(t, "iptables-legacy -F FORWARD")
	if r := mustApply(t, d, want, netfilter.All); !r.Rules || accepted() != 4+2*chained {
		t.Errorf("after a loss: %+v, and %d rules", r, accepted())
	}
	if r := mustApply(t, d, want, netfilter.All); r.Rules || len(r.Notes) > 0 {
		t.Errorf("without a loss: %+v", r)
	}
	t.Run("without programs", func(t *testing.T) {
		path := t.TempDir()
		for _, program := range []string{
			"iptables-nft-save", "iptables-nft-restore", "ip6tables-nft-save",
			"ip6tables-nft-restore",
		} {
			if err := os.Symlink("/usr/sbin/"+program, path+"/"+program); err != nil {
				t.Fatal(err)
			}
		}
		nodetest.RunEach(t, "iptables-legacy -F FORWARD", "ip6tables-legacy -F FORWARD")
		t.Setenv("PATH", path)
		// An Apply with Trust returns the notes of the last Apply.
		for _, verify := range []netfilter.Verify{netfilter.All, netfilter.Trust} {
			if r := mustApply(t, d, want, verify); len(r.Notes) != 2 ||
				!strings.Contains(r.Notes[0].Message, "chain FORWARD of iptables-legacy drops forwarded packets of pods") {
				t.Errorf("%+v", r)
			}
		}
	})
	mustRemove(t, d)
	if n := accepted(); n > 0 {
		t.Errorf("%d rules are left after Remove", n)
	}
}

const comment = "weir: no other default drops what policy let through"

func refusal(f conf.Family) string {
	if f == conf.IPv6 {
		return "-j REJECT --reject-with icmp6-port-unreachable"
	}
	return "-j REJECT --reject-with icmp-port-unreachable"
}

// TestLegacyForwardWithoutPrograms: if the programs of iptables-legacy are missing, a note says with which commands
// an administrator can make the chain accept pods' packets. After these commands, the note is gone.
func TestLegacyForwardWithoutPrograms(t *testing.T) {
	if !nodetest.Isolated(t) {
		return
	}
	rules := []ruleset.Rule{{In: conf.Bridge}, {Out: conf.Bridge}}
	for _, f := range conf.Families {
		program := Legacy.program(f)
		for _, commands := range [][]string{
			{program + " -P FORWARD DROP"},
			{program + " -P FORWARD ACCEPT", program + " -A FORWARD -p tcp -j DROP", program + " -A FORWARD -j DROP"},
		} {
			nodetest.RunEach(t, program+" -F FORWARD", program+" -P FORWARD ACCEPT", program+" -A FORWARD -p udp -j DROP")
			ask := func() (problem string) {
				t.Helper()
				path := t.TempDir()
				t.Run("without programs", func(t *testing.T) {
					t.Setenv("PATH", path)
					var l LegacyForward
					if l.Keep(t.Context(), f, rules) {
						t.Error("it counts as a repair")
					}
					for _, n := range l.Notes() {
						problem += n.Message
					}
				})
				return problem
			}
			if problem := ask(); problem != "" {
				t.Errorf("%s doesn't drop all packets, and the problem is %q", program, problem)
			}
			nodetest.RunEach(t, commands...)
			_, hint, ok := strings.Cut(ask(), "accept them with: ")
			if !ok {
				t.Errorf("no problem after %q", commands)
				continue
			}
			nodetest.Run(t, "sh", "-c", hint)
			if problem := ask(); problem != "" {
				t.Errorf("after %s, the problem is %q", hint, problem)
			}
		}
	}
}
