package iptables

import (
	"fmt"
	"os/exec"
	"runtime"
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

// TestPrint: in mangle and filter, each change of a rule or chain changes the fingerprint. In nat, only changes in
// POSTROUTING and in weir's chains change the fingerprint. Counters of rules never change it.
func TestPrint(t *testing.T) {
	if !nodetest.Isolated(t) {
		return
	}
	for _, flavour := range []Flavour{NFT, Legacy} {
		d := driver(t, flavour)
		mustApply(t, d, policy.Compile(policytest.DualStack()), netfilter.All)
		services(t, flavour, 20)
		was := table{rules: map[string][]string{"WEIR-POSTROUTING": nil}}
		for _, f := range conf.Families {
			program := flavour.program(f)
			run := func(args string) {
				t.Helper()
				words := strings.Fields(args)
				for i := range words {
					words[i] = strings.ReplaceAll(words[i], "_", " ")
				}
				nodetest.Run(t, program, words...)
			}
			prints := func() (all [3]fingerprint) {
				t.Helper()
				for i, table := range tablesUsed {
					var err error
					if all[i], err = d.print(f, table, was); err != nil || all[i] == "" {
						t.Fatalf("%s %s: %q, %v", program, table, all[i], err)
					}
				}
				return all
			}
			before := prints()
			for _, tc := range []struct {
				change  string
				changed [3]bool
			}{
				{"-t mangle -Z", [3]bool{}},
				{"-t nat -Z", [3]bool{}},
				{"-t nat -A KUBE-SERVICES -p tcp -j KUBE-SVC-1", [3]bool{}},
				{"-t nat -N A-FIRST", [3]bool{}},
				{"-t nat -N B-SECOND", [3]bool{}},
				{"-t nat -A A-FIRST -j RETURN", [3]bool{}},
				{"-t nat -A PREROUTING -j KUBE-SERVICES", [3]bool{}},
				{"-t nat -I POSTROUTING 1 -j A-FIRST", [3]bool{2: true}},
				{"-t nat -R POSTROUTING 1 -j B-SECOND", [3]bool{2: true}},
				{"-t nat -A POSTROUTING -p tcp", [3]bool{2: true}},
				{"-t nat -I WEIR-POSTROUTING 1 -j RETURN", [3]bool{2: true}},
				{"-t nat -D WEIR-POSTROUTING 1", [3]bool{2: true}},
				{"-t nat -F WEIR-POSTROUTING", [3]bool{2: true}},
				{"-t mangle -I FORWARD 1 -j ACCEPT", [3]bool{0: true}},
				{"-t mangle -R FORWARD 1 -j DROP", [3]bool{0: true}},
				{"-t mangle -D WEIR-FORWARD 1", [3]bool{0: true}},
				{"-t mangle -I WEIR-FORWARD 1 -p tcp -m tcp --dport 1", [3]bool{0: true}},
				{"-t mangle -R WEIR-FORWARD 1 -p tcp -m tcp --dport 2", [3]bool{0: true}},
				{"-t mangle -R WEIR-FORWARD 1 -p tcp -m comment --comment a", [3]bool{0: true}},
				{"-t mangle -R WEIR-FORWARD 1 -p tcp -m comment --comment b", [3]bool{0: true}},
				{"-t mangle -A WEIR-FORWARD -i weir0 -g WEIR-INPUT", [3]bool{0: true}},
				{"-t mangle -N SOMEBODY", [3]bool{0: true}},
				{"-t mangle -A SOMEBODY -j ACCEPT", [3]bool{0: true}},
				{"-A FORWARD -j DROP", [3]bool{1: true}},
			} {
				run(tc.change)
				now := prints()
				for i, table := range tablesUsed {
					if (now[i] != before[i]) != tc.changed[i] {
						t.Errorf("after %s %s, the print of %s has changed: %v, want %v", program, tc.change, table,
							now[i] != before[i], tc.changed[i])
					}
				}
				before = now
			}
		}
		mustRemove(t, d)
	}
}

func services(t testing.TB, flavour Flavour, count int) {
	t.Helper()
	for _, f := range conf.Families {
		var rules strings.Builder
		rules.WriteString("*nat\n:KUBE-SERVICES - [0:0]\n-A PREROUTING -j KUBE-SERVICES\n-A OUTPUT -j KUBE-SERVICES\n")
		ip := []string{"172.30.%d.%d", "fd00:30::%d:%d"}[f]
		for i := range count {
			fmt.Fprintf(&rules, ":KUBE-SVC-%d - [0:0]\n:KUBE-SEP-%d - [0:0]\n", i, i)
			fmt.Fprintf(&rules, "-A KUBE-SERVICES -d "+ip+" -p tcp -m comment --comment \"ns-%d/service\" -m tcp --dport 80 "+
				"-j KUBE-SVC-%d\n", i/250, 1+i%250, i, i)
			fmt.Fprintf(&rules, "-A KUBE-SVC-%d -m comment --comment \"ns-%d/service\" -m statistic --mode random "+
				"--probability 0.5 -j KUBE-SEP-%d\n", i, i, i)
			fmt.Fprintf(&rules, "-A KUBE-SEP-%d -p tcp -j MARK --set-xmark 0x4000/0x4000\n"+
				"-A KUBE-SEP-%d -p tcp -m tcp -j DNAT --to-destination :80\n", i, i)
		}
		restore := exec.Command(flavour.program(f)+"-restore", "--noflush")
		restore.Stdin = strings.NewReader(rules.String() + "COMMIT\n")
		if out, err := restore.CombinedOutput(); err != nil {
			t.Fatalf("%s-restore: %v: %s", flavour.program(f), err, out)
		}
	}
}

// BenchmarkReadAmongServices measures the time to read weir's state among the rules of 4,000 Services. The first
// reading uses iptables-save. Before each further reading, another program changes nat.
func BenchmarkReadAmongServices(b *testing.B) {
	for _, flavour := range []Flavour{NFT, Legacy} {
		b.Run(string(flavour), func(b *testing.B) {
			runtime.LockOSThread() // never unlocked, so that the thread and its network namespace end with the benchmark
			if err := unix.Unshare(unix.CLONE_NEWNET); err != nil {
				b.Fatal(err)
			}
			services(b, flavour, 4000)
			d, err := New(b.Context())
			if err != nil {
				b.Fatal(err)
			}
			defer d.Close()
			d.Flavour = flavour
			if _, err := d.Apply(b.Context(), policy.Compile(policytest.DualStack()), netfilter.All); err != nil {
				b.Fatal(err)
			}
			read := func() time.Duration {
				began := used(b)
				if err := d.Read(b.Context()); err != nil {
					b.Fatal(err)
				}
				return used(b) - began
			}
			b.Logf("as text: %s of processor time", read())
			var sum time.Duration
			change := [2]string{"-A", "-D"}
			for i := 0; b.Loop(); i++ {
				b.StopTimer()
				out, err := exec.Command(flavour.program(conf.IPv4), "-t", "nat", change[i%2], "KUBE-SERVICES", "-p", "udp").
					CombinedOutput()
				if err != nil {
					b.Fatalf("%v: %s", err, out)
				}
				b.StartTimer()
				sum += read()
			}
			b.ReportMetric(float64(sum.Microseconds())/1000/float64(b.N), "ms-CPU/op")
		})
	}
}

func used(b *testing.B) time.Duration {
	b.Helper()
	var sum time.Duration
	for _, who := range []int{unix.RUSAGE_SELF, unix.RUSAGE_CHILDREN} {
		var u unix.Rusage
		if err := unix.Getrusage(who, &u); err != nil {
			b.Fatal(err)
		}
		sum += time.Duration(u.Utime.Nano() + u.Stime.Nano())
	}
	return sum
}
