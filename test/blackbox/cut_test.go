package blackbox

import (
	"fmt"
	"regexp"
	"strings"
	"testing"
	"time"

	"github.com/weir-net/weir/test/nodetest"
)

const denyAllIngress = `
apiVersion: networking.k8s.io/v1
kind: NetworkPolicy
metadata: {name: deny, namespace: quiet}
spec: {podSelector: {}, policyTypes: [Ingress]}
`

// TestConnectionsThatAreOverAreNotCut: if a policy cuts connections, log and status don't count connections that had
// already ended.
func TestConnectionsThatAreOverAreNotCut(t *testing.T) {
	if !nodetest.IsolatedWithWeir(t) {
		return
	}
	n := nodetest.NewNode(t, nil)
	n.Manifest("pods.yaml", `
apiVersion: v1
kind: Pod
metadata: {name: server, namespace: quiet}
---
apiVersion: v1
kind: Pod
metadata: {name: client, namespace: quiet}
`)
	n.StartAgent()
	server, client := n.AddPod("quiet", "server"), n.AddPod("quiet", "client")
	n.Serve(server.Netns, "tcp", ":80")
	n.Serve(server.Netns, "udp", ":53")
	n.Reach(client, server.IP+":80", true)
	const over = 30
	for range over {
		nodetest.Greeting(t, client.Netns, server.IP+":80") // Greeting also closes the connection
		echoed(n, client, server.IP+":53")
		// No server listens on this port.
		if conn, err := nodetest.Dial(t, client.Netns, "tcp", server.IP+":81"); err == nil {
			_ = conn.Close()
		}
	}
	// The server closes its end of a connection after the client. Until then, the connection isn't over.
	n.Eventually("both ends of the connections are closed", func() error {
		list := nodetest.Run(t, "conntrack", "-L", "-p", "tcp", "--dport", "80")
		if open := regexp.MustCompile(`ESTABLISHED|FIN_WAIT|CLOSE_WAIT|LAST_ACK`).FindString(list); open != "" {
			return fmt.Errorf("one is in the state %s:\n%s", open, list)
		}
		return nil
	})
	lives := nodetest.Connect(t, client.Netns, "tcp", server.IP+":80")
	flows := func() bool { return nodetest.Answers(lives, 300*time.Millisecond) == nil }
	goesOn := func() {
		t.Helper()
		n.Eventually("the connection that is open carries packets", func() error {
			if !flows() {
				return fmt.Errorf("it doesn't")
			}
			return nil
		})
	}
	goesOn()
	for i := range 3 {
		n.Manifest("deny.yaml", denyAllIngress)
		// First wait for the status. On a busy machine, an open connection may give no answer for a moment, and so seem to be
		// cut.
		n.Eventually("the cut is counted", func() error {
			out, err := n.Ctl("status")
			if err == nil && !strings.Contains(out, fmt.Sprintf(" %d connections cut", i+1)) {
				err = fmt.Errorf("it isn't:\n%s", out)
			}
			return err
		})
		if flows() {
			t.Error("the connection that was cut goes on")
		}
		n.Manifest("deny.yaml", "")
		goesOn()
	}
	cut := regexp.MustCompile(`cut=(\d+)`)
	for _, m := range cut.FindAllStringSubmatch(n.AgentLog(), -1) {
		if m[1] != "0" && m[1] != "1" {
			t.Errorf("the log tells of %s connections that were cut, and one was open", m[1])
		}
	}
	if !strings.Contains(n.AgentLog(), "cut=1") {
		t.Error("the log tells of no connection that was cut")
	}
	status, err := n.Ctl("status")
	if err != nil || !strings.Contains(status, " 3 connections cut") {
		t.Errorf("weirctl status: %v; want 3 connections cut:\n%s", err, status)
	}
}

// echoed asks a UDP server once. If the answer is late, echoed asks again over a new connection: if both ends sent
// packets over one connection for more than two seconds, the kernel would mark it as assured, and weir would count its
// cut.
func echoed(n *nodetest.Node, from *nodetest.Pod, address string) {
	n.Helper()
	n.Eventually("an answer over UDP from "+address, func() error {
		conn := nodetest.Connect(n, from.Netns, "udp", address)
		defer func() { _ = conn.Close() }()
		return nodetest.Answers(conn, time.Second)
	})
}
