package client

import (
	"bytes"
	"net/netip"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/weir-net/weir/agentapi"
)

// TestPrintAudit: the counts of two nodes' reports are added up, and the printed rules would allow the connections
// that the audited policy would have dropped.
func TestPrintAudit(t *testing.T) {
	at := time.Unix(1e9, 0)
	db := agentapi.AuditedEnd{
		Namespace: "shop", Name: "db-0", Labels: map[string]string{"app": "db"}, Address: netip.MustParseAddr("10.88.0.2"),
	}
	web, other, host := db, db, agentapi.AuditedEnd{Address: netip.MustParseAddr("192.0.2.9")}
	web.Name, web.Labels = "web-1", map[string]string{"app": "web"}
	other.Namespace, other.Name, other.Labels = "tools", "backup", map[string]string{"app": "backup"}
	traffic := func(
		peer agentapi.AuditedEnd, proto string, port uint16, count uint64, last time.Time,
	) agentapi.AuditedTraffic {
		return agentapi.AuditedTraffic{
			Direction: "ingress", Policies: []string{"shop/db"}, Pod: db, Peer: peer, Protocol: proto, Port: port,
			Count: count, First: at, Last: last,
		}
	}
	out := traffic(host, "udp", 53, 1, at)
	out.Direction = "egress"
	var sum AuditOfNodes
	sum.Add(agentapi.AuditReport{Node: "n1", Since: at, Audited: []string{"shop/db"}, Dropped: []agentapi.AuditedTraffic{
		traffic(web, "tcp", 5432, 3, at), traffic(web, "tcp", 22, 1, at.Add(-time.Hour)), traffic(host, "icmp", 0, 1, at),
		out,
	}}, at.Add(-time.Minute))
	sum.Add(agentapi.AuditReport{
		Node: "n2", Since: at.Add(time.Second), Audited: []string{"shop/db", "shop/new"}, Unevaluated: 7, Trouble: "no group",
		Dropped: []agentapi.AuditedTraffic{
			traffic(web, "tcp", 5432, 4, at.Add(time.Second)), traffic(other, "tcp", 5432, 1, at),
		},
	}, at.Add(-time.Minute))
	clock, later := at.Format("2006-01-02 15:04:05"), at.Add(time.Second).Format("2006-01-02 15:04:05")
	b := &bytes.Buffer{}
	if err := PrintAudit(b, Text, &sum, "shop/db"); err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(`DIRECTION  POD        PEER          PORT      COUNT  FIRST                LAST
egress     shop/db-0  192.0.2.9     udp 53    1      `+clock+`  `+clock+`
ingress    shop/db-0  shop/web-1    tcp 5432  7      `+clock+`  `+later+`
ingress    shop/db-0  192.0.2.9     icmp      1      `+clock+`  `+clock+`
ingress    shop/db-0  tools/backup  tcp 5432  1      `+clock+`  `+clock+`

Counted since `+later+`.
7 connections could not be evaluated: too many came at once, a pod had ended, or the agent was busy.
Some of them may be would-drops.
No packets are read: n2: no group

# These rules, added to shop/db, allow all of that. Remove those that you don't want.
spec:
  egress:
  - ports:
    - port: 53
      protocol: UDP
    to:
    - ipBlock:
        cidr: 192.0.2.9/32
  ingress:
  - from:
    - podSelector:
        matchLabels:
          app: web
    - namespaceSelector:
        matchLabels:
          kubernetes.io/metadata.name: tools
      podSelector:
        matchLabels:
          app: backup
    ports:
    - port: 5432
      protocol: TCP
# No port of a policy can be of icmp: only a rule without ports allows that, and it allows all ports.
`, b.String()); diff != "" {
		t.Error(diff)
	}
	b.Reset()
	if err := PrintAudit(b, JSON, &sum, "shop/db"); err != nil {
		t.Fatal(err)
	}
	for _, part := range []string{`"cidr": "192.0.2.9/32"`, `"app": "backup"`, `"protocolsWithoutPorts": [`} {
		if _, rules, _ := strings.Cut(b.String(), `"rules": {`); !strings.Contains(rules, part) {
			t.Errorf("the JSON doesn't have the rules of the text: no %s in\n%s", part, b)
		}
	}
	b.Reset()
	if err := PrintAudit(b, Text, &sum, ""); err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(`POLICY    WOULD DROP      KINDS  LAST
shop/db   10 connections  4      `+later+`
shop/new  0 connections   0      -

Counted since `+later+`.
7 connections could not be evaluated: too many came at once, a pod had ended, or the agent was busy.
Some of them may be would-drops.
No packets are read: n2: no group
`, b.String()); diff != "" {
		t.Error(diff)
	}
}

// TestPrintAuditEscapes: if an agent's text has control characters, they don't reach the terminal.
func TestPrintAuditEscapes(t *testing.T) {
	const bad = "x\x1b[2J\u009b\n\u202ey"
	end := agentapi.AuditedEnd{Namespace: bad, Name: bad, Address: netip.MustParseAddr("10.88.0.2")}
	var sum AuditOfNodes
	sum.Add(agentapi.AuditReport{Node: bad, Audited: []string{bad}, Trouble: bad, Dropped: []agentapi.AuditedTraffic{
		{Direction: bad, Policies: []string{bad}, Pod: end, Peer: end, Protocol: bad, Count: 1},
		{Direction: "ingress", Policies: []string{bad}, Pod: end, Peer: end, Protocol: bad, Port: 80, Count: 1},
	}}, time.Time{})
	for _, name := range []string{"", bad} {
		b := &bytes.Buffer{}
		if err := PrintAudit(b, Text, &sum, name); err != nil || strings.ContainsAny(b.String(), "\x1b\u009b\u202e") {
			t.Errorf("%v: %q", err, b)
		}
	}
}
