//go:build bench

package bench_test

import (
	"errors"
	"flag"
	"fmt"
	"os"
	"os/exec"
	"strconv"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/vishvananda/netlink/nl"
	"golang.org/x/sys/unix"

	"github.com/weir-net/weir/test/nodetest"
)

var (
	nodes         = flag.Int("nodes", 1000, "how many other nodes the cluster has")
	pods          = flag.Int("pods", 113, "how many pods the node has")
	services      = flag.Int("services", 0, "how many Services have rules of kube-proxy in the table nat")
	flavour       = flag.String("flavour", "nft", "which iptables the Services' rules are in: nft or legacy")
	encapsulation = flag.String("encapsulation", "always", "the agent's --encapsulation")
	idleFor       = flag.Duration("idle", time.Minute, "how long the idle agent is measured")
	profile       = flag.String("perf", "", "file to which perf records the agent while it is measured")
)

// TestIdle prints how much processor time the agent uses while nothing changes. It also counts changes of routes,
// permanent neighbours, addresses and links, in this time and during a restart. There should be no such changes.
func TestIdle(t *testing.T) {
	if !nodetest.IsolatedWithWeir(t) {
		return
	}
	n := nodetest.NewNode(t, nil)
	nodetest.RunEach(t, "ip addr add 172.16.0.2/16 dev eth0")
	manifest := policies + node("self", "172.16.0.2", "10.88.0.0/24")
	for i := range *nodes {
		address := fmt.Sprintf("172.16.%d.%d", 1+i/200, 1+i%200)
		manifest += node(fmt.Sprint("n", i), address, fmt.Sprintf("10.%d.%d.0/24", 100+i/250, i%250))
	}
	for i := range *pods {
		manifest += fmt.Sprintf("---\napiVersion: v1\nkind: Pod\n"+
			"metadata: {name: pod-%d, namespace: bench, labels: {app: bench}}\nspec: {nodeName: self}\n", i)
	}
	n.Manifest("bench.yaml", manifest)
	restoreServices(t)
	began := time.Now()
	n.SpawnAgent("--source", "dir:"+n.Manifests, "--node-name", "self", "--encapsulation", *encapsulation)
	ready := func() error { _, err := n.Ctl("status"); return err }
	n.Eventually("the agent is ready", ready)
	fmt.Printf("ready after %.0f ms\n", time.Since(began).Seconds()*1000)
	for i := range *pods {
		n.AddPod("bench", fmt.Sprint("pod-", i))
	}
	time.Sleep(15 * time.Second) // until all pods have started, and one resync is over
	if *profile != "" {
		record := exec.Command("perf", "record", "-q", "-g", "-F", "999", "--inherit", "-o", *profile, "-p",
			strconv.Itoa(n.AgentPID()))
		if err := record.Start(); err != nil {
			t.Fatal(err)
		}
		defer func() { _ = record.Process.Signal(os.Interrupt); _ = record.Wait() }()
	}
	changes := countChanges(t)
	before, began := cpu(t, n.AgentPID()), time.Now()
	time.Sleep(*idleFor)
	used, passed := cpu(t, n.AgentPID())-before, time.Since(began)
	fmt.Printf("idle: %.2f %% of a core with %d pods, %d nodes, %d Services (%s), %s; %d changes\n",
		100*used.Seconds()/passed.Seconds(), *pods, *nodes, *services, *flavour, *encapsulation, changes.Load())
	changes.Store(0)
	n.StopAgent()
	n.SpawnAgent("--source", "dir:"+n.Manifests, "--node-name", "self", "--encapsulation", *encapsulation)
	n.Eventually("the agent is ready again", ready)
	time.Sleep(2 * time.Second)
	fmt.Printf("restart: %d changes\n", changes.Load())
	if t.Failed() || *profile != "" {
		fmt.Println(n.AgentLog())
	}
}

func node(name, address, network string) string {
	return fmt.Sprintf("---\napiVersion: v1\nkind: Node\nmetadata: {name: %s}\nspec: {podCIDRs: [%s]}\n"+
		"status: {addresses: [{type: InternalIP, address: %s}]}\n", name, network, address)
}

const service = `:KUBE-SVC-NUMBER - [0:0]
:KUBE-SEP-NUMBER-1 - [0:0]
:KUBE-SEP-NUMBER-2 - [0:0]
-A KUBE-SERVICES -d IP/32 -p tcp -m comment --comment "ns-NUMBER/service" -m tcp --dport 80 -j KUBE-SVC-NUMBER
-A KUBE-SVC-NUMBER -m comment --comment "ns" -m statistic --mode random --probability 0.5 -j KUBE-SEP-NUMBER-1
-A KUBE-SVC-NUMBER -m comment --comment "ns-NUMBER/service" -j KUBE-SEP-NUMBER-2
-A KUBE-SEP-NUMBER-1 -s 10.1.0.1/32 -m comment --comment "ns-NUMBER/service" -j MARK --set-xmark 0x4000/0x4000
-A KUBE-SEP-NUMBER-1 -p tcp -m comment --comment "ns-NUMBER/service" -m tcp -j DNAT --to-destination 10.1.0.1:80
-A KUBE-SEP-NUMBER-2 -s 10.1.0.2/32 -m comment --comment "ns-NUMBER/service" -j MARK --set-xmark 0x4000/0x4000
-A KUBE-SEP-NUMBER-2 -p tcp -m comment --comment "ns-NUMBER/service" -m tcp -j DNAT --to-destination 10.1.0.2:80
`

// restoreServices writes rules of kube-proxy, and a chain by which weir detects the flavour of iptables.
func restoreServices(t *testing.T) {
	t.Helper()
	var rules strings.Builder
	rules.WriteString("*mangle\n:KUBE-IPTABLES-HINT - [0:0]\nCOMMIT\n*nat\n:KUBE-SERVICES - [0:0]\n" +
		"-A PREROUTING -j KUBE-SERVICES\n-A OUTPUT -j KUBE-SERVICES\n")
	for i := range *services {
		_, _ = strings.NewReplacer("IP", fmt.Sprintf("172.30.%d.%d", i/250, 1+i%250), "NUMBER", fmt.Sprint(i)).
			WriteString(&rules, service)
	}
	restore := exec.Command("iptables-"+*flavour+"-restore", "--noflush")
	restore.Stdin = strings.NewReader(rules.String() + "COMMIT\n")
	if out, err := restore.CombinedOutput(); err != nil {
		t.Fatalf("iptables-%s-restore: %v: %s", *flavour, err, out)
	}
}

func cpu(t *testing.T, pid int) time.Duration {
	t.Helper()
	data, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	if err != nil {
		t.Fatal(err)
	}
	fields := strings.Fields(string(data[strings.LastIndex(string(data), ")")+2:]))
	ticks := 0
	for _, f := range fields[11:15] { // utime, stime, cutime and cstime in hundredths of a second (proc_pid_stat(5))
		n, err := strconv.Atoi(f)
		if err != nil {
			t.Fatal(err)
		}
		ticks += n
	}
	return time.Duration(ticks) * 10 * time.Millisecond
}

// countChanges counts changes of links, neighbours, addresses and routes. It ignores neighbours that aren't permanent,
// because the kernel itself changes such neighbours.
func countChanges(t *testing.T) *atomic.Int64 {
	t.Helper()
	s, err := nl.Subscribe(unix.NETLINK_ROUTE, unix.RTNLGRP_LINK, unix.RTNLGRP_NEIGH, unix.RTNLGRP_IPV4_IFADDR,
		unix.RTNLGRP_IPV6_IFADDR, unix.RTNLGRP_IPV4_ROUTE, unix.RTNLGRP_IPV6_ROUTE)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(s.Close)
	var count atomic.Int64
	go func() {
		for {
			msgs, _, err := s.Receive()
			if err != nil && !errors.Is(err, unix.ENOBUFS) {
				return
			}
			for _, m := range msgs {
				neighbour := m.Header.Type == unix.RTM_NEWNEIGH || m.Header.Type == unix.RTM_DELNEIGH
				if !neighbour || m.Data[8]&unix.NUD_PERMANENT != 0 { // the field ndm_state of a neighbour
					count.Add(1)
				}
			}
		}
	}()
	return &count
}
