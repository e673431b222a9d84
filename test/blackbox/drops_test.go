package blackbox

import (
	"bufio"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/weir-net/weir/test/nodetest"
)

const dbUnderTwo = `
apiVersion: v1
kind: Pod
metadata: {name: db, namespace: shop, labels: {app: db}}
---
apiVersion: v1
kind: Pod
metadata: {name: batch, namespace: shop}
---
apiVersion: networking.k8s.io/v1
kind: NetworkPolicy
metadata: {name: db, namespace: shop}
spec:
  podSelector: {matchLabels: {app: db}}
  ingress:
  - from: [{podSelector: {matchLabels: {app: web}}}]
    ports: [{port: 5432}]
---
apiVersion: networking.k8s.io/v1
kind: NetworkPolicy
metadata: {name: deny, namespace: shop}
spec: {podSelector: {matchLabels: {app: db}}, policyTypes: [Ingress]}
`

type shownDrop struct {
	Count               uint64
	Direction, Protocol string
	Source, Destination struct {
		Pod  string
		Port uint16
	}
	Policies []string
}

type followed struct {
	t     testing.TB
	lines chan *shownDrop
}

// follow starts "weirctl drops -f". It doesn't wait until the agent has received the request.
func follow(n *nodetest.Node, args ...string) *followed {
	n.Helper()
	cmd := exec.Command(filepath.Join(n.Bin, "weirctl"), append([]string{"drops", "-f", "-o", "json"}, args...)...)
	out, err := cmd.StdoutPipe()
	if err == nil {
		err = cmd.Start()
	}
	if err != nil {
		n.Fatal(err)
	}
	n.Cleanup(func() {
		_ = cmd.Process.Kill()
		_ = cmd.Wait()
	})
	f := &followed{n, make(chan *shownDrop, 10_000)}
	go func() {
		for values := json.NewDecoder(bufio.NewReader(out)); ; {
			d := &shownDrop{}
			if err := values.Decode(d); err != nil {
				// At the end of the test, weirctl may be killed while it writes a line.
				if err != io.EOF && !errors.Is(err, io.ErrUnexpectedEOF) && !strings.Contains(err.Error(), "closed") {
					n.Error(err)
				}
				close(f.lines)
				return
			}
			f.lines <- d
		}
	}()
	return f
}

// TestDropsOfTheGuard: if a pod sends a packet with a forged address, the packet is in the output of "weirctl drops",
// and a metric counts it.
func TestDropsOfTheGuard(t *testing.T) {
	if !nodetest.IsolatedWithWeir(t) {
		return
	}
	n := nodetest.NewNode(t, nil)
	n.Manifest("shop.yaml", dbUnderTwo)
	n.StartAgent()
	db, batch := n.AddPod("shop", "db"), n.AddPod("shop", "batch")
	nodetest.RunEach(t, "ip -n "+filepath.Base(batch.Netns)+" addr add 10.88.0.77/32 dev eth0")
	n.Eventually("the forged packet shows", func() error {
		nodetest.In(t, batch.Netns, func() error {
			forged := &net.UDPAddr{IP: net.IPv4(10, 88, 0, 77)}
			conn, err := net.DialUDP("udp", forged, &net.UDPAddr{IP: net.ParseIP(db.IP), Port: 53})
			if err != nil {
				return err
			}
			defer func() { _ = conn.Close() }()
			_, err = conn.Write([]byte("x"))
			return err
		})
		text, err := n.Ctl("drops", "--pod", "shop/batch")
		if err != nil || !strings.Contains(text, "shop/batch (10.88.0.77:") || !strings.Contains(text, "may not send") {
			return fmt.Errorf("%w\n%s", err, text)
		}
		return nil
	})
	metrics, err := nodetest.Try("curl", "-s", "http://127.0.0.1:6786/metrics")
	want := `weir_drops_total{direction="egress",namespace="shop",policy="",reason="guard"}`
	if err != nil || !strings.Contains(metrics, want) {
		t.Errorf("%v: no %s in\n%s", err, want, metrics)
	}
}

// TestDrops: "weirctl drops" shows a denied connection with its pods and policies.
func TestDrops(t *testing.T) {
	if !nodetest.IsolatedWithWeir(t) {
		return
	}
	n := nodetest.NewNode(t, nil)
	n.Manifest("shop.yaml", dbUnderTwo)
	n.StartAgent()
	db, batch := n.AddPod("shop", "db"), n.AddPod("shop", "batch")
	n.Serve(db.Netns, "tcp", ":5432")
	n.Eventually("the agent reads drops", func() error {
		_, err := n.Ctl("drops")
		return err
	})
	all, others := follow(n), follow(n, "--policy", "other")
	n.Eventually("a denied connection shows", func() error {
		n.Reach(batch, db.IP+":5432", false)
		select {
		case d := <-all.lines:
			if d.Count == 0 || d.Source.Pod != "shop/batch" || d.Destination.Pod != "shop/db" || d.Destination.Port != 5432 ||
				d.Protocol != "tcp" || d.Direction != "ingress" || fmt.Sprint(d.Policies) != "[shop/db shop/deny]" {
				t.Fatalf("%+v", d)
			}
			return nil
		default:
			return fmt.Errorf("no line")
		}
	})
	text, err := n.Ctl("drops", "--pod", "batch", "--port", "5432", "--since", "1m")
	if err != nil || !strings.Contains(text, "shop/batch ("+batch.IP) ||
		!strings.Contains(text, "shop/db ("+db.IP+":5432)") || !strings.Contains(text, "isolated by shop/db, shop/deny") {
		t.Errorf("%v\n%s", err, text)
	}
	t.Log(text)
	const none = "weirctl: note: no drop that the agents remember matches\n"
	if text, err := n.Ctl("drops", "--port", "1"); err != nil || text != none {
		t.Errorf("another port: %v\n%s", err, text)
	}
	if text, err := n.Ctl("drops", "--namespace", "other"); err == nil || !strings.Contains(err.Error()+text, `"other"`) {
		t.Errorf("an unknown namespace: %v\n%s", err, text)
	}
	select {
	case d := <-others.lines:
		t.Errorf("another policy: %+v", d)
	default:
	}
	if text, err := n.Ctl("status"); err != nil {
		t.Errorf("%v\n%s", err, text)
	}
}
