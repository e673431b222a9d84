package blackbox

import (
	"bufio"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/weir-net/weir/test/nodetest"
)

// TestConnect: weirctl connect passes a request to the agent and prints the answer, even if the command's input stays
// open.
func TestConnect(t *testing.T) {
	if !nodetest.IsolatedWithWeir(t) {
		return
	}
	n := nodetest.NewNode(t, nil)
	connect := func() (string, error) {
		cmd := exec.CommandContext(t.Context(), filepath.Join(n.Bin, "weirctl"), "connect")
		in, err := cmd.StdinPipe() // never closed: kubectl exec may keep the input open
		if err != nil {
			t.Fatal(err)
		}
		go func() { _, _ = io.WriteString(in, "GET /v1/summary HTTP/1.0\r\n\r\n") }()
		out, err := cmd.CombinedOutput()
		_ = in.Close()
		return string(out), err
	}
	if out, err := connect(); err == nil || !strings.Contains(out, "weirctl: no agent answers on /run/weir/agent.sock") {
		t.Errorf("without an agent: %v, %s", err, out)
	}
	n.Manifest("pods.yaml", twoPods)
	n.StartAgent()
	n.AddPod("ns", "client")
	// The agent answers ADD before it renews its status, so the first summary may lack the pod.
	n.Eventually("the summary has the pod", func() error {
		out, err := connect()
		if err != nil {
			return fmt.Errorf("%w: %s", err, out)
		}
		answer, err := http.ReadResponse(bufio.NewReader(strings.NewReader(out)), nil)
		if err != nil {
			return err
		}
		defer func() { _ = answer.Body.Close() }()
		var s struct {
			Version            string
			Ready              bool
			Pods, Closed, Sets int
		}
		err = json.NewDecoder(answer.Body).Decode(&s)
		if err != nil || !s.Ready || s.Pods != 1 || s.Closed != 0 || s.Sets == 0 ||
			!strings.HasPrefix(s.Version, "weir-agent: commit") {
			return fmt.Errorf("%w: %+v", err, s)
		}
		return nil
	})
}
