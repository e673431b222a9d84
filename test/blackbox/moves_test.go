package blackbox

import (
	"bytes"
	"errors"
	"fmt"
	"math/rand/v2"
	"net"
	"os"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/vishvananda/netlink/nl"
	"golang.org/x/sys/unix"

	"github.com/weir-net/weir/test/nodetest"
)

// settle is how long kube-proxy must use the other backend before the agent also moves to it.
const settle = "100ms"

// movingPods has a server and three other pods. A policy allows the three pods to connect to two ports of the server.
const movingPods = `
apiVersion: networking.k8s.io/v1
kind: NetworkPolicy
metadata: {name: some, namespace: shop}
spec:
  podSelector: {}
  policyTypes: [Ingress]
  ingress:
  - from: [{podSelector: {matchLabels: {app: client}}, namespaceSelector: {}}]
    ports: [{port: 80}, {port: 53, protocol: UDP}]
---
apiVersion: v1
kind: Pod
metadata: {name: server, namespace: shop}
---
apiVersion: v1
kind: Pod
metadata: {name: client, namespace: other, labels: {app: client}}
---
apiVersion: v1
kind: Pod
metadata: {name: guest, namespace: other, labels: {app: client}}
---
apiVersion: v1
kind: Pod
metadata: {name: intruder, namespace: other, labels: {app: client}}
`

// moves is a node whose agent chooses its backend itself, while connections are made.
type moves struct {
	*nodetest.Node
	server, client   *nodetest.Pod
	intruder         *nodetest.Pod // connects only to ports that no policy allows
	stop             chan struct{}
	traffic          sync.WaitGroup
	tried, forbidden atomic.Int64 // how many allowed and forbidden connections were attempted
	harmed, letIn    atomic.Int64
	harm             sync.Map // the last error of each kind of allowed connections
	sent             func() int
	arrived          []func() int // count the client's SYNs that reach the server, and those that reach the host outside
	asNode           func() int   // counts SYNs that reach the server with the node's address as their source; none should
}

func newMoves(t *testing.T) *moves {
	m := &moves{Node: nodetest.NewNode(t, nil), stop: make(chan struct{})}
	m.Manifest("pods.yaml", denyAllIngress+"---"+movingPods)
	// Docker makes the chain FORWARD drop packets by default, in the flavour of iptables that Docker uses.
	nodetest.RunEach(t, "iptables-nft -P FORWARD DROP", "iptables-legacy -P FORWARD DROP")
	m.kubeProxy("iptables")
	m.startAuto()
	m.uses("iptables")
	m.server, m.client = m.AddPod("shop", "server"), m.AddPod("other", "client")
	m.intruder = m.AddPod("other", "intruder")
	m.Serve(m.server.Netns, "tcp", ":80")
	m.Serve(m.server.Netns, "udp", ":53")
	m.Serve(m.Outside, "tcp", ":80")
	m.countArrivals()
	m.sent = nodetest.SYNs(t, m.client.Netns, "output", "tcp dport 80")
	m.asNode = nodetest.SYNs(t, m.server.Netns, "input", "ip saddr 10.88.0.1 tcp dport 80")
	m.arrived = []func() int{
		nodetest.SYNs(t, m.server.Netns, "prerouting", "ip saddr "+m.client.IP+" tcp dport 80"),
		nodetest.SYNs(t, m.Outside, "prerouting", "tcp dport 80"),
	}
	return m
}

func (m *moves) startAuto() {
	m.Helper()
	m.SpawnAgent("--source", "dir:"+m.Manifests, "--backend", "auto", "--backend-settle", settle)
}

// kubeProxy makes the chains or the table that kube-proxy has with the backend. Then it removes what kube-proxy has
// with the other backend.
func (m *moves) kubeProxy(backend string) {
	m.Helper()
	if backend == "nftables" {
		nodetest.RunEach(m, "nft add table ip kube-proxy", "iptables-nft -t nat -X KUBE-SERVICES")
		return
	}
	nodetest.RunEach(m, "iptables-nft -t nat -N KUBE-SERVICES")
	_, _ = nodetest.Try("nft", "delete", "table", "ip", "kube-proxy")
}

// uses waits until the agent uses the backend, and nothing of the other backend is left. The file /run/weir/lock, which
// the plugin reads, must have the backend's name.
func (m *moves) uses(backend string) {
	m.Helper()
	m.Eventually("the node uses "+backend, func() error {
		if name, err := os.ReadFile("/run/weir/lock"); string(name) != backend {
			return fmt.Errorf("the plugin is told %q: %w", name, err)
		}
		status, err := m.Ctl("status")
		if err != nil || !strings.Contains(status, backend) {
			return fmt.Errorf("%s: %w", status, err)
		}
		left, err := nodetest.Try("sh", "-c", "iptables-save; ip6tables-save; ipset list -name; nft list tables")
		if err != nil {
			return err
		}
		if used := strings.Contains(left, "WEIR"); used != (backend == "iptables") ||
			strings.Contains(left, "weir-pods") != used || strings.Contains(left, "table ip weir\n") == used {
			return fmt.Errorf("with %s the node has:\n%s", backend, left)
		}
		return nil
	})
}

// countArrivals counts in letIn the connections and datagrams that arrive at two ports which no policy allows.
func (m *moves) countArrivals() {
	nodetest.In(m, m.server.Netns, func() error {
		l, err := net.Listen("tcp", ":81")
		if err != nil {
			return err
		}
		p, err := net.ListenPacket("udp", ":54")
		if err != nil {
			return err
		}
		m.Cleanup(func() { _ = errors.Join(l.Close(), p.Close()) })
		go func() {
			for {
				conn, err := l.Accept()
				if err != nil {
					return
				}
				m.letIn.Add(1)
				_ = conn.Close()
			}
		}()
		go func() {
			for {
				if _, _, err := p.ReadFrom(make([]byte, 64)); err != nil {
					return
				}
				m.letIn.Add(1)
			}
		}()
		return nil
	})
}

// answersWithin is how long a client waits for an answer. It is long, because TCP may repeat a connection's SYN on a
// busy machine. The function end checks whether the kernel dropped a SYN.
const answersWithin = 20 * time.Second

func (m *moves) dial(netns, network, address string) (conn net.Conn, err error) {
	m.Helper()
	nodetest.In(m, netns, func() error {
		conn, err = net.DialTimeout(network, address, answersWithin)
		return nil
	})
	return conn, err
}

// start begins to make 200 new connections per second. About a third of them are forbidden. start also opens two
// long-lived connections, and sends packets over them.
func (m *moves) start() {
	m.Helper()
	dial := func(network, address string) (net.Conn, error) { return m.dial(m.client.Netns, network, address) }
	echo := func(conn net.Conn) error { return nodetest.Answers(conn, answersWithin) }
	m.keepCalling("TCP", 60, false, func() error {
		conn, err := dial("tcp", m.server.IP+":80")
		if err != nil {
			return err
		}
		defer func() { _ = conn.Close() }()
		return echo(conn)
	})
	m.keepCalling("UDP", 50, false, func() error {
		conn, err := dial("udp", m.server.IP+":53")
		if err != nil {
			return err
		}
		defer func() { _ = conn.Close() }()
		return echo(conn)
	})
	m.keepCalling("masqueraded TCP", 20, false, func() error {
		conn, err := dial("tcp", "192.0.2.1:80")
		if err != nil {
			return err
		}
		defer func() { _ = conn.Close() }()
		hello := make([]byte, 64)
		if err := conn.SetDeadline(time.Now().Add(answersWithin)); err != nil {
			return err
		}
		if n, err := conn.Read(hello); err != nil || string(hello[:n]) != "hello 192.0.2.2\n" {
			return fmt.Errorf("the server said %q: %w", hello[:n], err)
		}
		return nil
	})
	m.keepCalling("forbidden TCP", 35, true, func() error {
		var conn net.Conn
		var err error
		nodetest.In(m, m.intruder.Netns, func() error {
			conn, err = net.DialTimeout("tcp", m.server.IP+":81", 20*time.Millisecond)
			return nil
		})
		if err == nil {
			_ = conn.Close()
		}
		return nil
	})
	m.keepCalling("forbidden UDP", 35, true, func() error {
		conn, err := m.dial(m.intruder.Netns, "udp", m.server.IP+":54")
		if err == nil {
			_, err = conn.Write([]byte("x"))
			_ = conn.Close()
		}
		return err
	})
	for _, at := range [][2]string{{"tcp", m.server.IP + ":80"}, {"udp", m.server.IP + ":53"}} {
		conn, err := dial(at[0], at[1])
		if err != nil {
			m.Fatal(err)
		}
		m.Cleanup(func() { _ = conn.Close() })
		m.keepCalling("long-lived "+at[0], 20, false, func() error { return echo(conn) })
	}
}

// keepCalling calls the function attempt until the traffic ends. rate is the number of calls per second. Calls don't
// wait for each other, except those for a long-lived connection.
func (m *moves) keepCalling(what string, rate int, forbidden bool, attempt func() error) {
	m.traffic.Add(1)
	go func() {
		defer m.traffic.Done()
		ticker := time.NewTicker(time.Second / time.Duration(rate))
		defer ticker.Stop()
		for {
			select {
			case <-m.stop:
				return
			case <-ticker.C:
			}
			count := func() {
				err := attempt()
				if forbidden {
					m.forbidden.Add(1)
					return
				}
				if m.tried.Add(1); err != nil {
					m.harmed.Add(1)
					m.harm.Store(what, err.Error())
				}
			}
			if strings.HasPrefix(what, "long-lived") {
				count()
				continue
			}
			m.traffic.Add(1)
			go func() {
				defer m.traffic.Done()
				count()
			}()
		}
	}()
}

// end ends the traffic. The test fails if an allowed connection was harmed, or a forbidden connection was let through,
// or the SYN of an allowed TCP connection was dropped, or the SYN of a connection between pods was masqueraded.
func (m *moves) end() {
	m.Helper()
	close(m.stop)
	m.traffic.Wait()
	if n := m.harmed.Load(); n > 0 {
		m.Errorf("%d of %d allowed connections were harmed", n, m.tried.Load())
		m.harm.Range(func(what, err any) bool {
			m.Logf("%s: %s", what, err)
			return true
		})
	}
	if n := m.letIn.Load(); n > 0 {
		m.Errorf("%d of %d forbidden connections were let through", n, m.forbidden.Load())
	}
	sent, arrived := m.sent(), 0
	for _, count := range m.arrived {
		arrived += count()
	}
	if sent != arrived || sent == 0 {
		dropped, err := m.Ctl("drops", "--port", "80")
		m.Errorf("%d first packets of allowed connections were sent, and %d arrived; the agent remembers of port 80: %v\n%s",
			sent, arrived, err, dropped)
	}
	if n := m.asNode(); n > 0 {
		m.Errorf("%d connections between pods came to the server under the node's address", n)
	}
	m.Logf("%d allowed attempts, %d forbidden", m.tried.Load(), m.forbidden.Load())
}

// TestMovesWhileTheAgentRuns: each time that kube-proxy changes its mode, the agent moves to the other backend. During
// 20 moves, in which pods start and end, no connection gets a wrong verdict.
func TestMovesWhileTheAgentRuns(t *testing.T) {
	if !nodetest.IsolatedWithWeir(t) {
		return
	}
	m := newMoves(t)
	m.start()
	m.traffic.Add(1)
	guests := 0
	go func() {
		defer m.traffic.Done()
		for {
			select {
			case <-m.stop:
				return
			default:
			}
			guest, err := m.TryAddPod("other", "guest")
			if err != nil {
				t.Errorf("ADD: %v", err)
				return
			}
			if conn, err := m.dial(guest.Netns, "tcp", m.server.IP+":80"); err != nil {
				t.Errorf("a new pod doesn't reach the server: %v", err)
			} else {
				_ = conn.Close()
			}
			if _, err := m.CNI("del", guest.Netns, nodetest.Args("other", "guest", "")); err != nil {
				t.Errorf("DEL: %v", err)
				return
			}
			guests++
		}
	}()
	for i := range 20 {
		backend := []string{"nftables", "iptables"}[i%2]
		m.kubeProxy(backend)
		m.uses(backend)
	}
	m.end()
	t.Logf("%d pods came and went", guests)
}

// TestKilledWhileItMoves: if the agent is killed at a random moment of a move, the next agent completes the move. No
// connection gets a wrong verdict, neither before nor after the kill.
func TestKilledWhileItMoves(t *testing.T) {
	if !nodetest.IsolatedWithWeir(t) {
		return
	}
	m := newMoves(t)
	m.start()
	for i := range 10 {
		backend := []string{"nftables", "iptables"}[i%2]
		m.kubeProxy(backend)
		m.Eventually("the move begins", func() error {
			name, err := os.ReadFile("/run/weir/lock")
			if err == nil && len(name) > 0 && string(name) != backend {
				err = errors.New("not yet")
			}
			return err
		})
		time.Sleep(time.Duration(rand.IntN(40)) * time.Millisecond)
		m.KillAgent()
		m.startAuto()
		m.uses(backend)
	}
	m.end()
}

// TestKilledBeforeASetIsFilled: if the agent is killed during a move to iptables, after it has made a set and before
// it fills the set, the next agent completes the move. Meanwhile, the kernel drops no packet that the policies allow.
func TestKilledBeforeASetIsFilled(t *testing.T) {
	if !nodetest.IsolatedWithWeir(t) {
		return
	}
	// phase says what happens before a program adds an entry to one of weir's ipsets.
	type phase struct {
		kill   int    // the process to kill, or 0
		before string // beginning of a set's name: the phase waits for an entry of such a set
		do     func() // called before the entry is added; nil if a process is to be killed
	}
	var now atomic.Pointer[phase]
	killed := make(chan string, 1)
	nodetest.EditNetlink(t, true, func(message []byte) unix.Errno {
		p := now.Load()
		if p == nil || message[5] != unix.NFNL_SUBSYS_IPSET || message[4] != nl.IPSET_CMD_ADD {
			return 0
		}
		_, rest, _ := bytes.Cut(message, []byte("\x00weir-"))
		name, _, _ := bytes.Cut(rest, []byte{0})
		switch set := "weir-" + string(name); {
		case p.do != nil && set != "weir-trial":
			p.do()
		case p.do == nil && strings.HasPrefix(set+"\x00", p.before) && now.CompareAndSwap(p, nil):
			_ = syscall.Kill(p.kill, syscall.SIGKILL)
			killed <- set
			return unix.EPERM // otherwise the kernel might still carry out the dying agent's request
		}
		return 0
	})
	m := newMoves(t)
	var calls atomic.Int64
	call := func() {
		calls.Add(1)
		conn, err := m.dial(m.client.Netns, "tcp", m.server.IP+":80")
		if err != nil {
			t.Errorf("the client doesn't reach the server: %v", err)
			now.Store(nil) // end the phase: more attempts would only take time
			return
		}
		_ = conn.Close()
	}
	for _, before := range []string{"weir-in\x00", "weir-sel-"} {
		m.kubeProxy("nftables")
		m.uses("nftables")
		now.Store(&phase{kill: m.AgentPID(), before: before})
		m.kubeProxy("iptables")
		set := ""
		select {
		case set = <-killed:
		case <-time.After(time.Minute):
			t.Fatalf("no set %q is filled:\n%s", before, m.AgentLog())
		}
		m.KillAgent()
		if list := nodetest.Run(t, "ipset", "list", set); !strings.Contains(list, "Number of entries: 0\n") {
			t.Fatalf("the set isn't empty:\n%s", list)
		}
		now.Store(&phase{do: call})
		m.startAuto()
		m.uses("iptables")
		now.Store(nil)
	}
	if calls.Load() == 0 {
		t.Error("the agents that completed the moves filled no set")
	}
	m.end()
}

// TestChoosesWithoutXtables: on a node without ipset and xtables, the agent chooses nftables, even if kube-proxy uses
// iptables.
func TestChoosesWithoutXtables(t *testing.T) {
	if !nodetest.IsolatedWithWeir(t) {
		return
	}
	n := nodetest.NewNode(t, nil)
	n.ConfigureList(nodetest.Conf{"type": "weir", "ranges": []any{nodetest.Conf{"subnet": "10.88.0.0/24"}}})
	nodetest.RunEach(t, "iptables-nft -t nat -N KUBE-SERVICES")
	withoutXtables(t, 0)
	n.Manifest("pods.yaml", denyAllIngress)
	n.SpawnAgent("--source", "dir:"+n.Manifests, "--backend", "auto")
	n.Eventually("the agent takes nftables", func() error {
		status, err := n.Ctl("status")
		if err == nil && !strings.Contains(status, "nftables, because kube-proxy uses iptables; iptables can't be used") {
			err = errors.New(status)
		}
		return err
	})
}

// TestNoBackendWorks: if no backend works, the agent isn't ready, the status says why, and no pod starts. When a
// backend works, the agent uses it without a restart.
func TestNoBackendWorks(t *testing.T) {
	if !nodetest.IsolatedWithWeir(t) {
		return
	}
	n := nodetest.NewNode(t, nil)
	n.ConfigureList(nodetest.Conf{"type": "weir", "ranges": []any{nodetest.Conf{"subnet": "10.88.0.0/24"}}})
	var mended atomic.Bool
	nodetest.EditNetlink(t, false, func(message []byte) unix.Errno {
		switch {
		case mended.Load():
		case message[5] == unix.NFNL_SUBSYS_IPSET:
			return unix.EOPNOTSUPP
		case bytes.Contains(message, []byte("weir-trial\x00")):
			return unix.ENOMEM
		}
		return 0
	})
	n.Manifest("pods.yaml", denyAllIngress+"---\napiVersion: v1\nkind: Pod\nmetadata: {name: web, namespace: quiet}\n")
	n.SpawnAgent("--source", "dir:"+n.Manifests, "--backend", "auto", "--backend-settle", settle)
	n.Eventually("the agent says what the node lacks", func() error {
		status, err := n.Ctl("status")
		for _, words := range []string{
			"none, because", "iptables can't be used", "nftables can't be used", "ERROR:", "PROBLEM:",
		} {
			if err == nil || !strings.Contains(status, words) {
				return fmt.Errorf("%q is missing: %s, %w", words, status, err)
			}
		}
		return nil
	})
	if _, err := n.TryAddPod("quiet", "web"); err == nil {
		t.Error("a pod was started")
	}
	mended.Store(true)
	n.Eventually("the agent takes a backend", func() error {
		_, err := n.Ctl("status")
		return err
	})
	n.AddPod("quiet", "web")
}
