package blackbox

import (
	"fmt"
	"os"
	"strings"
	"testing"
	"time"

	"github.com/weir-net/weir/test/nodetest"
)

// TestMovesBetweenBackends: if an agent with the other backend replaces the running agent, allowed connections
// continue, and denied connections stay denied.
func TestMovesBetweenBackends(t *testing.T) {
	if !nodetest.IsolatedWithWeir(t) {
		return
	}
	n := nodetest.NewNode(t, nil)
	n.Manifest("pods.yaml", denyAllIngress+`
---
apiVersion: v1
kind: Pod
metadata: {name: closed, namespace: quiet}
---
apiVersion: v1
kind: Pod
metadata: {name: client, namespace: other}
---
apiVersion: v1
kind: Pod
metadata: {name: open, namespace: other}
`)
	start := func(backend string) {
		t.Helper()
		n.SpawnAgent("--source", "dir:"+n.Manifests, "--backend", backend)
		n.Eventually("the agent uses "+backend, func() error {
			name, err := os.ReadFile("/run/weir/lock")
			if string(name) != backend {
				return fmt.Errorf("%s: %w", name, err)
			}
			return nil
		})
	}
	start("iptables")
	closed, client, open := n.AddPod("quiet", "closed"), n.AddPod("other", "client"), n.AddPod("other", "open")
	n.Serve(closed.Netns, "tcp", ":80")
	n.Serve(open.Netns, "udp", ":53")
	conn, err := nodetest.Dial(t, client.Netns, "udp", open.IP+":53")
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = conn.Close() }()
	flows := func() {
		t.Helper()
		n.Eventually("the connection goes on", func() error { return nodetest.Answers(conn, time.Second) })
	}
	stop, passed := make(chan struct{}), make(chan int)
	go func() {
		n := 0
		for {
			select {
			case <-stop:
				passed <- n
				return
			default:
			}
			if _, err := nodetest.Get(t, client.Netns, closed.IP+":80"); err == nil {
				n++
			}
		}
	}()
	for i := range 4 {
		backend := []string{"nftables", "iptables"}[i%2]
		flows()
		n.StopAgent()
		start(backend)
		flows()
		left := nodetest.Run(t, "sh", "-c", "iptables-save; ip6tables-save; ipset list -name; nft list tables")
		if used := strings.Contains(left, "WEIR"); used != (backend == "iptables") ||
			strings.Contains(left, "weir-pods") != used || strings.Contains(left, "table ip weir\n") == used {
			t.Errorf("with %s the node has:\n%s", backend, left)
		}
	}
	close(stop)
	if n := <-passed; n > 0 {
		t.Errorf("%d denied connections passed", n)
	}
}
