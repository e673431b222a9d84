//go:build takeover

// Package takeover_test makes today's agent take over a node from an earlier commit's agent, while packets flow.
// scripts/blackbox builds the earlier programs, and runs this test.
package takeover_test

import (
	"errors"
	"flag"
	"fmt"
	"io"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/weir-net/weir/test/nodetest"
)

var before = flag.String("before", "", "directory with weir, weir-agent and weirctl of an earlier commit")

func TestMain(m *testing.M) { nodetest.MainAsShipped(m) }

var programs = []string{"weir", "weir-agent", "weirctl"}

const policies = `
apiVersion: v1
kind: Namespace
metadata: {name: shop, labels: {team: shop}}
---
apiVersion: v1
kind: Namespace
metadata: {name: lab}
---
apiVersion: networking.k8s.io/v1
kind: NetworkPolicy
metadata: {name: server, namespace: shop}
spec:
  podSelector: {matchLabels: {app: server}}
  policyTypes: [Ingress, Egress]
  ingress:
  - from:
    - {podSelector: {matchLabels: {app: client}}}
    - {namespaceSelector: {matchLabels: {team: shop}}, podSelector: {matchLabels: {app: late}}}
    # With these peers, today's agent merges the sets.
    - {podSelector: {matchLabels: {app: nobody}}}
    - {namespaceSelector: {matchLabels: {team: nobody}}}
    ports: [{port: web}, {port: 8000, endPort: 8010}]
  - from: [{ipBlock: {cidr: 192.0.2.0/24, except: [192.0.2.128/25]}}]
  egress: []
---
apiVersion: networking.k8s.io/v1
kind: NetworkPolicy
metadata: {name: locked, namespace: lab}
spec: {podSelector: {matchLabels: {app: locked}}, policyTypes: [Ingress, Egress]}
`

const allowAll = `---
apiVersion: networking.k8s.io/v1
kind: NetworkPolicy
metadata: {name: all, namespace: shop}
spec: {podSelector: {matchLabels: {app: server}}, ingress: [{}]}
`

func pod(namespace, name, labels, more string) string {
	return fmt.Sprintf("---\napiVersion: v1\nkind: Pod\nmetadata: {name: %s, namespace: %s, labels: {%s}}\n%s", name,
		namespace, labels, more)
}

func pods() string {
	return pod("shop", "server", "app: server",
		"spec: {containers: [{name: c, ports: [{name: web, containerPort: 80}]}]}\n") +
		pod("shop", "client", "app: client", "") + pod("shop", "late", "app: late", "") +
		pod("lab", "stranger", "app: stranger", "") + pod("lab", "locked", "app: locked", "")
}

// TestAfterStop: kubelet stops the old agent, and today's agent takes over. At all times, all connections get the right
// verdict.
func TestAfterStop(t *testing.T) { takeOver(t, (*nodetest.Node).StopAgent) }

// TestAfterKill: the old agent is killed, and today's agent takes over. At all times, all connections get the right
// verdict.
func TestAfterKill(t *testing.T) { takeOver(t, (*nodetest.Node).KillAgent) }

func takeOver(t *testing.T, end func(*nodetest.Node)) {
	if !nodetest.IsolatedWithWeir(t) {
		return
	}
	n := nodetest.NewNode(t, nodetest.Conf{
		"ranges": []any{nodetest.Conf{"subnet": "10.88.0.0/24"}, nodetest.Conf{"subnet": "fd00:10:88::/64"}},
	})
	today := n.Bin
	n.Bin = t.TempDir()
	for _, name := range []string{"cnitool", "portmap"} {
		link(t, filepath.Join(today, name), filepath.Join(n.Bin, name))
	}
	install(t, *before, n.Bin)
	nodetest.Run(t, "ip", "-n", "outside", "route", "add", "10.88.0.0/24", "via", "192.0.2.2")
	n.Manifest("policies.yaml", policies+pods())
	n.StartAgent()
	server, client := n.AddPod("shop", "server"), n.AddPod("shop", "client")
	stranger, locked := n.AddPod("lab", "stranger"), n.AddPod("lab", "locked")
	n.Serve(server.Netns, "tcp", ":80")
	n.Serve(server.Netns, "tcp", ":8005")
	n.Serve(stranger.Netns, "tcp", ":80")
	n.Reach(client, server.IP+":80", true)
	n.Reach(stranger, server.IP+":80", false)

	var traffic traffic
	for _, host := range []string{server.IP, "[" + server.IP6 + "]"} {
		traffic.keeps(t, client.Netns, host+":80")
		traffic.connects(t, client.Netns, host+":80")
		traffic.connects(t, client.Netns, host+":8005")
		traffic.never(t, stranger.Netns, host+":80")
		traffic.never(t, locked.Netns, host+":80")
	}
	traffic.never(t, locked.Netns, stranger.IP+":80")
	traffic.never(t, server.Netns, "["+stranger.IP6+"]:80")
	traffic.connects(t, n.Outside, server.IP+":80")
	for _, p := range []*nodetest.Pod{server, client, stranger, locked} {
		attached(t, n, p)
	}

	traffic.waitForMore(t)
	install(t, today, n.Bin)
	end(n)
	traffic.waitForMore(t)
	n.StartAgent()
	traffic.waitForMore(t)
	for _, p := range []*nodetest.Pod{server, client, stranger, locked} {
		attached(t, n, p)
	}
	late := n.AddPod("shop", "late")
	n.Reach(late, server.IP+":80", true)
	n.Reach(late, "["+server.IP6+"]:80", true)
	n.DelPod(late)
	traffic.waitForMore(t)
	traffic.stop(t)

	n.Manifest("policies.yaml", policies+allowAll+pods())
	n.Reach(stranger, server.IP+":80", true)
	n.Manifest("policies.yaml", policies+pods())
	n.Reach(stranger, "["+server.IP6+"]:80", false)
	n.Reach(client, "["+server.IP6+"]:80", true)
	for _, p := range []*nodetest.Pod{server, client, stranger, locked} { // the earlier plugin has attached these pods
		n.DelPod(p)
	}
	n.Eventually("nothing is left of the pods", func() error {
		out, err := nodetest.Try("sh", "-c", "ipset list; ip -o link; ls /run/weir/endpoints")
		for _, p := range []*nodetest.Pod{server, client, stranger, locked} {
			if strings.Contains(out, p.IP+" ") || strings.Contains(out, p.IP6+" ") {
				err = errors.Join(err, fmt.Errorf("%s is left:\n%s", p.Name, out))
			}
		}
		return err
	})
}

// install replaces each program in one step, as an update does.
func install(t *testing.T, from, to string) {
	t.Helper()
	for _, name := range programs {
		program, err := filepath.Abs(filepath.Join(from, name))
		if err != nil {
			t.Fatal(err)
		}
		link(t, program, filepath.Join(to, name))
	}
}

func link(t *testing.T, program, to string) {
	t.Helper()
	if err := errors.Join(os.Symlink(program, to+".new"), os.Rename(to+".new", to)); err != nil {
		t.Fatal(err)
	}
}

func attached(t *testing.T, n *nodetest.Node, p *nodetest.Pod) {
	t.Helper()
	if out, err := n.CNI("check", p.Netns, nodetest.Args(p.Namespace, p.Name, "")); err != nil {
		t.Errorf("CHECK %s/%s: %v %s", p.Namespace, p.Name, err, out)
	}
}

// timeout is shorter than the second after which TCP repeats a SYN, so that one dropped SYN fails the attempt.
const timeout = 900 * time.Millisecond

type traffic struct {
	flows []*flow
	wg    sync.WaitGroup
	over  atomic.Bool
}

type flow struct {
	name     string
	attempts atomic.Int64
}

func (tr *traffic) runs(t *testing.T, name string, attempt func() error) {
	f := &flow{name: name}
	tr.flows = append(tr.flows, f)
	tr.wg.Go(func() {
		for !tr.over.Load() {
			if err := attempt(); err != nil {
				t.Errorf("%s: attempt %d: %v", name, f.attempts.Load(), err)
				return
			}
			f.attempts.Add(1)
		}
	})
}

func dial(t *testing.T, netns, address string, timeout time.Duration) (conn net.Conn, err error) {
	nodetest.In(t, netns, func() error {
		conn, err = net.DialTimeout("tcp", address, timeout)
		return nil
	})
	return conn, err
}

// connects opens connections. Each must be established by its first SYN, because timeout ends before TCP repeats a SYN.
func (tr *traffic) connects(t *testing.T, netns, address string) {
	tr.runs(t, filepath.Base(netns)+" connects to "+address, func() error {
		conn, err := dial(t, netns, address, timeout)
		if err != nil {
			return err
		}
		return conn.Close()
	})
}

func (tr *traffic) never(t *testing.T, netns, address string) {
	tr.runs(t, filepath.Base(netns)+" never connects to "+address, func() error {
		conn, err := dial(t, netns, address, 30*time.Millisecond)
		if err != nil {
			return nil //nolint:nilerr // no connection may be established, so an error is right
		}
		return errors.Join(errors.New("it is connected"), conn.Close())
	})
}

// keeps checks that one connection continues: each message must be answered within five seconds.
func (tr *traffic) keeps(t *testing.T, netns, address string) {
	t.Helper()
	conn, err := dial(t, netns, address, timeout)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = conn.Close() })
	greeting := make([]byte, 100)
	if _, err := conn.Read(greeting); err != nil {
		t.Fatal(err)
	}
	message, answer := []byte("packets of one connection"), make([]byte, 25)
	tr.runs(t, filepath.Base(netns)+" stays connected to "+address, func() error {
		if err := conn.SetDeadline(time.Now().Add(5 * time.Second)); err != nil {
			return err
		}
		if _, err := conn.Write(message); err != nil {
			return err
		}
		_, err := io.ReadFull(conn, answer)
		if err == nil && !slices.Equal(answer, message) {
			err = fmt.Errorf("the answer is %q", answer)
		}
		time.Sleep(time.Millisecond) // leaves the cores to the other flows
		return err
	})
}

func (tr *traffic) waitForMore(t *testing.T) {
	t.Helper()
	was := make([]int64, len(tr.flows))
	for i, f := range tr.flows {
		was[i] = f.attempts.Load()
	}
	deadline := time.Now().Add(time.Minute)
	for i, f := range tr.flows {
		for f.attempts.Load() < was[i]+20 {
			if time.Now().After(deadline) {
				t.Fatalf("%s: no attempts any more", f.name)
			}
			time.Sleep(10 * time.Millisecond)
		}
	}
}

func (tr *traffic) stop(t *testing.T) {
	t.Helper()
	tr.over.Store(true)
	tr.wg.Wait()
	var all int64
	for _, f := range tr.flows {
		all += f.attempts.Load()
	}
	t.Logf("%d flows, %d attempts", len(tr.flows), all)
}
