package blackbox

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"github.com/weir-net/weir/test/nodetest"
)

const shortageCluster = `
apiVersion: v1
kind: Namespace
metadata: {name: ns-1}
---
apiVersion: v1
kind: Pod
metadata: {name: one, namespace: ns-1}
---
apiVersion: v1
kind: Pod
metadata: {name: two, namespace: ns-1}
`

// TestNoAddressIsLeft: if no address is left, ADD refuses the pod, but STATUS succeeds. If STATUS failed, the node
// would become NotReady, and running pods would be evicted.
func TestNoAddressIsLeft(t *testing.T) {
	if !nodetest.IsolatedWithWeir(t) {
		return
	}
	ranges := []any{nodetest.Conf{"subnet": "10.88.0.0/24", "rangeEnd": "10.88.0.2"}} // 10.88.0.1 is the gateway
	n := nodetest.NewNode(t, nodetest.Conf{"ranges": ranges})
	n.Manifest("cluster.yaml", shortageCluster)
	n.StartAgent()
	one := n.AddPod("ns-1", "one")

	config, err := json.Marshal(nodetest.Conf{"cniVersion": "1.1.0", "name": "weir", "type": "weir", "ranges": ranges})
	if err != nil {
		t.Fatal(err)
	}
	plugin := func(env ...string) (string, error) {
		cmd := exec.Command(filepath.Join(n.Bin, "weir"))
		cmd.Env = append(append(os.Environ(), "CNI_PATH="+n.Bin), env...)
		cmd.Stdin = strings.NewReader(string(config))
		out, err := cmd.CombinedOutput()
		return string(out), err
	}
	out, err := plugin("CNI_COMMAND=ADD", "CNI_CONTAINERID=two", "CNI_IFNAME=eth0",
		"CNI_NETNS="+nodetest.NewNS(t, "ns-1.two"), "CNI_ARGS="+nodetest.Args("ns-1", "two", ""))
	if err == nil {
		t.Fatal("a second pod got an address of a range that has one")
	}
	for _, words := range []string{`"code": 11`, "all 1 addresses are assigned", "weirctl pods"} {
		if !strings.Contains(out, words) {
			t.Errorf("the error of ADD lacks %q: %v", words, out)
		}
	}
	if out, err := plugin("CNI_COMMAND=STATUS"); err != nil {
		t.Errorf("STATUS fails, so kubelet would have running pods evicted: %v: %s", err, out)
	}

	reported := func(want bool) error {
		out, err := n.Ctl("status")
		if err != nil {
			return err
		}
		metrics, err := metrics()
		if err != nil {
			return err
		}
		inStatus := strings.Contains(out, "10.88.0.0/24") && strings.Contains(out, "all 1 addresses are assigned")
		inMetrics := strings.Contains(metrics, `weir_fault{part="addresses"} 1`)
		if inStatus != want || inMetrics != want {
			return fmt.Errorf("reported in the status: %v, in the metrics: %v", inStatus, inMetrics)
		}
		return nil
	}
	n.Eventually("the agent reports the shortage", func() error { return reported(true) })
	if !strings.Contains(n.AgentLog(), "all 1 addresses are assigned") {
		t.Error("the log doesn't name the shortage")
	}
	n.DelPod(one)
	n.Eventually("the shortage is over", func() error { return reported(false) })
	n.AddPod("ns-1", "two")
}

// TestNoRoomIsLeft: if /run/weir has no space or no inodes left, no pod can start, and the agent reports why. The agent
// still renews its heartbeat.
func TestNoRoomIsLeft(t *testing.T) {
	if !nodetest.IsolatedWithWeir(t) {
		return
	}
	if err := os.MkdirAll("/run/weir", 0o700); err != nil {
		t.Fatal(err)
	}
	if err := syscall.Mount("tmpfs", "/run/weir", "tmpfs", 0, "size=1m,nr_inodes=200"); err != nil {
		t.Fatal(err)
	}
	n := nodetest.NewNode(t, nil)
	n.Manifest("cluster.yaml", shortageCluster)
	n.StartAgent()
	n.AddPod("ns-1", "one")
	// If the first round had no policies yet, the agent writes its backend's name a second after the first round with
	// policies. Without room for the name, the agent isn't ready.
	n.Eventually("the agent has written the name of its backend", func() error {
		name, err := os.ReadFile("/run/weir/lock")
		if err == nil && len(name) == 0 {
			err = errors.New("it hasn't")
		}
		return err
	})
	const filler = "/run/weir/filler"
	for lacks, fill := range map[string]func() error{
		"space": func() error {
			f, err := os.OpenFile(filler, os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o600)
			if err == nil {
				_, err = f.Write(make([]byte, 2<<20))
				err = errors.Join(err, f.Close())
			}
			return err
		},
		"inodes": func() error {
			err := os.MkdirAll(filler, 0o700)
			for i := 0; err == nil; i++ {
				err = os.WriteFile(filepath.Join(filler, fmt.Sprint(i)), nil, 0o600)
			}
			return err
		},
	} {
		if err := fill(); !errors.Is(err, syscall.ENOSPC) {
			t.Fatalf("fill the %s: %v", lacks, err)
		}
		n.Eventually("the agent says that there are no "+lacks, func() error {
			out, err := n.Ctl("status")
			if err == nil && !strings.Contains(out, "has no "+lacks+" left") {
				err = errors.New("it doesn't")
			}
			return err
		})
		// During the first call of fill, the agent may have had a temporary file, whose space is free again.
		if err := fill(); !errors.Is(err, syscall.ENOSPC) {
			t.Fatalf("fill the %s again: %v", lacks, err)
		}
		if _, err := n.TryAddPod("ns-1", "two"); err == nil || !strings.Contains(err.Error(), "no space left on device") {
			t.Errorf("without %s, ADD says %v", lacks, err)
		}
		if err := os.RemoveAll(filler); err != nil {
			t.Fatal(err)
		}
		n.Eventually("the fault is over", func() error {
			out, err := n.Ctl("status")
			if err == nil && strings.Contains(out, "ERROR") {
				err = errors.New(out)
			}
			return err
		})
	}
	n.AddPod("ns-1", "two")
}

func metrics() (string, error) {
	resp, err := http.Get("http://127.0.0.1:6786/metrics") //nolint:noctx // the test's own agent answers at once
	if err != nil {
		return "", err
	}
	body, err := io.ReadAll(resp.Body)
	return string(body), errors.Join(err, resp.Body.Close())
}
