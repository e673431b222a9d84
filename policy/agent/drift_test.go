package agent

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/weir-net/weir/internal/nodetest"
)

// TestOwnChangesAreNotReadAgain: the kernel tells of the agent's changes as of everybody's; only those of others have it
// read the tables.
func TestOwnChangesAreNotReadAgain(t *testing.T) {
	if !nodetest.Isolated(t) {
		return
	}
	dir, calls := t.TempDir(), "/run/calls"
	script := fmt.Sprintf("#!/bin/sh\necho \"$@\" >>%s\nPATH=${PATH#*:} exec iptables-nft-save \"$@\"\n", calls)
	if err := os.WriteFile(filepath.Join(dir, "iptables-nft-save"), []byte(script), 0o700); err != nil {
		t.Fatal(err)
	}
	t.Setenv("PATH", dir+":"+os.Getenv("PATH"))
	c := newCluster()
	r := startWith(t, c, Options{Source: c, Resync: time.Hour})
	r.attach("web", "10.88.0.2")
	r.tell(healthy(), nil)
	r.wantMetrics(map[string]float64{"weir_ready": 1, `weir_endpoints{direction="ingress",state="isolated"}`: 1})
	reads := func() int {
		t.Helper()
		data, err := os.ReadFile(calls)
		if err != nil {
			t.Fatal(err)
		}
		return strings.Count(string(data), "\n")
	}
	// What somebody else changes is repaired, and all that came before it was heard of then.
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
			if s := status(t); len(s.Pods) != 1 || s.Pods[0].Ingress != "shop/"+more+", shop/web" {
				return fmt.Errorf("%+v", s.Pods)
			}
			return nil
		})
	}
	flush()
	// Once for this flush; and what the first has left to be heard of, should the agent have read the tables just then.
	if n := reads() - before; n < 1 || n > 3 {
		t.Errorf("with %d changes of the agent's own the tables were read %d times, want once, for the flush", changes, n)
	}
}
