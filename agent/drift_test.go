package agent

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/weir-net/weir/test/nodetest"
)

// TestOwnChangesAreNotReadAgain: if the kernel announces the agent's own change, the agent doesn't read the tables
// again.
func TestOwnChangesAreNotReadAgain(t *testing.T) {
	if !nodetest.Isolated(t) {
		return
	}
	reads := countReads(t)
	c := newCluster()
	r := startWith(t, c, Options{Source: c, Resync: time.Hour})
	r.attach("web", "10.88.0.2")
	r.tell(healthy(), nil)
	r.wantMetrics(map[string]float64{"weir_ready": 1, `weir_endpoints{direction="ingress",state="isolated"}`: 1})
	flush := func() {
		t.Helper()
		repairs := r.metrics()["weir_kernel_repairs_total"]
		nodetest.Run(t, "iptables-nft", "-w", "-t", "mangle", "-F", "WEIR-INGRESS")
		r.wantMetrics(map[string]float64{"weir_kernel_repairs_total": repairs + 1})
	}
	flush()
	before := reads()
	const changes = 10
	for i := range changes {
		more := fmt.Sprint("more-", i)
		o := healthy()
		o.Policies = append(o.Policies, allow(more, &metav1.LabelSelector{}))
		r.tell(o, nil)
		r.eventually("web is under policy "+more, func() error {
			if s := statusNow(t); len(s.Pods) != 1 || s.Pods[0].Ingress != "shop/"+more+", shop/web" {
				return fmt.Errorf("%+v", s.Pods)
			}
			return nil
		})
	}
	flush()
	// The second flush must make the agent read the tables once. If the kernel announced the first flush late, the
	// first flush may cause two more reads.
	if n := reads() - before; n < 1 || n > 3 {
		t.Errorf("with %d changes of the agent's own the tables were read %d times, want once, for the flush", changes, n)
	}
}

// TestEnrolmentReadsNothing: if a new pod is enrolled, the agent reads the tables only if another program has changed
// weir's rules.
func TestEnrolmentReadsNothing(t *testing.T) {
	if !nodetest.Isolated(t) {
		return
	}
	reads := countReads(t)
	c := newCluster()
	r := startWith(t, c, Options{Source: c, Resync: time.Hour, EnrolWait: 10 * time.Second})
	o, ids := healthy(), []string{}
	for i := range 8 {
		name := fmt.Sprint("new-", i)
		o.Pods = append(o.Pods, pod(name, ""))
		ids = append(ids, r.attach(name, fmt.Sprint("10.88.0.", 20+i)))
	}
	r.tell(o, nil)
	enrol := func(id string) {
		t.Helper()
		if _, err := r.enrol(id); err != nil {
			t.Fatal(err)
		}
	}
	enrol(ids[0])
	nodetest.Run(t, "iptables-nft", "-w", "-t", "mangle", "-F", "WEIR-INGRESS")
	r.wantMetrics(map[string]float64{"weir_kernel_repairs_total": 1}) // by now all earlier changes were announced
	before := reads()
	for i, id := range ids[1:7] {
		nodetest.Run(t, "nft", "add", "table", "ip", fmt.Sprint("strangers-", i)) // another program's table
		enrol(id)
	}
	// If the agent was reading the tables when the flush came, it reads them once more afterwards.
	if n := reads() - before; n > 1 {
		t.Errorf("for 6 new pods the tables were read %d times, want not at all", n)
	}
	nodetest.Run(t, "iptables-nft", "-w", "-t", "mangle", "-F", "WEIR-INGRESS")
	enrol(ids[7])
	if have := nodetest.Run(t, "iptables-nft-save", "-t", "mangle"); !strings.Contains(have, "-A WEIR-INGRESS ") {
		t.Errorf("a pod was enrolled while its chains were flushed:\n%s", have)
	}
}

// countReads returns a function that says how often table mangle was read since countReads was called.
func countReads(t *testing.T) (reads func() int) {
	t.Helper()
	dir, calls := t.TempDir(), "/run/calls"
	script := fmt.Sprintf("#!/bin/sh\necho \"$@\" >>%s\nPATH=${PATH#*:} exec iptables-nft-save \"$@\"\n", calls)
	if err := os.WriteFile(filepath.Join(dir, "iptables-nft-save"), []byte(script), 0o700); err != nil {
		t.Fatal(err)
	}
	t.Setenv("PATH", dir+":"+os.Getenv("PATH"))
	return func() int {
		t.Helper()
		data, err := os.ReadFile(calls)
		if err != nil {
			t.Fatal(err)
		}
		return strings.Count(string(data), "-t mangle\n")
	}
}
