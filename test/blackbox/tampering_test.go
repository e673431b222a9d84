package blackbox

import (
	"encoding/json"
	"errors"
	"fmt"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/weir-net/weir/test/nodetest"
)

var podAddress = regexp.MustCompile(`10\.77\.0\.\d+`)

// TestAddsAndDelsAreNobodysTampering: ADD and DEL change sets while the agent reads the sets from the kernel and
// repairs them (a resync). The agent doesn't undo these changes. While ADD of a pod runs, the agent doesn't take the
// pod's address out of the set of all pods.
func TestAddsAndDelsAreNobodysTampering(t *testing.T) {
	if !nodetest.IsolatedWithWeir(t, "main/ptp", "ipam/host-local") {
		return
	}
	n := nodetest.NewNode(t, nil)
	n.ConfigureList(nodetest.Conf{"type": "ptp", "ipam": nodetest.Conf{
		"type": "host-local", "ranges": []any{[]any{nodetest.Conf{"subnet": "10.77.0.0/24"}}},
	}}, nodetest.Conf{"type": "weir"})
	const at, times = 3, 12
	var names []string
	for i := range at {
		names = append(names, fmt.Sprint("p", i))
	}
	n.Manifest("pods.yaml", pods("x", names...))
	n.Manifest("deny.yaml", denyX)
	n.StartAgent()

	stop, stopped := make(chan struct{}), make(chan struct{})
	go func() { // the kernel reports each of these changes, and so the agent resyncs
		defer close(stopped)
		for {
			select {
			case <-stop:
				return
			default:
			}
			disturbRules()
			time.Sleep(5 * time.Millisecond)
		}
	}()
	var wg sync.WaitGroup
	for _, name := range names {
		nodetest.NewNS(t, "x."+name)
		wg.Go(func() {
			for range times {
				ended, left := make(chan struct{}), make(chan map[string]bool)
				go func() { left <- leavers(ended) }()
				pod, err := n.TryAddPod("x", name)
				if err != nil {
					t.Errorf("add %s: %v", name, err)
				}
				close(ended)
				if (<-left)[pod.IP] {
					t.Errorf("the address of pod x/%s has left the set of all pods while its ADD was on its way", name)
				}
				if _, err := n.CNI("del", pod.Netns, nodetest.Args("x", name, "")); err != nil {
					t.Errorf("del %s: %v", name, err)
				}
			}
		})
	}
	wg.Wait()
	close(stop)
	<-stopped
	leaves := func(address string) {
		t.Helper()
		n.Eventually(address+" is not in the set of all pods", func() error {
			if out, err := podSet(); err != nil || strings.Contains(out, address) {
				return fmt.Errorf("it is: %w\n%s", err, out)
			}
			return nil
		})
	}
	leaves("10.77.0.")
	const stray = "203.0.113.9"
	nodetest.RunEach(t, nodetest.PutInto(nodetest.PodSet, stray))
	leaves(stray)
	n.Eventually("the agent says so", func() error {
		if !strings.Contains(n.AgentLog(), stray) {
			return fmt.Errorf("%s", n.AgentLog())
		}
		return nil
	})
	for line := range strings.Lines(n.AgentLog()) {
		if strings.Contains(line, "another program") && !strings.Contains(line, "addresses=["+stray+"]") {
			t.Errorf("the agent says that another program changed weir's sets or rules, which none did: %s", line)
		}
	}
}

// leavers reads the set of all pods again and again until the channel is closed. It returns each address that was in
// the set and is not in it at a later reading, for example because its pod has ended.
func leavers(ended <-chan struct{}) map[string]bool {
	left, seen := map[string]bool{}, map[string]bool{}
	for {
		select {
		case <-ended:
			return left
		default:
		}
		out, err := podSet()
		if err != nil {
			continue
		}
		in := map[string]bool{}
		for _, address := range podAddress.FindAllString(out, -1) {
			in[address], seen[address] = true, true
		}
		for address := range seen {
			left[address] = left[address] || !in[address]
		}
	}
}

// unneeded returns an error if the kernel has ipsets that the backend doesn't use. It also returns an error if the
// table "ip weir" exists with the backend iptables, or is missing with nftables.
func unneeded(n *nodetest.Node, backend string) error {
	text, err := n.Ctl("status", "-o", "json")
	var status struct{ Sets []struct{ Name string } }
	if err := errors.Join(err, json.Unmarshal([]byte(text), &status)); err != nil {
		return err
	}
	want := map[string]bool{}
	for _, s := range status.Sets {
		want[s.Name] = backend == "iptables"
	}
	for set := range strings.FieldsSeq(nodetest.Run(n, "ipset", "list", "-n")) {
		if !want[set] {
			return fmt.Errorf("ipset %s", set)
		}
	}
	table := strings.Contains(nodetest.Run(n, "nft", "list", "tables"), "table ip weir\n")
	if table != (backend == "nftables") {
		return fmt.Errorf("table ip weir: %v", table)
	}
	return nil
}

// TestRemovedFiles: another program removes all files directly in /run/weir. No pod starts until the agent has made the
// files again, and the policies stay in force. Then the other program also removes the directories: the agent ends, and
// the pods that lose their records are closed (all their new connections are dropped).
func TestRemovedFiles(t *testing.T) {
	if !nodetest.IsolatedWithWeir(t) {
		return
	}
	n := nodetest.NewNode(t, nil)
	n.Manifest("pods.yaml", pods("quiet", "closed", "late")+"---\n"+pods("other", "client", "open", "new")+
		"---"+denyAllIngress)
	n.StartAgent()
	client, closed, open := n.AddPod("other", "client"), n.AddPod("quiet", "closed"), n.AddPod("other", "open")
	for _, p := range []*nodetest.Pod{closed, open} {
		n.Serve(p.Netns, "tcp", p.IP+":80")
	}
	files := func() string {
		return nodetest.Run(t, "sh", "-c", "cd /run/weir; find . -maxdepth 1 -type f -o -type s | sort")
	}
	sets := func() string {
		t.Helper()
		return nodetest.Run(t, "sh", "-c", "ipset list -n; nft list tables")
	}
	var name string
	n.Eventually("the agent has written the backend's name", func() error {
		if name = nodetest.Run(t, "cat", "/run/weir/lock"); name == "" {
			return errors.New("it is empty")
		}
		return nil
	})
	n.Eventually("the agent has deleted all that it doesn't need", func() error { return unneeded(n, name) })
	before, setsBefore := files(), sets()

	// The agent looks for its files every ten seconds. The test stops the agent, so that the files are still missing when
	// ADD runs.
	signal := func(s unix.Signal) {
		t.Helper()
		if err := unix.Kill(n.AgentPID(), s); err != nil {
			t.Fatal(err)
		}
	}
	signal(unix.SIGSTOP)
	nodetest.Run(t, "sh", "-c", "rm -f /run/weir/* 2>/dev/null || :")
	if _, err := n.TryAddPod("quiet", "late"); err == nil {
		t.Error("a pod starts without the agent's socket")
	}
	signal(unix.SIGCONT)
	n.Reach(client, closed.IP+":80", false)
	n.Reach(client, open.IP+":80", true)
	n.Eventually("the agent has made its files again", func() error {
		if now := files(); now != before {
			return fmt.Errorf("%s\nwant %s", now, before)
		}
		if now := nodetest.Run(t, "cat", "/run/weir/lock"); now != name {
			return fmt.Errorf("the backend's name is %q, want %q", now, name)
		}
		_, err := n.Ctl("status")
		return err
	})
	n.Eventually("the plugin's sets in the other backend are gone", func() error {
		if now := sets(); now != setsBefore {
			return fmt.Errorf("%s\nwant\n%s", now, setsBefore)
		}
		return nil
	})
	// cleanup needs the agent's lock, so it must fail while an agent runs.
	out, err := exec.Command(filepath.Join(n.Bin, "weir-agent"), "cleanup").CombinedOutput()
	if err == nil || !strings.Contains(string(out), "another weir-agent runs on this node") {
		t.Errorf("beside the agent: %v: %s", err, out)
	}
	late, added := n.AddPod("quiet", "late"), n.AddPod("other", "new")
	n.Serve(late.Netns, "tcp", late.IP+":80")
	n.Serve(added.Netns, "tcp", added.IP+":80")
	for _, p := range []*nodetest.Pod{closed, late} {
		n.Reach(client, p.IP+":80", false)
	}
	for _, p := range []*nodetest.Pod{open, added} {
		n.Reach(client, p.IP+":80", true)
	}

	nodetest.Run(t, "sh", "-c", "rm -rf /run/weir/*")
	n.Eventually("the agent has ended", func() error {
		if !strings.Contains(n.AgentLog(), "the directory is gone") {
			return errors.New(n.AgentLog())
		}
		return nil
	})
	n.KillAgent()
	n.StartAgent()
	for _, p := range []*nodetest.Pod{closed, open} { // their records are lost, so both are closed
		n.Reach(client, p.IP+":80", false)
	}
}
