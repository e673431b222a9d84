package main

import (
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/weir-net/weir/test/nodetest"
)

func weirOnNode(t *testing.T, n *nodetest.Node) string {
	t.Helper()
	var all []string
	for _, cmd := range []string{
		"ls " + n.ConfDir, "ip -o link", "ip route show proto 88", "ip -6 route", "ipset list -name", "nft list tables",
		"iptables-nft-save", "iptables-legacy-save", "ip6tables-nft-save", "ip6tables-legacy-save",
	} {
		args := strings.Fields(cmd)
		for line := range strings.Lines(nodetest.Run(t, args[0], args[1:]...)) {
			if strings.Contains(strings.ToLower(line), "weir") {
				all = append(all, cmd+": "+strings.TrimSpace(line))
			}
		}
	}
	return strings.Join(all, "\n")
}

func TestCleanup(t *testing.T) {
	if !nodetest.IsolatedWithWeir(t) {
		return
	}
	n := newNode(t, dualStack)
	server, client := n.AddPod("ns-1", "http-echo"), n.AddPod("ns-2", "other")
	n.Serve(server.Netns, "tcp", ":80")
	n.Reach(client, server.IP+":80", true)
	n.Reach(client, "["+server.IP6+"]:80", true)
	cleanup := func() (string, error) {
		out, err := exec.Command(filepath.Join(n.Bin, "weir-agent"), "cleanup",
			"--conflist", filepath.Join(n.ConfDir, "10-weir.conflist")).CombinedOutput()
		return string(out), err
	}
	// The test tries several times, because the agent itself may remove something between the two calls of weirOnNode.
	for try := 1; ; try++ {
		before := weirOnNode(t, n)
		if out, err := cleanup(); err == nil || !strings.Contains(out, "another weir-agent runs on this node") {
			t.Fatalf("with an agent that would put everything back: %v: %s", err, out)
		}
		got := weirOnNode(t, n)
		if got == before {
			break
		}
		if try == 10 {
			t.Fatalf("with an agent, before and after:\n%s\n\n%s", before, got)
		}
	}
	conflist, err := os.ReadFile(filepath.Join(n.ConfDir, "10-weir.conflist"))
	if err != nil {
		t.Fatal(err)
	}
	n.StopAgent()
	for range 2 { // the second cleanup changes nothing
		if out, err := cleanup(); err != nil {
			t.Fatalf("%v: %s", err, out)
		}
		if got := weirOnNode(t, n); got != "" {
			t.Errorf("left on the node:\n%s", got)
		}
	}
	n.Reach(client, server.IP+":80", false)
	n.Reach(client, "["+server.IP6+"]:80", false)
	// A runtime keeps the configuration of each pod's ADD for the pod's DEL. So the test writes back the file that
	// the cleanup has removed.
	if err := os.WriteFile(filepath.Join(n.ConfDir, "10-weir.conflist"), conflist, 0o600); err != nil {
		t.Fatal(err)
	}
	n.DelPod(server)
	n.DelPod(client)
	if left := leftovers(t); len(left) > 0 {
		t.Errorf("left of the pods: %s", left)
	}
}
