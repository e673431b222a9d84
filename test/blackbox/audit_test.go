package blackbox

import (
	"fmt"
	"net"
	"strings"
	"testing"
	"time"

	"github.com/weir-net/weir/test/nodetest"
)

const auditedShop = `
apiVersion: v1
kind: Pod
metadata: {name: db, namespace: shop, labels: {app: db}}
---
apiVersion: v1
kind: Pod
metadata: {name: batch, namespace: shop, labels: {app: batch}}
---
apiVersion: v1
kind: Pod
metadata: {name: web, namespace: shop, labels: {app: web}}
---
apiVersion: v1
kind: Pod
metadata: {name: shut, namespace: shop, labels: {app: shut}}
---
apiVersion: networking.k8s.io/v1
kind: NetworkPolicy
metadata: {name: db, namespace: shop, annotations: {weir.io/audit: "true"}}
spec:
  podSelector: {matchLabels: {app: db}}
  ingress:
  - from: [{podSelector: {matchLabels: {app: web}}}]
    ports: [{port: 5432}]
---
apiVersion: networking.k8s.io/v1
kind: NetworkPolicy
metadata: {name: batch, namespace: shop, annotations: {weir.io/audit: "true"}}
spec:
  podSelector: {matchLabels: {app: batch}}
  policyTypes: [Egress]
  egress:
  - to: [{podSelector: {matchLabels: {app: db}}}]
---
apiVersion: networking.k8s.io/v1
kind: NetworkPolicy
metadata: {name: shut, namespace: shop}
spec: {podSelector: {matchLabels: {app: shut}}, policyTypes: [Ingress]}
`

// TestAudit: an audited policy (with the annotation weir.io/audit) drops nothing. If such a policy would drop a
// connection that all enforced policies allow, the connection passes, and "weirctl drops --audit" reports it.
func TestAudit(t *testing.T) {
	if !nodetest.IsolatedWithWeir(t) {
		return
	}
	n := nodetest.NewNode(t, nil)
	n.Manifest("shop.yaml", auditedShop)
	n.StartAgent()
	db, batch := n.AddPod("shop", "db"), n.AddPod("shop", "batch")
	web, shut := n.AddPod("shop", "web"), n.AddPod("shop", "shut")
	n.Serve(db.Netns, "tcp", ":5432")
	n.Serve(web.Netns, "tcp", ":80")
	n.Serve(shut.Netns, "tcp", ":80")
	n.Eventually("the agent reads drops", func() error {
		_, err := n.Ctl("drops")
		return err
	})
	n.Reach(web, db.IP+":5432", true)    // the audited policy allows this connection
	n.Reach(batch, shut.IP+":80", false) // an enforced policy denies this connection
	unanswered(t, batch, db.IP+":9", 20)
	// Greeting makes exactly one connection. The function Reach may make several, and the test counts these connections.
	nodetest.Greeting(t, batch.Netns, db.IP+":5432")
	nodetest.Greeting(t, batch.Netns, web.IP+":80")
	n.Eventually("the would-drops are reported, and no others", func() error {
		text, err := n.Ctl("drops", "--audit")
		if err != nil {
			return err
		}
		for _, want := range []string{
			"ingress  WOULD DROP: shop/batch (" + batch.IP + ":",
			"-> shop/db (" + db.IP + ":5432) tcp: it passed; audited by shop/db",
			"egress   WOULD DROP: shop/batch (" + batch.IP + ":",
			"-> shop/web (" + web.IP + ":80) tcp: it passed; audited by shop/batch",
			"    1x  ingress  WOULD DROP: shop/batch", "-> shop/db (" + db.IP + ":9) udp",
		} {
			if !strings.Contains(text, want) {
				return fmt.Errorf("no %q in\n%s", want, text)
			}
		}
		if strings.Count(text, "\n") != 3 || strings.Contains(text, "shop/shut") {
			t.Fatalf("%s", text)
		}
		return nil
	})
	if text, err := n.Ctl("drops", "--pod", "shut"); err != nil || !strings.Contains(text, "isolated by shop/shut") ||
		strings.Contains(text, "WOULD") {
		t.Errorf("%v\n%s", err, text)
	}
	n.Eventually("weirctl audit sums the would-drops up", func() error { // a busy agent may not answer at first
		text, err := n.Ctl("audit", "shop/db")
		if err != nil {
			return err
		}
		for _, want := range []string{"shop/batch", "tcp 5432", "udp 9", "app: batch", "port: 5432"} {
			if !strings.Contains(text, want) {
				return fmt.Errorf("no %q in\n%s", want, text)
			}
		}
		t.Log(text)
		return nil
	})
	if text, err := n.Ctl("status"); err != nil || !strings.Contains(text, "shop/batch, shop/db (not enforced") ||
		!strings.Contains(text, "open, audited by shop/db") {
		t.Errorf("%v\n%s", err, text)
	}
	if text, err := n.Ctl("explain", "shop/batch", "shop/db:5432"); err != nil ||
		!strings.Contains(text, "audited: would be dropped by shop/db") || strings.Contains(text, "DIFFERENCE") {
		t.Errorf("%v\n%s", err, text)
	}
	metrics, err := nodetest.Try("curl", "-s", "http://127.0.0.1:6786/metrics")
	for _, want := range []string{
		`weir_audit_would_drops_total{direction="ingress",namespace="shop",policy="db"} 2`, "weir_audited_policies 2",
		`weir_audit_would_drops_total{direction="egress",namespace="shop",policy="batch"} 1`,
	} {
		if err != nil || !strings.Contains(metrics, want) {
			t.Errorf("%v: no %s in\n%s", err, want, metrics)
		}
	}
	lives := opened(t, batch, db.IP+":5432")
	n.Manifest("shop.yaml", strings.Replace(auditedShop, "ports: [{port: 5432}]", "ports: [{port: 5432}]\n"+
		"  - from: [{podSelector: {matchLabels: {app: batch}}}]\n    ports: [{port: 5432}, {port: 9, protocol: UDP}]", 1))
	n.Eventually("what a new rule allows leaves the list", func() error {
		if text, err := n.Ctl("audit", "shop/db"); err != nil || !strings.Contains(text, "would have dropped nothing") {
			return fmt.Errorf("%w\n%s", err, text)
		}
		return nil
	})
	n.Eventually("the connection goes on, because the policy is audited", func() error {
		if !answers(lives) {
			return fmt.Errorf("it was cut")
		}
		return nil
	})
	n.Manifest("shop.yaml", strings.Replace(auditedShop, `annotations: {weir.io/audit: "true"}`, "", 1))
	n.Eventually("the enforced policy denies and cuts", func() error {
		if answers(lives) {
			return fmt.Errorf("the connection lives")
		}
		return nil
	})
	n.Reach(batch, db.IP+":5432", false)
	n.Reach(web, db.IP+":5432", true)
	// The kernel denies connections a moment before the agent records that the policy is enforced.
	n.Eventually("weirctl audit knows that the policy is enforced", func() error {
		if text, err := n.Ctl("audit", "shop/db"); err == nil || !strings.Contains(text, "weirctl audit lists") {
			return fmt.Errorf("%w\n%s", err, text)
		}
		return nil
	})
}

// TestAuditSetWithoutAgent: an audited policy drops nothing. If its annotation weir.io/audit is removed while no agent
// runs, the next agent enforces the policy: it cuts an established connection that the policy doesn't allow. If the
// annotation is set again while no agent runs, the next agent lets packets of this connection pass again.
func TestAuditSetWithoutAgent(t *testing.T) {
	if !nodetest.IsolatedWithWeir(t) {
		return
	}
	n := nodetest.NewNode(t, nil)
	enforced := strings.ReplaceAll(auditedShop, `annotations: {weir.io/audit: "true"}`, "")
	n.Manifest("shop.yaml", auditedShop)
	n.Manifest("lab.yaml", strings.ReplaceAll(enforced, "namespace: shop", "namespace: lab"))
	n.StartAgent()
	db, batch, other := n.AddPod("shop", "db"), n.AddPod("shop", "batch"), n.AddPod("lab", "db")
	n.Serve(db.Netns, "tcp", ":5432")
	n.Serve(other.Netns, "tcp", ":5432")
	n.Reach(batch, other.IP+":5432", false)
	lives := opened(t, batch, db.IP+":5432")
	for round := range 2 {
		n.KillAgent()
		n.Manifest("shop.yaml", enforced)
		n.StartAgent()
		if round == 1 { // a killed agent may have changed the rules without cutting connections
			n.KillAgent()
			n.StartAgent()
		}
		n.Eventually("the enforced policy cuts", func() error {
			if answers(lives) {
				return fmt.Errorf("the connection lives")
			}
			return nil
		})
		n.Reach(batch, db.IP+":5432", false)
		n.KillAgent()
		n.Manifest("shop.yaml", auditedShop)
		n.StartAgent()
		n.Eventually("the audited policy lets it go on", func() error {
			if !answers(lives) {
				return fmt.Errorf("the connection is cut")
			}
			return nil
		})
		n.Reach(batch, db.IP+":5432", true)
		n.Reach(batch, other.IP+":5432", false)
	}
}

func unanswered(t *testing.T, from *nodetest.Pod, address string, count int) {
	t.Helper()
	conn, err := nodetest.Dial(t, from.Netns, "udp", address)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = conn.Close() }()
	for range count {
		_, _ = conn.Write([]byte("x")) // an error is ignored: it may be an ICMP error about an earlier packet
	}
}

// opened connects to a server of Node.Serve, and reads the server's greeting.
func opened(t *testing.T, from *nodetest.Pod, address string) net.Conn {
	t.Helper()
	conn := nodetest.Connect(t, from.Netns, "tcp", address)
	err := conn.SetDeadline(time.Now().Add(10 * time.Second))
	for b := []byte{0}; err == nil && b[0] != '\n'; {
		_, err = conn.Read(b)
	}
	if err != nil {
		t.Fatalf("the greeting of %s: %v", address, err)
	}
	return conn
}

func answers(conn net.Conn) bool { return nodetest.Answers(conn, 300*time.Millisecond) == nil }
