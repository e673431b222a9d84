//go:build takeover

// Package takeover_test lets versions of weir take over a node from one another, while packets flow. An earlier
// commit's version comes first, then today's, then the earlier version again, and then today's again. scripts/blackbox
// builds the earlier programs, and runs these tests.
package takeover_test

import (
	"errors"
	"flag"
	"fmt"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"sync/atomic"
	"testing"

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
    ports: [{port: web}, {port: 8000, endPort: 8010}, {port: 53, protocol: UDP}]
  - from: [{ipBlock: {cidr: 192.0.2.0/24, except: [192.0.2.128/25]}}]
  egress: []
---
apiVersion: networking.k8s.io/v1
kind: NetworkPolicy
metadata: {name: locked, namespace: lab}
spec: {podSelector: {matchLabels: {app: locked}}, policyTypes: [Ingress, Egress]}
`

const denyStranger = `
apiVersion: networking.k8s.io/v1
kind: NetworkPolicy
metadata: {name: stranger, namespace: lab}
spec: {podSelector: {matchLabels: {app: stranger}}, policyTypes: [Ingress]}
`

func pod(namespace, name, app, more string) string {
	return fmt.Sprintf("---\napiVersion: v1\nkind: Pod\nmetadata: {name: %s, namespace: %s, labels: {app: %s}}\n%s", name,
		namespace, app, more)
}

func pods() string {
	all := pod("shop", "server", "server",
		"spec: {containers: [{name: c, ports: [{name: web, containerPort: 80}]}]}\n") +
		pod("shop", "client", "client", "") + pod("shop", "guest", "late", "") +
		pod("lab", "stranger", "stranger", "") + pod("lab", "locked", "locked", "")
	for i := range mostVersions {
		all += pod("shop", lateName(i), "late", "")
	}
	return all
}

// mostVersions is the largest number of versions that follow one another in a test.
const mostVersions = 5

func lateName(i int) string { return fmt.Sprintf("late-%d", i) }

// In these tests, kubelet stops an agent (Stop), or the agent is killed (Kill). Then the other version of weir takes
// over the node. At all times, all packets get the right verdict.
func TestStopWithIptables(t *testing.T) { takeOver(t, "iptables", (*nodetest.Node).StopAgent) }
func TestKillWithIptables(t *testing.T) { takeOver(t, "iptables", (*nodetest.Node).KillAgent) }
func TestStopWithNftables(t *testing.T) { takeOver(t, "nftables", (*nodetest.Node).StopAgent) }
func TestKillWithNftables(t *testing.T) { takeOver(t, "nftables", (*nodetest.Node).KillAgent) }

func takeOver(t *testing.T, backend string, end func(*nodetest.Node)) {
	if !nodetest.IsolatedWithWeir(t) {
		return
	}
	n := newNode(t, backend)
	for i, v := range n.versions() {
		if i > 0 {
			n.replace(v, end)
		} else {
			n.begin(v)
		}
		n.use(i, v)
	}
	n.traffic.stop(t)
	n.deletePods()
}

type version struct {
	name, programs string
	flags          []string
	backend        string // the backend that the agent should use; empty if the version knows only iptables
}

type node struct {
	*nodetest.Node
	today, backend                   string
	server, client, stranger, locked *nodetest.Pod
	attached                         []*nodetest.Pod // the pods that any version has attached
	traffic                          traffic
	wrong                            atomic.Int64 // counts datagrams that have arrived although no policy allows them
}

func newNode(t *testing.T, backend string) *node {
	n := &node{backend: backend, Node: nodetest.NewNode(t, nodetest.Conf{
		"ranges": []any{nodetest.Conf{"subnet": "10.88.0.0/24"}, nodetest.Conf{"subnet": "fd00:10:88::/64"}},
	})}
	t.Cleanup(n.traffic.end)
	n.today, n.Bin = n.Bin, t.TempDir()
	for _, name := range []string{"cnitool", "portmap"} {
		n.link(filepath.Join(n.today, name), filepath.Join(n.Bin, name))
	}
	nodetest.Run(t, "ip", "-n", "outside", "route", "add", "10.88.0.0/24", "via", "192.0.2.2")
	if backend == "nftables" {
		nodetest.Run(t, "nft", "add", "table", "ip", "kube-proxy")
	}
	n.Manifest("policies.yaml", policies+pods())
	return n
}

// versions returns the versions in the order in which they use the node. If the earlier version doesn't know the
// backend, today's agent moves back to iptables before the earlier version comes back, as docs/installing.md says.
func (n *node) versions() []version {
	help, err := exec.Command(filepath.Join(*before, "weir-agent"), "run", "--help").CombinedOutput()
	if err != nil {
		n.Fatalf("weir-agent run --help: %v: %s", err, help)
	}
	earlier := version{name: "the earlier version", programs: *before}
	today := version{name: "today's version", programs: n.today, backend: n.backend}
	if strings.Contains(string(help), "--backend") {
		earlier.backend = n.backend
	}
	if n.backend == "iptables" || earlier.backend != "" {
		return []version{earlier, today, earlier, today}
	}
	back := today
	back.name, back.backend, back.flags = "today's version on its way back", "iptables", []string{"--backend=iptables"}
	return []version{earlier, today, back, earlier, today}
}

// begin starts the first version, attaches pods, and starts the traffic between the pods.
func (n *node) begin(v version) {
	n.install(v)
	n.start(v)
	add := func(namespace, name string) *nodetest.Pod {
		p := n.AddPod(namespace, name)
		n.attached = append(n.attached, p)
		return p
	}
	n.server, n.client = add("shop", "server"), add("shop", "client")
	n.stranger, n.locked = add("lab", "stranger"), add("lab", "locked")
	n.Serve(n.server.Netns, "tcp", ":80")
	n.Serve(n.server.Netns, "tcp", ":8005")
	n.Serve(n.stranger.Netns, "tcp", ":80")
	n.traffic.echoes(n, n.server.Netns, ":53", n.isWrong)
	n.Reach(n.client, n.server.IP+":80", true)
	n.Reach(n.stranger, n.server.IP+":80", false)

	n.traffic.mayReach(n, n.client, n.server)
	for _, host := range []string{n.server.IP, "[" + n.server.IP6 + "]"} {
		n.traffic.keeps(n, n.client.Netns, "tcp", host+":80")
		n.traffic.keeps(n, n.client.Netns, "udp", host+":53")
		n.traffic.connects(n, n.client.Netns, host+":8005")
		for _, p := range []*nodetest.Pod{n.stranger, n.locked} {
			n.traffic.never(n, p.Netns, host+":80")
			n.traffic.sends(n, p.Netns, host+":53")
		}
	}
	n.traffic.never(n, n.locked.Netns, n.stranger.IP+":80")
	n.traffic.never(n, n.server.Netns, "["+n.stranger.IP6+"]:80")
	n.traffic.connects(n, n.Outside, n.server.IP+":80")
}

// isWrong reports whether the policies deny datagrams from this address to the server. It also counts such datagrams.
func (n *node) isWrong(from netip.Addr) bool {
	for _, p := range []*nodetest.Pod{n.stranger, n.locked} {
		if from.String() == p.IP || from.String() == p.IP6 {
			n.wrong.Add(1)
			return true
		}
	}
	return false
}

// replace replaces the running version by v. Meanwhile v's plugin deletes a pod that the old version has attached.
func (n *node) replace(v version, end func(*nodetest.Node)) {
	guest := n.AddPod("shop", "guest")
	n.traffic.waitForMore(n)
	n.install(v)
	end(n.Node)
	n.DelPod(guest)
	n.traffic.waitForMore(n)
	n.start(v)
	n.traffic.waitForMore(n)
}

// use calls CHECK for all pods, attaches another pod, and adds and removes a policy. The test fails if a datagram that
// no policy allows has arrived since the last call of use.
func (n *node) use(i int, v version) {
	for _, p := range n.attached { // most of them were attached by other versions
		if out, err := n.CNI("check", p.Netns, nodetest.Args(p.Namespace, p.Name, "")); err != nil {
			n.Errorf("%s: CHECK %s/%s: %v %s", v.name, p.Namespace, p.Name, err, out)
		}
	}
	late := n.AddPod("shop", lateName(i))
	n.attached = append(n.attached, late)
	// The earlier version's ADD may return before the pod's first packets pass, so wait until they pass.
	n.Reach(late, n.server.IP+":80", true)
	n.Reach(late, "["+n.server.IP6+"]:80", true)
	n.traffic.mayReach(n, late, n.server)
	n.traffic.never(n, n.locked.Netns, late.IP+":80")
	n.Manifest("stranger.yaml", denyStranger)
	n.Reach(n.client, n.stranger.IP+":80", false)
	n.Reach(late, "["+n.stranger.IP6+"]:80", false)
	n.Manifest("stranger.yaml", "")
	n.Reach(n.client, n.stranger.IP+":80", true)
	n.Reach(late, "["+n.stranger.IP6+"]:80", true)
	n.traffic.waitForMore(n)

	if wrong := n.wrong.Swap(0); wrong > 0 {
		n.Errorf("%s: %d datagrams have arrived that no policy allows", v.name, wrong)
	}
	if n.Failed() {
		n.FailNow()
	}
}

func (n *node) deletePods() {
	for _, p := range n.attached {
		n.DelPod(p)
	}
	n.Eventually("nothing is left of the pods", func() error {
		out, err := nodetest.Try("sh", "-c", "ipset list; nft list ruleset; ip -o link; ls /run/weir/endpoints")
		for _, p := range n.attached {
			for _, ip := range []string{p.IP, p.IP6} {
				if regexp.MustCompile(regexp.QuoteMeta(ip) + `([^0-9a-f:]|$)`).MatchString(out) {
					err = errors.Join(err, fmt.Errorf("%s of %s is left:\n%s", ip, p.Name, out))
				}
			}
		}
		return err
	})
}

func (n *node) start(v version) {
	n.SpawnAgent(append([]string{"--source", "dir:" + n.Manifests}, v.flags...)...)
	n.Eventually(v.name+" is ready", func() error {
		_, err := n.Ctl("status")
		if err != nil || v.backend == "" {
			return err
		}
		name, err := os.ReadFile("/run/weir/lock")
		if err == nil && string(name) != v.backend {
			err = fmt.Errorf("the plugin is told %q, want %q", name, v.backend)
		}
		return err
	})
}

// install replaces each program in one step, as an update does.
func (n *node) install(v version) {
	n.Helper()
	for _, name := range programs {
		program, err := filepath.Abs(filepath.Join(v.programs, name))
		if err != nil {
			n.Fatal(err)
		}
		n.link(program, filepath.Join(n.Bin, name))
	}
}

func (n *node) link(program, to string) {
	n.Helper()
	if err := errors.Join(os.Symlink(program, to+".new"), os.Rename(to+".new", to)); err != nil {
		n.Fatal(err)
	}
}
