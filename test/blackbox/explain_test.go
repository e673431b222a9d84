package blackbox

import (
	"encoding/json"
	"errors"
	"fmt"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/weir-net/weir/test/nodetest"
)

type explanation struct {
	Result string
	Paths  []path
}

type path struct {
	Result string
	Sides  []struct {
		Direction, Result, Reason string
		Policies                  []string
		Nearest                   []struct {
			Policy, Field string
			Misses        []struct{ Object, Field, Wants, Kind, Why string }
		}
	}
	Kernel *struct {
		Result      string
		Classes     []struct{ Direction, Pod, Set string }
		Differences []string
		Unknown     string
	}
}

func explain(n *nodetest.Node, args ...string) (e explanation, code int) {
	n.Helper()
	args = append([]string{"explain", "-o", "json"}, args...)
	out, err := exec.Command(filepath.Join(n.Bin, "weirctl"), args...).Output()
	var exit *exec.ExitError
	if errors.As(err, &exit) {
		code = exit.ExitCode()
	} else if err != nil {
		n.Fatal(err)
	}
	if err := json.Unmarshal(out, &e); err != nil {
		n.Fatalf("weirctl explain %v: exit code %d, %v\n%s", args, code, err, out)
	}
	return e, code
}

func mendable(labels, team string, port int) string {
	return fmt.Sprintf(`
apiVersion: v1
kind: Namespace
metadata: {name: shop}
---
apiVersion: v1
kind: Namespace
metadata: {name: web, labels: {%s}}
---
apiVersion: v1
kind: Pod
metadata: {name: db, namespace: shop, labels: {app: db}}
---
apiVersion: v1
kind: Pod
metadata: {name: client, namespace: web, labels: {%s}}
---
apiVersion: networking.k8s.io/v1
kind: NetworkPolicy
metadata: {name: deny, namespace: shop}
spec: {podSelector: {}}
---
apiVersion: networking.k8s.io/v1
kind: NetworkPolicy
metadata: {name: db, namespace: shop}
spec:
  podSelector: {matchLabels: {app: db}}
  ingress:
  - from:
    - {namespaceSelector: {matchLabels: {team: a}}, podSelector: {matchLabels: {app: web}}}
    ports: [{port: %d}]
`, team, labels, port)
}

// TestExplain: weirctl explain names the conditions that a connection doesn't meet. The test changes objects so that
// the first condition is met, and repeats this until the connection is allowed.
func TestExplain(t *testing.T) {
	if !nodetest.IsolatedWithWeir(t) {
		return
	}
	n := nodetest.NewNode(t, nil)
	labels, team, port := "app: batch", "team: b", 5432
	n.Manifest("shop.yaml", mendable(labels, team, port))
	n.StartAgent()
	db, client := n.AddPod("shop", "db"), n.AddPod("web", "client")
	n.Serve(db.Netns, "tcp", ":80")
	for _, kind := range []string{"namespaceLabel", "label", "port"} {
		var p path
		n.Eventually("the first condition that isn't met is a "+kind+", and the kernel agrees", func() error {
			e, code := explain(n, "web/client", "shop/db:80")
			if code != 3 || e.Result != "dropped" || len(e.Paths) != 1 {
				return fmt.Errorf("exit code %d: %+v", code, e)
			}
			p = e.Paths[0]
			if near := p.Sides[1].Nearest; len(near) == 0 || near[0].Misses[0].Kind != kind {
				return fmt.Errorf("the nearest rules are %+v", near)
			}
			if p.Kernel == nil || p.Kernel.Result != "dropped" || p.Kernel.Differences != nil || p.Kernel.Unknown != "" {
				return fmt.Errorf("the kernel: %+v", p.Kernel)
			}
			return nil
		})
		ingress := p.Sides[1]
		if got := strings.Join(ingress.Policies, " "); got != "shop/db shop/deny" && got != "shop/deny shop/db" {
			t.Errorf("isolated by %q", got)
		}
		n.Reach(client, db.IP+":80", false)
		miss := ingress.Nearest[0].Misses[0]
		if miss.Why == "" {
			t.Errorf("there is no reason for %+v", miss)
		}
		switch miss.Object + " " + miss.Wants { // makes the change that explain has named
		case "Namespace web team=a":
			team = "team: a"
		case "Pod web/client app=web":
			labels = "app: web"
		case " 5432":
			port = 80
		default:
			t.Fatalf("%+v", miss)
		}
		n.Manifest("shop.yaml", mendable(labels, team, port))
	}
	n.Reach(client, db.IP+":80", true)
	// The kernel allows the connection a moment before the agent records that the new policies are enforced.
	n.Eventually("explain tells that the connection is allowed", func() error {
		e, code := explain(n, "web/client", db.IP+":80")
		if code != 0 || e.Result != "allowed" || e.Paths[0].Kernel == nil || e.Paths[0].Kernel.Result != "allowed" {
			return fmt.Errorf("exit code %d: %+v", code, e)
		}
		return nil
	})
	differs(n, client)
}

// differs removes the client's address from weir's sets. "weirctl explain" must then exit with code 4, until the agent
// has repaired the sets. Then it must exit with code 0.
func differs(n *nodetest.Node, client *nodetest.Pod) {
	n.Helper()
	n.Eventually("explain tells that the client isn't in weir's sets", func() error {
		takeOut(n, client.IP) // at each try, because a resync may have repaired the sets before explain reads them
		e, code := explain(n, "web/client", "shop/db:80")
		if code != 4 || len(e.Paths[0].Kernel.Differences) == 0 || e.Paths[0].Kernel.Result != "dropped" {
			return fmt.Errorf("exit code %d: %+v", code, e.Paths[0].Kernel)
		}
		return nil
	})
	n.Eventually("nothing differs after a resync", func() error {
		if e, code := explain(n, "web/client", "shop/db:80"); code != 0 {
			return fmt.Errorf("exit code %d: %+v", code, e.Paths[0].Kernel)
		}
		return nil
	})
}

// TestExplainErrors: if the question is wrong, or no agent runs, explain prints one line with the reason.
func TestExplainErrors(t *testing.T) {
	if !nodetest.IsolatedWithWeir(t) {
		return
	}
	n := nodetest.NewNode(t, nil)
	n.Manifest("shop.yaml", mendable("app: web", "team: a", 80))
	n.StartAgent()
	for _, tc := range []struct {
		args []string
		code int
		want string
	}{
		{[]string{"web/cliant", "shop/db:80"}, 2, "there is no pod web/cliant; the nearest names are web/client"},
		{[]string{"web/client", "shop/dv:80"}, 2, "there is no pod shop/dv; the nearest names are shop/db"},
		{[]string{"web/client", "shop/db:80"}, 2, "pod web/client has no address yet: it has not started, or weir has not " +
			"attached it"},
		{[]string{"web/client", "shop/db:70000"}, 2, "port 70000 is out of range: 1 to 65535"},
		{[]string{"node/n9", "shop/db:80"}, 2, "there is no node node/n9"},
		{[]string{"web/client"}, 2, "explain needs two ends, FROM and TO[:PORT[/PROTO]], and got 1; " +
			"see weirctl explain --help"},
		{[]string{"web/client", "shop/db:80", "-o", "xml"}, 2, "-o xml: must be text, json or yaml"},
		{[]string{"web/client", "shop/db:80", "--porto", "1"}, 2, "unknown flag: --porto"},
	} {
		saysOnly(n, tc.args, tc.code, tc.want)
	}
	n.KillAgent()
	saysOnly(n, []string{"web/client", "shop/db:80", "--source", "agent"}, 1, "no agent answers on /run/weir/agent.sock: "+
		"weirctl asks the agent of the node that it runs on; use --source kubernetes on other machines, or --source "+
		"dir:PATH for files")
}

func saysOnly(n *nodetest.Node, args []string, code int, want string) {
	n.Helper()
	cmd := exec.Command(filepath.Join(n.Bin, "weirctl"), append([]string{"explain"}, args...)...)
	out, err := cmd.CombinedOutput()
	if got := cmd.ProcessState.ExitCode(); got != code || string(out) != "weirctl: "+want+"\n" {
		n.Errorf("%v: exit code %d, want %d: %v\n%s", args, got, code, err, out)
	}
}
