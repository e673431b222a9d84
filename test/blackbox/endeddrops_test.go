package blackbox

import (
	"fmt"
	"net"
	"testing"
	"time"

	"github.com/weir-net/weir/test/nodetest"
)

const deniedJob = `
apiVersion: v1
kind: Pod
metadata: {name: db, namespace: shop, labels: {app: db}}
---
apiVersion: v1
kind: Pod
metadata: {name: job, namespace: shop, labels: {app: job}}
---
apiVersion: networking.k8s.io/v1
kind: NetworkPolicy
metadata: {name: deny, namespace: shop}
spec: {podSelector: {matchLabels: {app: job}}, policyTypes: [Egress]}
`

// TestDropsOfAnEndedPod: the drops of a pod that has ended name the pod and its policies, even if the agent counts the
// drops after the pod's end.
func TestDropsOfAnEndedPod(t *testing.T) {
	if !nodetest.IsolatedWithWeir(t) {
		return
	}
	n := nodetest.NewNode(t, nil)
	n.Manifest("shop.yaml", deniedJob)
	n.StartAgent()
	db, job := n.AddPod("shop", "db"), n.AddPod("shop", "job")
	drops := func() []shownDrop { return dropsFor(n, "policy") }
	send := func() {
		nodetest.In(t, job.Netns, func() error {
			conn, err := net.Dial("udp", db.IP+":53")
			if err != nil {
				return err
			}
			defer func() { _ = conn.Close() }()
			_, err = conn.Write([]byte("x"))
			return err
		})
	}
	n.Eventually("a drop shows", func() error {
		send()
		if len(drops()) == 0 {
			return fmt.Errorf("no line")
		}
		return nil
	})
	began := time.Now()
	send()
	n.DelPod(job)
	n.Eventually("the drops of the last second show", func() error {
		all := drops()
		if last := all[len(all)-1]; time.Since(began) < 2*time.Second || len(all) < 2 {
			return fmt.Errorf("%+v", last)
		}
		return nil
	})
	for _, d := range drops() {
		if d.Source.Pod != "shop/job" || fmt.Sprint(d.Policies) != "[shop/deny]" {
			t.Errorf("%+v", d)
		}
	}
}
