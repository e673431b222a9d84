package agent

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/weir-net/weir/netfilter"
	"github.com/weir-net/weir/test/nodetest"
)

// TestWhatIsUnknown: if a part of the packet filter can't be read, the node isn't ready and no pod is enrolled.
func TestWhatIsUnknown(t *testing.T) {
	if !nodetest.Isolated(t) {
		return
	}
	dir := t.TempDir()
	script := "#!/bin/sh\n[ -f /run/iptables-nft-save ] && . /run/iptables-nft-save\n" +
		"PATH=${PATH#*:} exec iptables-nft-save \"$@\"\n"
	if err := os.WriteFile(filepath.Join(dir, "iptables-nft-save"), []byte(script), 0o700); err != nil {
		t.Fatal(err)
	}
	t.Setenv("PATH", dir+":"+os.Getenv("PATH"))
	sh := func(line string) {
		t.Helper()
		nodetest.Run(t, "sh", "-c", line)
	}
	r := start(t)
	r.attach("web", "10.88.0.2")
	r.tell(healthy(), nil)
	r.wantMetrics(map[string]float64{"weir_ready": 1})
	for _, tc := range []struct {
		what, unknown, known string // unknown is a command after which the agent can't read the part; known undoes it
		part, says           string
	}{
		{
			"a table, as iptables-save fails", `echo 'echo no >&2; exit 1' >/run/iptables-nft-save`, `rm /run/iptables-nft-save`,
			"kernel", "table mangle of iptables-nft can't be read: iptables-nft-save -t mangle: exit status 1: no",
		},
		{
			"a table, as iptables-save prints nothing and succeeds", `echo 'exit 0' >/run/iptables-nft-save`,
			`rm /run/iptables-nft-save`,
			"kernel", "table filter of iptables-nft can't be read",
		},
		{
			"a table, of which iptables-save prints a part and succeeds",
			`echo 'echo "*$2"; echo ":FORWARD ACCEPT [0:0]"; exit 0' >/run/iptables-nft-save`, `rm /run/iptables-nft-save`,
			"kernel", "table nat of iptables-nft can't be read",
		},
		{
			"the sets, one of which isn't of a type of weir's",
			`ipset create x hash:ip; ipset create y list:set; ipset add y x; ipset rename y weir-x`,
			// While the agent lists a set, the kernel doesn't destroy it.
			`until ipset destroy weir-x; do :; done; ipset destroy x`, "kernel", "list ipset weir-x",
		},
	} {
		t.Run(tc.what, func(t *testing.T) {
			sh(tc.unknown)
			// The agent reads a table again only if the table's rules have changed. These rules change all three tables.
			sh(`for c in mangle\ FORWARD filter\ FORWARD nat\ POSTROUTING; do nft add rule ip $c counter; done`)
			metric := `weir_fault{part="` + tc.part + `"}`
			r.wantMetrics(map[string]float64{"weir_ready": 0, metric: 1})
			r.eventually("the status says "+tc.says, func() error {
				if s := statusNow(t); s.Ready || !strings.Contains(strings.Join(s.Errors, "\n"), tc.says) {
					return fmt.Errorf("%v, %v", s.Ready, s.Errors)
				}
				return nil
			})
			// Although a part can't be read, the agent puts weir's rule first again.
			sh(`nft insert rule ip mangle FORWARD counter accept`)
			r.eventually("weir's rule is first", func() error {
				out := nodetest.Run(t, "sh", "-c", "nft list chain ip mangle FORWARD 2>/dev/null | grep counter")
				if first, _, _ := strings.Cut(out, "\n"); !strings.Contains(first, "jump WEIR-FORWARD") ||
					strings.Count(out, "WEIR-FORWARD") != 1 {
					return errors.New(out)
				}
				return nil
			})
			sh(`nft delete rule ip mangle FORWARD handle $(nft -a list chain ip mangle FORWARD 2>/dev/null ` +
				`| sed -n 's/.* accept.* handle //p')`)
			failures := r.metrics()["weir_kernel_failures_total"]
			r.eventually("the agent tries again", func() error {
				if now := r.metrics()["weir_kernel_failures_total"]; now < failures+3 {
					return fmt.Errorf("it has failed %v times, then %v", failures, now)
				}
				return nil
			})
			id := r.attach("new", "10.88.0.9")
			if v, err := r.enrol(id); err == nil {
				t.Errorf("a pod was enrolled: %+v", v)
			}
			if r.metrics()["weir_ready"] != 0 {
				t.Error("the agent takes the node for ready while it still doesn't know")
			}
			sh(tc.known)
			r.wantMetrics(map[string]float64{"weir_ready": 1, metric: 0})
			r.eventually("a pod is enrolled", func() error {
				_, err := r.enrol(r.attach("web", "10.88.0.2"))
				return err
			})
		})
	}
}

// TestConnectionsThatAreUnknown: if a walk through all connections fails, no pod is enrolled until another walk
// succeeds.
func TestConnectionsThatAreUnknown(t *testing.T) {
	if !nodetest.Isolated(t) {
		return
	}
	s := step(t, healthy())
	s.hear(netfilter.All)
	enrol := func() answer {
		t.Helper()
		id := s.attach("web", "10.88.0.2")
		e := &enrolment{ctx: t.Context(), id: id, deadline: time.Now(), answer: make(chan answer, 1)}
		s.takeEnrolment(e)
		s.reconcile(t.Context(), netfilter.Trust)
		return receive(s.T, e.answer)
	}
	s.takeWalk(walkResult{err: errors.New("list connections: no")})
	if s.status.Load().ready || s.status.Load().faults[partConnections] == nil || !s.cutting.due {
		t.Errorf("after a walk that has failed: %+v", s.status.Load().report())
	}
	if r := enrol(); r.status != 503 || !strings.Contains(r.Error, "list connections: no") {
		t.Errorf("a pod was enrolled: %+v", r)
	}
	if !s.cutting.walking {
		t.Fatal("the walk isn't tried again")
	}
	s.takeWalk(receive(s.T, s.cutting.results))
	if r := enrol(); r.status != 200 || !s.status.Load().ready {
		t.Errorf("after a walk that has not failed: %+v", r)
	}
}
