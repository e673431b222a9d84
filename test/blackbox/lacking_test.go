package blackbox

import (
	"bytes"
	"os"
	"path/filepath"
	"strings"
	"sync/atomic"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/weir-net/weir/test/nodetest"
)

// withoutXtables hides the programs of ipset and xtables, and makes the kernel refuse their requests with the error
// refused. If refused is 0, the kernel instead seems to lack ipset and xtables.
func withoutXtables(t *testing.T, refused unix.Errno) {
	t.Helper()
	programs := t.TempDir()
	for _, dir := range filepath.SplitList(os.Getenv("PATH")) {
		entries, _ := os.ReadDir(dir) // an error is ignored: PATH may name a directory that doesn't exist
		for _, e := range entries {
			name := e.Name()
			if strings.Contains(name, "tables") || strings.HasPrefix(name, "ipset") {
				continue
			}
			if err := os.Symlink(filepath.Join(dir, name), filepath.Join(programs, name)); err != nil && !os.IsExist(err) {
				t.Fatal(err)
			}
		}
	}
	t.Setenv("PATH", programs)
	nodetest.EditNetlink(t, false, func(message []byte) unix.Errno {
		const compat, unused = 11, 0x3f
		switch subsystem := &message[5]; *subsystem { // the numbers of subsystems are in nfnetlink.h
		case unix.NFNL_SUBSYS_IPSET, compat:
			if refused != 0 {
				return refused
			}
			*subsystem = unused
		case unix.NFNL_SUBSYS_NFTABLES: // renames xtables' expressions match and target, so that the kernel lacks them
			for _, name := range []string{"\x0a\x00\x01\x00match\x00", "\x0b\x00\x01\x00target\x00"} {
				other := strings.Replace(name, "a", "-", 1)
				copy(message, bytes.ReplaceAll(message, []byte(name), []byte(other)))
			}
		}
		return 0
	})
}

// TestStatusWithoutAgentAndIpset: on a node without an agent and without ipset, weirctl status says that no agent
// answers, and that the sets can't be read.
func TestStatusWithoutAgentAndIpset(t *testing.T) {
	if !nodetest.IsolatedWithWeir(t) {
		return
	}
	n := nodetest.NewNode(t, nil)
	withoutXtables(t, 0)
	out, err := n.Ctl("status")
	if err == nil || !strings.Contains(out, "no agent answers") || !strings.Contains(out, "can't be read") {
		t.Errorf("weirctl status: %v\n%s", err, out)
	}
}

// TestMissingModules: if the kernel can't load the module bridge or veth, the error of ADD names the module. The test
// renames the kind of link in the message to the kernel, so that the kernel knows no such kind.
func TestMissingModules(t *testing.T) {
	if !nodetest.IsolatedWithWeir(t) {
		return
	}
	n := nodetest.NewNode(t, nil)
	n.Manifest("cluster.yaml", isolated)
	n.StartAgent()
	var missing atomic.Value
	missing.Store("bridge")
	nodetest.EditNetlink(t, true, func(message []byte) unix.Errno {
		kind := "\x01\x00" + missing.Load().(string)
		copy(message, bytes.ReplaceAll(message, []byte(kind), []byte(kind[:len(kind)-1]+"x")))
		return 0
	})
	for _, module := range []string{"bridge", "veth"} {
		missing.Store(module)
		if _, err := n.TryAddPod("shop", "client"); err == nil || !strings.Contains(err.Error(), "modprobe "+module) {
			t.Errorf("without %s: %v", module, err)
		}
	}
	missing.Store("none")
	n.AddPod("shop", "client")
}

// TestNodeWithoutXtables: with nftables, policies are enforced on a node that has neither ipset nor xtables.
func TestNodeWithoutXtables(t *testing.T) {
	if !nodetest.IsolatedWithWeir(t) {
		return
	}
	nodeWithoutXtables(t, 0)
}

// TestNodeThatRefusesXtables: with nftables, policies are enforced on a node whose kernel refuses ipset and xtables.
func TestNodeThatRefusesXtables(t *testing.T) {
	if !nodetest.IsolatedWithWeir(t) {
		return
	}
	nodeWithoutXtables(t, unix.EPERM)
}

func nodeWithoutXtables(t *testing.T, refused unix.Errno) {
	t.Helper()
	n := nodetest.NewNode(t, dualStack)
	// The configuration has no portmap, which needs xtables.
	n.ConfigureList(nodetest.Conf{"type": "weir", "ranges": dualStack["ranges"]})
	withoutXtables(t, refused)
	n.Manifest("cluster.yaml", isolated)
	n.SpawnAgent("--source", "dir:"+n.Manifests, "--backend", "nftables")
	n.Eventually("the agent is ready", func() error {
		_, err := n.Ctl("status")
		return err
	})
	n.Serve(n.Outside, "tcp", ":80")
	for range 2 {
		client, other, attacker := n.AddPod("shop", "client"), n.AddPod("shop", "other"), n.AddPod("shop", "attacker")
		n.Serve(attacker.Netns, "tcp", ":80")
		n.Serve(client.Netns, "tcp", ":80")
		for _, address := range []string{
			attacker.IP + ":80", "[" + attacker.IP6 + "]:80", "192.0.2.1:80", "[2001:db8::1]:80",
		} {
			n.Reach(other, address, true)
			n.Reach(client, address, false)
		}
		n.Reach(other, client.IP+":80", false)
		n.Reach(other, "["+client.IP6+"]:80", false)
		out, err := n.Ctl("status")
		if err != nil || !strings.Contains(out, "nftables") || strings.Contains(out, "ERROR") {
			t.Errorf("weirctl status: %v\n%s", err, out)
		}
		for _, p := range []*nodetest.Pod{client, other, attacker} {
			n.DelPod(p)
		}
	}
}
