package iptables

import (
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/weir-net/weir/conf"
	"github.com/weir-net/weir/netfilter"
	"github.com/weir-net/weir/policy"
	"github.com/weir-net/weir/policy/policytest"
	"github.com/weir-net/weir/test/nodetest"
)

// TestRestorers: the driver starts iptables-restore before it needs the process. While the process waits for input, it
// doesn't lock the tables. The driver replaces a process that was killed, or that has the wrong flavour.
func TestRestorers(t *testing.T) {
	if !nodetest.Isolated(t) {
		return
	}
	d := driver(t, NFT)
	for _, f := range []Flavour{NFT, Legacy} { // in the second round, the waiting process has the wrong flavour
		d.Flavour = f
		chain := func(name string) error {
			return d.restoreFamily(t.Context(), conf.IPv4, "*mangle\n:"+name+" - [0:0]\nCOMMIT\n")
		}
		if err := chain("WEIR-A"); err != nil {
			t.Fatal(err)
		}
		waiting := d.ahead[conf.IPv4]
		if !waiting.runs() {
			t.Fatal("no program was started ahead")
		}
		nodetest.Run(t, "iptables-"+string(f), "-w", "60", "-t", "mangle", "-N", "SOMEBODY")
		if err := chain("WEIR-B"); err != nil {
			t.Fatal(err)
		}
		killed := d.ahead[conf.IPv4]
		if err := killed.cmd.Process.Kill(); err != nil {
			t.Fatal(err)
		}
		<-killed.ended
		if err := chain("WEIR-C"); err != nil {
			t.Fatalf("after the waiting program was killed: %v", err)
		}
		if err := d.restoreFamily(t.Context(), conf.IPv4, "*mangle\n-A NOBODY -j DROP\nCOMMIT\n"); err == nil ||
			!strings.Contains(err.Error(), "NOBODY") {
			t.Errorf("a chain that isn't there: %v", err)
		}
		have := nodetest.Run(t, "iptables-"+string(f)+"-save", "-t", "mangle")
		for _, want := range []string{"WEIR-A", "WEIR-B", "WEIR-C", "SOMEBODY"} {
			if !strings.Contains(have, ":"+want+" ") {
				t.Errorf("iptables-%s: no chain %s in\n%s", f, want, have)
			}
		}
	}
}

// TestChangesAreMade: when restoreFamily returns, the kernel has the change. If iptables-nft-restore is the real
// program, restoreFamily returns before the program ends. If iptables-nft-restore is a script, restoreFamily waits
// until the script ends.
func TestChangesAreMade(t *testing.T) {
	if !nodetest.Isolated(t) {
		return
	}
	dir := t.TempDir()
	t.Setenv("PATH", dir+":"+os.Getenv("PATH"))
	reads := "#!/bin/sh\nPATH=${PATH#*:}\ncommands=$(cat)\nprintf '%s\\n' \"$commands\" | iptables-nft-restore \"$@\"\n"
	for _, script := range []string{"", reads} {
		if script != "" {
			if err := os.WriteFile(filepath.Join(dir, "iptables-nft-restore"), []byte(script), 0o700); err != nil {
				t.Fatal(err)
			}
		}
		d := driver(t, NFT)
		for i, commands := range []string{":WEIR-A - [0:0]\n-A WEIR-A -j DROP", ":WEIR-A - [0:0]\n-X WEIR-A"} {
			if err := d.restoreFamily(t.Context(), conf.IPv4, "*mangle\n"+commands+"\nCOMMIT\n"); err != nil {
				t.Fatal(err)
			}
			has := strings.Contains(nodetest.Run(t, "nft", "list", "table", "ip", "mangle"), "WEIR-A")
			if has != (i == 0) {
				t.Errorf("with the program %q, after the change %q, the kernel has the chain: %v", script, commands, has)
			}
			r := d.spent[len(d.spent)-1]
			select {
			case <-r.ended:
				if script == "" {
					t.Error("restoreFamily has waited for the program's end")
				}
			default:
				if script != "" {
					t.Error("a program that reads ahead still runs")
				}
			}
		}
		ending := d.spent
		d.release()
		for _, r := range ending {
			if <-r.ended; r.err != nil {
				t.Errorf("the program %q: %v", script, r.err)
			}
		}
	}
}

// TestLateErrors: if a program fails after the kernel has its change, the driver reports the error once, and reads the
// kernel's state again.
func TestLateErrors(t *testing.T) {
	if !nodetest.Isolated(t) {
		return
	}
	d := driver(t, NFT)
	want := policy.Compile(policytest.DualStack())
	mustApply(t, d, want, netfilter.All)
	if err := d.restoreFamily(t.Context(), conf.IPv4, "*mangle\n-F WEIR-INGRESS\nCOMMIT\n"); err != nil {
		t.Fatal(err)
	}
	late := d.spent[len(d.spent)-1]
	if err := late.cmd.Process.Kill(); err != nil {
		t.Fatal(err)
	}
	d.release()
	for began := time.Now(); !d.Unread(); time.Sleep(time.Millisecond) {
		if time.Since(began) > time.Minute {
			t.Fatal("the kernel's state counts as known after a program has failed")
		}
	}
	if r := mustApply(t, d, want, netfilter.Trust); len(r.Late) != 1 || !r.Rules ||
		!strings.Contains(r.Late[0].Error(), "iptables-nft-restore") {
		t.Errorf("%+v", r)
	}
	if r := mustApply(t, d, want, netfilter.All); len(r.Late) > 0 || r.Rules || d.Unread() {
		t.Errorf("the next time: %+v", r)
	}
}

// TestNoChangeOutlivesTheDriver: if the driver's process is killed while iptables-restore waits for the lock,
// iptables-restore makes no change.
func TestNoChangeOutlivesTheDriver(t *testing.T) {
	const commands = "*mangle\n:WEIR-LATE - [0:0]\nCOMMIT\n"
	if os.Getenv("WEIR_KILLED_DRIVER") != "" {
		d := driver(t, Legacy)
		t.Fatal("restored: ", d.restoreFamily(t.Context(), conf.IPv4, commands))
	}
	if !nodetest.Isolated(t) {
		return
	}
	lock := lockXtables(t)
	killed := exec.CommandContext(t.Context(), "/proc/self/exe", "-test.run=^"+t.Name()+"$")
	killed.Env = append(os.Environ(), "WEIR_KILLED_DRIVER=1")
	if err := killed.Start(); err != nil {
		t.Fatal(err)
	}
	await := func(runs bool) {
		t.Helper()
		for range 6000 {
			running := false
			all, _ := filepath.Glob("/proc/[0-9]*/cmdline")
			for _, of := range all {
				words, _ := os.ReadFile(of)
				running = running || strings.HasPrefix(string(words), "iptables-legacy-restore\x00")
			}
			if running == runs {
				return
			}
			time.Sleep(10 * time.Millisecond)
		}
		t.Fatalf("the program runs: %v", !runs)
	}
	await(true)
	time.Sleep(200 * time.Millisecond) // enough time for the program to read its commands
	_ = killed.Process.Kill()
	_ = killed.Wait()
	if err := lock.Close(); err != nil {
		t.Fatal(err)
	}
	await(false)
	if have := nodetest.Run(t, "iptables-legacy-save", "-t", "mangle"); strings.Contains(have, "WEIR-LATE") {
		t.Errorf("a killed driver's change was made:\n%s", have)
	}
}

// TestTheLockIsTaken: if another program has the lock of xtables for longer than iptables-legacy-restore waits, the
// error says how to find that program.
func TestTheLockIsTaken(t *testing.T) {
	if !nodetest.Isolated(t) {
		return
	}
	lock := lockXtables(t)
	const commands = "*mangle\n:WEIR-LATE - [0:0]\nCOMMIT\n"
	restore := func() error {
		r, err := startRestorer(Legacy, conf.IPv4, "1")
		if err != nil {
			t.Fatal(err)
		}
		return r.carryOut(t.Context(), commands)
	}
	if err := restore(); err == nil || !strings.Contains(err.Error(), "fuser -v /run/xtables.lock") {
		t.Errorf("the error is %v", err)
	}
	if err := lock.Close(); err != nil {
		t.Fatal(err)
	}
	if err := restore(); err != nil {
		t.Error(err)
	}
}

// TestOffendingLine: an error quotes only the beginning of the program's output. It also quotes the beginning of the
// line that the output names by its number.
func TestOffendingLine(t *testing.T) {
	commands := "*mangle\n:WEIR-A - [0:0]\n-A WEIR-A -p sctp -j RETURN\n-A WEIR-A " + strings.Repeat("x", 5000) +
		"\nCOMMIT\n"
	for said, want := range map[string]string{
		"iptables-restore: line 3 failed": "line 3 is: -A WEIR-A -p sctp -j RETURN: ",
		"iptables-restore v1.8.9 (nf_tables): \nline 3: RULE_APPEND failed (No such file or directory): rule in " +
			"chain WEIR-A": "line 3 is: -A WEIR-A -p sctp -j RETURN: ",
		"iptables-restore v1.8.9 (nf_tables): unknown option\nError occurred at line: 3\n" +
			"Try `iptables-restore -h'": "line 3 is: -A WEIR-A -p sctp -j RETURN: ",
		"iptables-restore: line 99 failed":                  "",
		"line 99999999999999999999999 failed":               "",
		"Another app is currently holding the xtables lock": "",
		"": "",
		"iptables-restore v1.8.9 (legacy): line 5 failed":           "line 5 is: COMMIT: ",
		"iptables-restore v1.8.9 (nf_tables): line 0 failed":        "",
		"iptables-restore v1.8.9 (nf_tables): outline 3 was broken": "",
	} {
		if got := offending(said, commands); got != want {
			t.Errorf("%q: got %q, want %q", said, got, want)
		}
	}
	if got := offending("line 4 failed", commands); len(got) > 1200 {
		t.Errorf("a line of 5,000 bytes is quoted with %d", len(got))
	}
	var said output
	for range 1000 {
		if n, err := said.Write([]byte("line 4 failed\n")); n != 14 || err != nil {
			t.Fatal(n, err)
		}
	}
	if got := len(said.String()); got < 1000 || got > 1200 {
		t.Errorf("of 14,000 bytes that the program said %d are kept", got)
	}
}

func lockXtables(t *testing.T) *os.File {
	t.Helper()
	nodetest.Run(t, "iptables-legacy", "-t", "mangle", "-L")
	lock, err := os.OpenFile("/run/xtables.lock", os.O_RDWR|os.O_CREATE, 0o600)
	if err == nil {
		err = unix.Flock(int(lock.Fd()), unix.LOCK_EX)
	}
	if err != nil {
		t.Fatal(err)
	}
	return lock
}
