package blackbox

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/weir-net/weir/test/nodetest"
)

func flowTable() bool { return exec.Command("nft", "list", "table", "inet", "weir-flows").Run() == nil }

// TestFlowsAndSuggestions: policies that weirctl suggests from recorded flows allow exactly these flows. If the agent
// is killed, the next agent removes the table that logs flows.
func TestFlowsAndSuggestions(t *testing.T) {
	if !nodetest.IsolatedWithWeir(t) {
		return
	}
	n := nodetest.NewNode(t, nil)
	n.Manifest("shop.yaml", pods("shop", "web", "db", "other"))
	n.StartAgent()
	web, db, other := n.AddPod("shop", "web"), n.AddPod("shop", "db"), n.AddPod("shop", "other")
	n.Serve(db.Netns, "tcp", ":5432")
	n.Serve(db.Netns, "tcp", ":80")
	if _, err := n.Ctl("flows"); err == nil || !strings.Contains(err.Error(), "no flows were recorded") || flowTable() {
		t.Errorf("without a recording: %v, the kernel has the table: %v", err, flowTable())
	}
	if out, err := n.Ctl("flows", "--record", "1h"); err != nil || !strings.Contains(out, "recorded until") {
		t.Fatalf("%v\n%s", err, out)
	}
	n.Eventually("the kernel logs flows", func() error {
		if !flowTable() {
			return fmt.Errorf("it doesn't")
		}
		return nil
	})
	n.Eventually("the flow shows", func() error {
		n.Reach(web, db.IP+":5432", true)
		text, err := n.Ctl("flows", "-n", "shop")
		if err != nil || !strings.Contains(text, "shop/web ("+web.IP+")") ||
			!strings.Contains(text, "shop/db ("+db.IP+":5432)") {
			return fmt.Errorf("%w\n%s", err, text)
		}
		t.Log(text)
		return nil
	})
	policies, err := n.Ctl("suggest", "-n", "shop", "--since", "1h")
	if err != nil {
		t.Fatal(err)
	}
	t.Log(policies)
	n.Manifest("suggested.yaml", policies)
	// Wait, because the agent would also record a connection that passes before the policies are in force.
	n.Eventually("the suggested policies are in force", func() error {
		out, err := n.Ctl("status")
		if err == nil && !strings.Contains(out, "shop/allow-db") {
			err = fmt.Errorf("they aren't:\n%s", out)
		}
		return err
	})
	n.Reach(web, db.IP+":5432", true)
	n.Reach(other, db.IP+":5432", false)
	n.Reach(web, db.IP+":80", false)
	if text, err := n.Ctl("flows"); err != nil || strings.Contains(text, "shop/other") {
		t.Errorf("dropped connections are among the flows: %v\n%s", err, text)
	}
	file := filepath.Join(t.TempDir(), "flows.json")
	text, err := n.Ctl("flows", "-o", "json")
	if err == nil {
		err = os.WriteFile(file, []byte(text), 0o600)
	}
	if err != nil {
		t.Fatal(err)
	}
	if again, err := n.Ctl("suggest", "-n", "shop", "--flows", file, "--source", "dir:"+n.Manifests); err != nil ||
		!strings.Contains(again, "name: allow-db") {
		t.Errorf("from files: %v\n%s", err, again)
	}
	n.KillAgent()
	if !flowTable() {
		t.Error("the killed agent has removed its table: the test shows nothing")
	}
	n.StartAgent()
	n.Eventually("a new agent removes the table", func() error {
		if flowTable() {
			return fmt.Errorf("it is there")
		}
		return nil
	})
	if _, err := n.Ctl("flows", "--record", "1h"); err != nil {
		t.Fatal(err)
	}
	n.Eventually("the kernel logs flows again", func() error {
		if !flowTable() {
			return fmt.Errorf("it doesn't")
		}
		return nil
	})
	if _, err := n.Ctl("flows", "--stop"); err != nil {
		t.Fatal(err)
	}
	n.Eventually("the recording ends", func() error {
		if flowTable() {
			return fmt.Errorf("the table is there")
		}
		return nil
	})
}
