package main

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"runtime"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/containernetworking/plugins/pkg/ns"

	"github.com/weir-net/weir/bridge"
	"github.com/weir-net/weir/conf"
	"github.com/weir-net/weir/test/nodetest"
)

// These tests are about the windows of docs/security-windows.md: moments or states in which a forbidden packet
// could pass. In most tests, a pod sends forbidden packets during a change, and none of these packets may arrive.

const noEgress = `
kind: NetworkPolicy
apiVersion: networking.k8s.io/v1
metadata: {name: no-egress, namespace: ns-1}
spec:
  podSelector: {matchLabels: {run: busybox}}
  policyTypes: [Egress]
`

func arrivals(t *testing.T, p *nodetest.Pod) *atomic.Int64 {
	t.Helper()
	var count atomic.Int64
	nodetest.In(t, p.Netns, func() error {
		conn, err := net.ListenPacket("udp4", ":9")
		if err != nil {
			return err
		}
		t.Cleanup(func() { _ = conn.Close() })
		go func() {
			buf := make([]byte, 100)
			for {
				if _, _, err := conn.ReadFrom(buf); err != nil {
					return
				}
				count.Add(1)
			}
		}()
		return nil
	})
	return &count
}

func flood(t *testing.T, netns, address string) (stop func() int) {
	t.Helper()
	ctx, cancel := context.WithCancel(t.Context())
	sent := make(chan int, 1)
	to, err := net.ResolveUDPAddr("udp4", address)
	if err != nil {
		t.Fatal(err)
	}
	go func() {
		k := 0
		err := ns.WithNetNSPath(netns, func(ns.NetNS) error {
			conn, err := net.ListenUDP("udp4", nil)
			if err != nil {
				return err
			}
			defer func() { _ = conn.Close() }()
			for ctx.Err() == nil {
				if _, err := conn.WriteTo([]byte("x"), to); err == nil {
					k++
				}
				runtime.Gosched()
			}
			return nil
		})
		if err != nil {
			t.Error(err)
		}
		sent <- k
	}()
	return func() int { cancel(); return <-sent }
}

func TestNothingPassesWhilePodsStartAndEnd(t *testing.T) {
	if !nodetest.IsolatedWithWeir(t) {
		return
	}
	n := nodetest.NewNode(t, nil)
	n.Manifest("cluster.yaml", cluster)
	n.Manifest("policy.yaml", noEgress)
	n.StartAgent() // when the agent is ready, it knows the policy
	server := n.AddPod("ns-1", "http-echo")
	count := arrivals(t, server)
	for range 5 {
		netns := nodetest.NewNS(t, "ns-1.busybox")
		stop := flood(t, netns, server.IP+":9")
		client := n.AddPod("ns-1", "busybox")
		// A refusal is a packet from the pod. It shows that the pod's link is up, and that the node has the pod's
		// neighbour entry.
		n.Eventually("the pod sends", func() error {
			if _, err := nodetest.Get(t, nodetest.Self, client.IP+":80"); err == nil ||
				!strings.Contains(err.Error(), "refused") {
				return fmt.Errorf("the node reaches it: %w", err)
			}
			return nil
		})
		if _, err := n.CNI("del", netns, ""); err != nil {
			t.Fatal(err)
		}
		if stop() == 0 {
			t.Error("the pod never sent anything: the test tests nothing")
		}
		nodetest.DelNS(t, netns)
	}
	if got := count.Load(); got != 0 {
		t.Errorf("%d packets of an isolated pod arrived while it started or ended", got)
	}
	// Without the policy, packets arrive. So the test would have seen the forbidden packets.
	n.Manifest("policy.yaml", "")
	netns := nodetest.NewNS(t, "ns-1.busybox")
	stop := flood(t, netns, server.IP+":9")
	n.AddPod("ns-1", "busybox")
	n.Eventually("an open pod is heard", func() error {
		if count.Load() == 0 {
			return fmt.Errorf("nothing arrives")
		}
		return nil
	})
	stop()
}

// TestFault4NothingPassesWhileTheAgentRestarts: if the agent restarts, no forbidden packet passes. weave-npc, the
// policy controller of Weave Net, flushed its chains when it started.
func TestFault4NothingPassesWhileTheAgentRestarts(t *testing.T) {
	if !nodetest.IsolatedWithWeir(t) {
		return
	}
	n := newNode(t, nil)
	n.Manifest("policy.yaml", noEgress)
	server, client, other := n.AddPod("ns-1", "http-echo"), n.AddPod("ns-1", "busybox"), n.AddPod("ns-2", "other")
	applied(n, "ns-1/no-egress")
	count := arrivals(t, server)
	stop := flood(t, client.Netns, server.IP+":9")
	allowed, accepted := connectTCP(t, server, other)
	goesOn := push(t, allowed, accepted)
	n.KillAgent()
	n.StartAgent()
	n.StopAgent()
	// A file is broken when the agent starts. Its policies are unknown, so the agent doesn't change the kernel's
	// rules.
	n.Manifest("policy.yaml", "kind: NetworkPolicy\nspec: [")
	n.SpawnAgent()
	n.Eventually("the agent has seen the broken file", func() error {
		if !strings.Contains(n.AgentLog(), "policy.yaml: document 1") {
			return fmt.Errorf("its log: %s", n.AgentLog())
		}
		return nil
	})
	wantRefusal(t, n, nodetest.Args("ns-2", "other", ""), "no good state")
	n.Manifest("policy.yaml", noEgress)
	n.Eventually("the agent is ready", func() error {
		_, err := n.Ctl("status")
		return err
	})
	// Now the file breaks while the agent runs.
	n.Manifest("policy.yaml", "kind: NetworkPolicy\nspec: [")
	n.Eventually("the status has the error", func() error {
		if out, _ := n.Ctl("status"); !strings.Contains(out, "policy.yaml: document 1") {
			return fmt.Errorf("%s", out)
		}
		return nil
	})
	if stop() == 0 {
		t.Error("the pod never sent anything: the test tests nothing")
	}
	if got := count.Load(); got != 0 {
		t.Errorf("%d packets of an isolated pod arrived while the agent restarted", got)
	}
	n.Eventually("a connection that policies allow goes on", func() error {
		if goesOn.silent() == nil {
			return errors.New("it is silent")
		}
		return nil
	})
}

// TestFault5NothingPassesWhilePoliciesChange: if policies and labels change, no forbidden packet passes. weave-npc,
// the policy controller of Weave Net, removed old rules before it added new ones.
func TestFault5NothingPassesWhilePoliciesChange(t *testing.T) {
	if !nodetest.IsolatedWithWeir(t) {
		return
	}
	n := newNode(t, nil)
	n.Manifest("policy.yaml", noEgress)
	server, client := n.AddPod("ns-1", "http-echo"), n.AddPod("ns-1", "busybox")
	applied(n, "ns-1/no-egress")
	count := arrivals(t, server)
	stop := flood(t, client.Netns, server.IP+":9")
	for i := range 5 {
		n.Manifest("more.yaml", strings.ReplaceAll(egressOnly, "name: egress", fmt.Sprint("name: egress-", i)))
		applied(n, fmt.Sprint("egress-", i))
		n.Manifest("cluster.yaml",
			strings.Replace(cluster, "{run: busybox}", fmt.Sprintf("{run: busybox, round: r%d}", i), 1))
		n.Manifest("policy.yaml", strings.Replace(noEgress, "no-egress", fmt.Sprint("no-egress-", i), 1))
		applied(n, fmt.Sprint("no-egress-", i))
		n.Manifest("more.yaml", "")
		other := n.AddPod("ns-2", "other")
		n.DelPod(other)
	}
	if stop() == 0 {
		t.Error("the pod never sent anything: the test tests nothing")
	}
	if got := count.Load(); got != 0 {
		t.Errorf("%d packets of an isolated pod arrived while policies changed", got)
	}
}

// TestAnAddressThatChangesHandsBringsNothingAlong: if a second pod gets the address of a pod that has ended, the
// second pod can't continue connections of the first pod, or open connections that only the first pod could open.
func TestAnAddressThatChangesHandsBringsNothingAlong(t *testing.T) {
	if !nodetest.IsolatedWithWeir(t) {
		return
	}
	n := newNode(t, nodetest.Conf{"ranges": []any{nodetest.Conf{"subnet": "10.88.0.0/24", "rangeEnd": "10.88.0.3"}}})
	labelled := strings.Replace(cluster, "{run: busybox}", "{run: busybox, app: busybox}", 1)
	n.Manifest("cluster.yaml", labelled)
	n.Manifest("policy.yaml", allow)
	server, first := n.AddPod("ns-1", "http-echo"), n.AddPod("ns-1", "busybox")
	applied(n, "ns-1/allow")
	n.Serve(server.Netns, "tcp", ":80")
	n.Serve(server.Netns, "udp", ":53")
	n.Reach(first, server.IP+":80", true)
	// The ports are fixed, so a packet of the second pod looks like a packet of the first pod's connection.
	ask := func(p *nodetest.Pod) (err error) {
		nodetest.In(t, p.Netns, func() error {
			var conn net.Conn
			d := net.Dialer{LocalAddr: &net.UDPAddr{Port: 5353}}
			if conn, err = d.Dial("udp4", server.IP+":53"); err != nil {
				return nil
			}
			defer func() { _ = conn.Close() }()
			err = nodetest.Answers(conn, 250*time.Millisecond)
			return nil
		})
		return err
	}
	n.Eventually("the first pod's flow", func() error { return ask(first) })
	n.DelPod(first)
	second := n.AddPod("ns-2", "other") // other has the label app=busybox, but is in another namespace
	if second.IP != first.IP {
		t.Fatalf("the second pod has %s, not the first one's %s", second.IP, first.IP)
	}
	if err := ask(second); err == nil {
		t.Error("the second pod goes on with the first one's flow")
	}
	n.Reach(second, server.IP+":80", false)
}

// TestFault5AFlushIsRepaired: if another program flushes the rules, the agent enforces policies again within 150
// seconds, even on a busy machine. If the agent was dead at the flush, the next agent cuts connections that were opened
// meanwhile. weave-npc, the policy controller of Weave Net, didn't notice that its rules were gone.
func TestFault5AFlushIsRepaired(t *testing.T) {
	if !nodetest.IsolatedWithWeir(t) {
		return
	}
	n := newNode(t, nil)
	server, client := n.AddPod("ns-1", "http-echo"), n.AddPod("ns-1", "busybox")
	n.Serve(server.Netns, "tcp", ":80")
	// Only ingress is denied, so the server may still connect to the client.
	n.Manifest("policy.yaml",
		strings.Replace(denyAll, "podSelector: {}", "podSelector: {matchLabels: {app: http-echo}}", 1))
	n.Reach(client, server.IP+":80", false)
	for _, flush := range []string{nodetest.FlushChecks(), "nft flush ruleset"} {
		f := strings.Fields(flush)
		start := time.Now()
		nodetest.Run(t, f[0], f[1:]...)
		for closed := false; !closed; {
			_, err := nodetest.Get(t, client.Netns, server.IP+":80")
			closed = err != nil
			if time.Since(start) > 150*time.Second {
				t.Fatalf("%s: still open after 150 s", flush)
			}
		}
		t.Logf("%s: closed again after %s", flush, time.Since(start).Round(time.Millisecond))

		n.KillAgent()
		nodetest.Run(t, f[0], f[1:]...)
		tcp, accepted := connectTCP(t, server, client)
		flows := []*flow{push(t, tcp, accepted)}
		// After "nft flush ruleset", the kernel tracks no connections, so there is no UDP flow to cut.
		if flush == nodetest.FlushChecks() {
			udp, answering := connectUDP(t, server, client)
			flows = append(flows, push(t, udp, answering))
		}
		for _, o := range flows {
			n.Eventually(flush+": "+o.network+" flows", func() error {
				if o.toServer.Load() == 0 || o.toClient.Load() == 0 {
					return fmt.Errorf("%d packets to the server, %d to the client", o.toServer.Load(), o.toClient.Load())
				}
				return nil
			})
		}
		n.StartAgent()
		for _, o := range flows {
			n.Eventually(flush+": "+o.network+" is cut", o.silent)
		}
		for _, o := range flows {
			if err := o.silent(); err != nil {
				t.Errorf("%s: %s goes on: %v", flush, o.network, err)
			}
		}
	}
	forged, node := netip.MustParseAddr("10.88.0.77"), netip.MustParseAddr("10.88.0.1")
	frame := ipv4(bridge.MAC(node), bridge.MAC(netip.MustParseAddr(client.IP)), forged, node)
	if passes(t, client.Netns, conf.Bridge, frame, false) {
		t.Error("the guard was not repaired")
	}
	data, err := os.ReadFile("/proc/sys/net/ipv4/conf/all/send_redirects")
	if err != nil || strings.TrimSpace(string(data)) != "0" {
		t.Errorf("send_redirects is %q, %v: pods would be told to speak to each other directly", data, err)
	}
}

// TestFault6PodsAreEnrolledBeforeTheyStart: if ADD has returned, policies apply from the pod's first packet on. With
// weave-npc, the policy controller of Weave Net, pods started without restriction.
func TestFault6PodsAreEnrolledBeforeTheyStart(t *testing.T) {
	if !nodetest.IsolatedWithWeir(t) {
		return
	}
	n := nodetest.NewNode(t, nil)
	all := strings.Replace(cluster, "{run: busybox}", "{run: busybox, app: busybox}", 1)
	n.Manifest("cluster.yaml", strings.Replace(all, "name: busybox,", "name: unheard-of,", 1))
	n.Manifest("policy.yaml", allow)
	wantRefusal(t, n, nodetest.Args("ns-1", "http-echo", ""), "no agent answers")
	n.StartAgent()
	server := n.AddPod("ns-1", "http-echo")
	n.Serve(server.Netns, "tcp", ":80")
	other := n.AddPod("ns-2", "other")
	if _, err := nodetest.Get(t, other.Netns, server.IP+":80"); err == nil {
		t.Error("the first connection of a new pod passes that no policy allows")
	}
	// No manifest has this pod yet, so the agent knows of the pod only from the plugin's request to enrol it. ADD must
	// wait for the manifest.
	sent := nodetest.SYNs(t, nodetest.NewNS(t, "ns-1.busybox"), "output", "")
	added := make(chan error, 1)
	var client *nodetest.Pod
	go func() {
		var err error
		client, err = n.TryAddPod("ns-1", "busybox")
		added <- err
	}()
	n.Eventually("the agent is asked", func() error {
		if out, err := n.Ctl("status"); !strings.Contains(out, "ns-1/busybox") {
			return fmt.Errorf("%w: %s", err, out)
		}
		return nil
	})
	select {
	case err := <-added:
		t.Fatalf("ADD returned before anybody knew the pod: %v", err)
	case <-time.After(500 * time.Millisecond): // half a second is longer than ADD takes
	}
	n.Manifest("cluster.yaml", all)
	if err := <-added; err != nil {
		t.Fatal(err)
	}
	arrived := nodetest.SYNs(t, server.Netns, "prerouting", "ip saddr "+client.IP)
	nodetest.Greeting(t, client.Netns, server.IP+":80")
	if sent, arrived := sent(), arrived(); sent != arrived || sent == 0 {
		t.Errorf("%d first packets of a new pod's first connection were sent, and %d arrived", sent, arrived)
	}
}

// TestACutConnectionThatIsForgotten: if the kernel's connection tracking forgets a connection that the agent has
// cut, the server's next packet passes only if the packet is UDP and the server may open connections to the client.
func TestACutConnectionThatIsForgotten(t *testing.T) {
	if !nodetest.IsolatedWithWeir(t) {
		return
	}
	n := newNode(t, nil)
	server, client := n.AddPod("ns-1", "http-echo"), n.AddPod("ns-1", "busybox")
	n.Serve(server.Netns, "tcp", ":80")
	serverOnly := strings.Replace(denyAll, "podSelector: {}", "podSelector: {matchLabels: {app: http-echo}}", 1)
	for _, tc := range []struct {
		name    string
		connect func(*testing.T, *nodetest.Pod, *nodetest.Pod) (net.Conn, net.Conn)
		policy  string
		passes  bool
	}{
		{"tcp, the server may open connections to the client", connectTCP, serverOnly, false},
		{"udp, the server may open connections to the client", connectUDP, serverOnly, true},
		{"udp, the server may not", connectUDP, denyAll, false},
	} {
		n.Manifest("policy.yaml", "# none\n")
		n.Reach(client, server.IP+":80", true)
		conn, accepted := tc.connect(t, server, client)
		n.Manifest("policy.yaml", tc.policy)
		n.Reach(client, server.IP+":80", false)
		applied(n, "ns-1/deny-all-by-default")
		nodetest.Run(t, "conntrack", "-F")
		if _, err := accepted.Write([]byte("x")); err != nil {
			t.Fatal(err)
		}
		wait := 500 * time.Millisecond
		if tc.passes {
			wait = 10 * time.Second
		}
		err := conn.SetReadDeadline(time.Now().Add(wait))
		if err == nil {
			_, err = conn.Read(make([]byte, 1))
		}
		if (err == nil) != tc.passes {
			t.Errorf("%s: what it sends: %v, want it to pass: %v", tc.name, err, tc.passes)
		}
		if err := errors.Join(conn.Close(), accepted.Close()); err != nil {
			t.Fatal(err)
		}
	}
}

// TestAFlushIsClosedWithoutAState: if rules are flushed, an agent that can't read the policies closes the pods. The
// flush may come before the agent's start, or while the agent runs.
func TestAFlushIsClosedWithoutAState(t *testing.T) {
	if !nodetest.IsolatedWithWeir(t) {
		return
	}
	n := newNode(t, nil)
	server, client := n.AddPod("ns-1", "http-echo"), n.AddPod("ns-1", "busybox")
	n.Serve(server.Netns, "tcp", ":80")
	n.Manifest("policy.yaml", denyAll)
	n.Reach(client, server.IP+":80", false)
	n.StopAgent()
	for _, flush := range []string{nodetest.FlushChecks(), "nft flush ruleset"} {
		f := strings.Fields(flush)
		nodetest.Run(t, f[0], f[1:]...)
		n.Reach(client, server.IP+":80", true)
		n.Manifest("policy.yaml", "kind: NetworkPolicy\nspec: [")
		n.SpawnAgent()
		n.Reach(client, server.IP+":80", false)
		nodetest.Run(t, f[0], f[1:]...) // flush once more while the agent runs
		n.Reach(client, server.IP+":80", false)
		n.Manifest("policy.yaml", allow)
		n.Reach(client, server.IP+":80", false)
		n.Manifest("policy.yaml", "")
		n.Reach(client, server.IP+":80", true)
		n.StopAgent()
	}
}

type flow struct {
	network            string
	toServer, toClient atomic.Int64 // UDP packets that arrived, or pieces of a TCP stream
}

// silent returns an error if a packet arrives within half a second. TCP repeats lost packets sooner than that.
func (f *flow) silent() error {
	toServer, toClient := f.toServer.Load(), f.toClient.Load()
	time.Sleep(500 * time.Millisecond)
	toServer, toClient = f.toServer.Load()-toServer, f.toClient.Load()-toClient
	if toServer+toClient > 0 {
		return fmt.Errorf("%d packets to the server, %d to the client in half a second", toServer, toClient)
	}
	return nil
}

func push(t *testing.T, client, server net.Conn) *flow {
	t.Helper()
	f := &flow{network: client.LocalAddr().Network()}
	talk(t, client, &f.toClient)
	talk(t, server, &f.toServer)
	return f
}

func talk(t *testing.T, conn net.Conn, received *atomic.Int64) {
	t.Cleanup(func() { _ = conn.Close() })
	go func() {
		for buf := make([]byte, 100); ; received.Add(1) {
			if _, err := conn.Read(buf); err != nil {
				return
			}
		}
	}()
	go func() {
		for tick := time.NewTicker(time.Millisecond); ; <-tick.C {
			if _, err := conn.Write([]byte("x")); err != nil {
				return
			}
		}
	}()
}

func connectTCP(t *testing.T, server, client *nodetest.Pod) (conn, accepted net.Conn) {
	t.Helper()
	var l net.Listener
	nodetest.In(t, server.Netns, func() (err error) { l, err = net.Listen("tcp4", ":0"); return err })
	defer func() { _ = l.Close() }()
	// On a busy machine, a new link may drop the first SYN. The client then sends another SYN.
	nodetest.In(t, client.Netns, func() (err error) {
		conn, err = net.DialTimeout("tcp", fmt.Sprintf("%s:%d", server.IP, l.Addr().(*net.TCPAddr).Port), 10*time.Second)
		return err
	})
	accepted, err := l.Accept()
	if err != nil {
		t.Fatal(err)
	}
	return conn, accepted
}

func connectUDP(t *testing.T, server, client *nodetest.Pod) (conn, accepted net.Conn) {
	t.Helper()
	var l net.PacketConn
	nodetest.In(t, server.Netns, func() (err error) { l, err = net.ListenPacket("udp4", ":0"); return err })
	port := l.LocalAddr().(*net.UDPAddr).Port
	conn = nodetest.Connect(t, client.Netns, "udp4", fmt.Sprintf("%s:%d", server.IP, port))
	var from net.Addr
	err := errors.New("not sent")
	for try := 0; err != nil && try < 10; try++ { // a new link may drop packets
		if _, err := conn.Write([]byte("x")); err != nil {
			t.Fatal(err)
		}
		_ = l.SetReadDeadline(time.Now().Add(5 * time.Second))
		_, from, err = l.ReadFrom(make([]byte, 10))
	}
	if err == nil {
		err = l.Close()
	}
	if err != nil {
		t.Fatal(err)
	}
	nodetest.In(t, server.Netns, func() (err error) {
		accepted, err = net.DialUDP("udp4", &net.UDPAddr{Port: port}, from.(*net.UDPAddr))
		return err
	})
	return conn, accepted
}
