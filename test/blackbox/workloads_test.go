package blackbox

import (
	"strings"
	"testing"

	"github.com/weir-net/weir/test/nodetest"
)

const workloads = `
apiVersion: apps/v1
kind: Deployment
metadata: {name: web, namespace: shop}
spec: {template: {metadata: {labels: {app: web}}, spec: {containers: [{name: c, image: i}]}}}
---
apiVersion: apps/v1
kind: StatefulSet
metadata: {name: db, namespace: shop}
spec: {template: {metadata: {labels: {app: db}}, spec: {}}}
---
apiVersion: batch/v1
kind: CronJob
metadata: {name: tick, namespace: shop}
spec: {jobTemplate: {spec: {template: {metadata: {labels: {app: client}}, spec: {}}}}}
---
apiVersion: apps/v1
kind: DaemonSet
metadata: {name: other, namespace: shop}
spec: {template: {metadata: {labels: {app: other}}, spec: {}}}
---
apiVersion: v1
kind: Pod
metadata: {name: static, namespace: shop, labels: {app: client}}
---
apiVersion: networking.k8s.io/v1
kind: NetworkPolicy
metadata: {name: p, namespace: shop}
spec:
  podSelector: {matchExpressions: [{key: app, operator: In, values: [web, db]}]}
  ingress: [{from: [{podSelector: {matchLabels: {app: client}}}]}]
---
apiVersion: networking.k8s.io/v1
kind: NetworkPolicy
metadata: {name: first, namespace: shop}
spec: {podSelector: {matchLabels: {statefulset.kubernetes.io/pod-name: db-0}},
  ingress: [{from: [{podSelector: {matchLabels: {app: other}}}]}]}
`

// TestPodsOfWorkloads: if a pod has a name that a workload's controller gives, such as web-7d4b9c6f5-x2k9p for the
// Deployment web, the pod gets the workload's labels. A pod whose name fits no workload is refused.
func TestPodsOfWorkloads(t *testing.T) {
	if !nodetest.IsolatedWithWeir(t) {
		return
	}
	n := nodetest.NewNode(t, nil)
	n.Manifest("workloads.yaml", workloads)
	n.SpawnAgent("--source", "dir:"+n.Manifests, "--node-name", "Node-1", "--encapsulation", "never")
	n.Eventually("the agent is ready", func() error {
		_, err := n.Ctl("status")
		return err
	})
	web, db0, db1 := n.AddPod("shop", "web-7d4b9c6f5-x2k9p"), n.AddPod("shop", "db-0"), n.AddPod("shop", "db-1")
	client, static, other := n.AddPod("shop", "tick-28000000-bcdfg"), n.AddPod("shop", "static-node-1"),
		n.AddPod("shop", "other-zzzzz")
	for _, p := range []*nodetest.Pod{web, db0, db1} {
		n.Serve(p.Netns, "tcp", p.IP+":80")
	}
	for _, c := range []struct {
		from, to *nodetest.Pod
		want     bool
	}{
		{client, web, true},
		{static, web, true},
		{other, web, false},
		{client, db0, true},
		{other, db0, true},
		{other, db1, false},
		{static, db1, true},
	} {
		n.Reach(c.from, c.to.IP+":80", c.want)
	}
	for _, name := range []string{"web-7d4b9c6f5-x2k9a", "web-x2k9p", "db-00", "db", "tick-bcdfg", "static-node-2"} {
		if _, err := n.TryAddPod("shop", name); err == nil {
			t.Errorf("pod %s was let in, which no workload makes", name)
		}
	}
}

// TestAPodThatFitsTwoWorkloads: if a pod's name fits two workloads, a connection passes only if it is allowed with the
// labels of each.
func TestAPodThatFitsTwoWorkloads(t *testing.T) {
	if !nodetest.IsolatedWithWeir(t) {
		return
	}
	n := nodetest.NewNode(t, nil)
	n.Manifest("shop.yaml", shop+`
apiVersion: apps/v1
kind: Deployment
metadata: {name: web, namespace: shop}
spec: {template: {metadata: {labels: {app: web, tier: front}}, spec: {}}}
---
apiVersion: apps/v1
kind: ReplicaSet
metadata: {name: web-7d4b9c6f5, namespace: shop}
spec: {template: {metadata: {labels: {app: server, tier: front}}, spec: {}}}
---
apiVersion: networking.k8s.io/v1
kind: NetworkPolicy
metadata: {name: client, namespace: shop}
spec: {podSelector: {matchLabels: {app: web}}, ingress: [{from: [{podSelector: {matchLabels: {app: client}}}]}]}
---
apiVersion: networking.k8s.io/v1
kind: NetworkPolicy
metadata: {name: client-and-others, namespace: shop}
spec: {podSelector: {matchLabels: {app: server}},
  ingress: [{from: [{podSelector: {matchLabels: {app: client}}}]},
    {from: [{podSelector: {matchLabels: {tier: front}}}]}]}
---
apiVersion: networking.k8s.io/v1
kind: NetworkPolicy
metadata: {name: other, namespace: shop}
spec:
  podSelector: {matchExpressions: [{key: app, operator: DoesNotExist}]}
  ingress: [{ports: [{port: 80}], from: [{podSelector: {matchLabels: {app: web}}}]},
    {ports: [{port: 81}], from: [{podSelector: {matchLabels: {tier: front}}}]}]
`)
	n.StartAgent()
	client, other, both := n.AddPod("shop", "client"), n.AddPod("shop", "other"), n.AddPod("shop", "web-7d4b9c6f5-x2k9p")
	n.Serve(both.Netns, "tcp", both.IP+":80")
	n.Serve(other.Netns, "tcp", other.IP+":80")
	n.Serve(other.Netns, "tcp", other.IP+":81")
	n.Reach(client, both.IP+":80", true)
	n.Reach(other, both.IP+":80", false)
	n.Reach(both, other.IP+":81", true)
	n.Reach(both, other.IP+":80", false)
	if out, err := n.Ctl("status"); err != nil || !strings.Contains(out, "fits") ||
		!strings.Contains(out, "ReplicaSet shop/web-7d4b9c6f5") {
		t.Errorf("the status doesn't say that the pod fits two workloads: %v\n%s", err, out)
	}
}
