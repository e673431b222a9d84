package blackbox

import (
	"cmp"
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/weir-net/weir/test/nodetest"
)

// twoPolicies has two namespaces with one policy each. %s is the spec of the policy in the namespace shop.
const twoPolicies = `
apiVersion: v1
kind: Pod
metadata: {name: web, namespace: shop, labels: {app: web}}
---
apiVersion: v1
kind: Pod
metadata: {name: client, namespace: shop, labels: {app: client}}
---
apiVersion: v1
kind: Pod
metadata: {name: server, namespace: sane, labels: {app: server}}
---
apiVersion: v1
kind: Pod
metadata: {name: client, namespace: sane, labels: {app: client}}
---
apiVersion: networking.k8s.io/v1
kind: NetworkPolicy
metadata: {name: np, namespace: sane}
spec:
  podSelector: {matchLabels: {app: server}}
  ingress: [{from: [{podSelector: {matchLabels: {app: client}}}], ports: [{port: 80}]}]
---
apiVersion: networking.k8s.io/v1
kind: NetworkPolicy
metadata: {name: np, namespace: shop}
spec: %s
`

const harmless = "{podSelector: {matchLabels: {app: web}}, ingress: [{ports: [{port: 80}]}]}"

type refusal struct {
	spec  string // spec of the policy in the namespace shop
	field string // the field that the agent must report
	// testRefused calls the function before, applies spec, and calls the function after. Later it calls the function
	// mended: then the kernel accepts the part that it has refused.
	before, after, mended func(*nodetest.Node)
	opens                 bool // true if pods reach port 1234 after the call of mended
	legacy                bool // true if the node uses iptables-legacy
	// With nftables, the kernel refuses each request that has this kind and contains the bytes in request. If the
	// kernel thus refuses more of the policy than field names, the agent must report the text in rule instead of the
	// text in field.
	kind          byte
	request, rule string
}

const rulesFailed = "iptables-restore v1.8.9 (nf_tables): line $n: RULE_APPEND failed (No such file or directory): " +
	"rule in chain X"

// lacking makes iptables-restore fail if its input contains the text, until mended is called. iptables-restore then
// prints the given message (the parameter says). If the tests run with nftables and r.legacy is false, nf_tables
// instead refuses requests that contain r.request.
func (r refusal) lacking(text, says string) refusal {
	if nodetest.Nftables() && !r.legacy {
		return r.lackingRequest()
	}
	r.before = func(n *nodetest.Node) {
		n.StopAgent()
		for _, program := range []string{
			"iptables-nft-restore", "ip6tables-nft-restore", "iptables-legacy-restore",
			"ip6tables-legacy-restore",
		} {
			wrapped(n.TB.(*testing.T), program, fmt.Sprintf(`
all=$(cat)
n=$(grep -n -m1 -- '%s' <<<"$all" | cut -d: -f1)
if [ -z "$n" ] || [ -e /run/loaded ]; then exec $real "$@" <<<"$all"; fi
echo "%s" >&2
exit 1`, text, says))
		}
		n.StartAgent()
	}
	r.mended = func(n *nodetest.Node) { nodetest.Run(n, "touch", "/run/loaded") }
	return r
}

// lackingRequest makes nf_tables refuse requests of r.kind that contain r.request, until mended is called.
func (r refusal) lackingRequest() refusal {
	r.before = func(n *nodetest.Node) {
		n.StopAgent()
		refuseRequests(n.TB.(*testing.T), r.kind, r.request)
		n.StartAgent()
	}
	r.field = cmp.Or(r.rule, r.field)
	r.after, r.mended = nil, func(n *nodetest.Node) { nodetest.Run(n, "touch", "/run/loaded") }
	return r
}

// TestRefusedProtocol: if the kernel refuses a rule for SCTP, all other rules are applied.
func TestRefusedProtocol(t *testing.T) {
	testRefused(t, refusal{
		spec:  `{podSelector: {matchLabels: {app: web}}, ingress: [{ports: [{port: 80}, {port: 9, protocol: SCTP}]}]}`,
		field: "spec.ingress[0].ports[1]", rule: "spec.ingress[0]",
		kind: newRule, request: "\x05\x00\x01\x00\x84", // compares the protocol with 132 (SCTP)
	}.lacking("-p sctp", rulesFailed))
}

// TestRefusedProtocolByLegacy: if iptables-legacy refuses a rule with a message that names only the line of COMMIT, all
// other rules are applied.
func TestRefusedProtocolByLegacy(t *testing.T) {
	testRefused(t, refusal{
		spec: `{podSelector: {matchLabels: {app: web}}, ingress: [{ports: [{port: 80}]}],
			egress: [{}, {ports: [{port: 9, protocol: SCTP}], to: [{namespaceSelector: {}}]}]}`,
		field: "spec.egress[1].ports[0]", legacy: true,
	}.lacking("-p sctp", "iptables-restore: line 99 failed"))
}

// TestRefusedMultiport: if the kernel refuses a rule with several ports, all other rules are applied.
func TestRefusedMultiport(t *testing.T) {
	testRefused(t, refusal{
		spec: `{podSelector: {matchLabels: {app: web}},
			ingress: [{ports: [{port: 80}]}, {ports: [{port: 1234}, {port: 1236}]}],
			egress: [{}]}`,
		field: "spec.ingress[1].ports[0]", opens: true, rule: "spec.ingress[1]",
		kind: newSet, request: "weir-numbers-",
	}.lacking("-m multiport", ""))
}

// TestRefusedRule: if the kernel refuses one of 301 similar rules, the agent reports this rule, and applies all others.
func TestRefusedRule(t *testing.T) {
	var rules []string
	for i := range 300 {
		rules = append(rules, fmt.Sprintf("{ports: [{port: %d}]}", 1000+i))
	}
	testRefused(t, refusal{
		spec: fmt.Sprintf(`{podSelector: {matchLabels: {app: web}}, ingress: [%s, {ports: [{port: 80}]}]}`,
			strings.Join(rules, ", ")),
		field: "spec.ingress[234]", opens: true, kind: newRule, request: "\x06\x00\x01\x00\x04\xd2", // port 1234
	}.lacking("--dport 1234 ", rulesFailed))
}

const someBlocks = `{podSelector: {matchLabels: {app: web}},
	ingress: [{from: [{ipBlock: {cidr: 10.88.0.0/25}}, {ipBlock: {cidr: 172.16.7.0/24}}],
		ports: [{port: 1234}]}, {ports: [{port: 80}]}]}`

// TestRefusedSet: if the kernel refuses a set, for example because another program uses a set of this name, the agent
// reports the policy's field, and applies all other rules.
func TestRefusedSet(t *testing.T) {
	r := refusal{
		spec: someBlocks, field: "spec.ingress[0].from", opens: true, kind: newSet, request: "weir-net-",
		before: func(n *nodetest.Node) {
			n.Manifest("tenants.yaml", fmt.Sprintf(twoPolicies, someBlocks))
			var name string
			n.Eventually("the set is there", func() (err error) {
				name, err = netSet(n)
				return err
			})
			n.Manifest("tenants.yaml", fmt.Sprintf(twoPolicies, harmless))
			n.Eventually("the set is gone", func() error {
				if name, err := netSet(n); err == nil {
					return fmt.Errorf("there is %s", name)
				}
				return nil
			})
			nodetest.Run(n, "ipset", "create", name, "list:set")
			nodetest.Run(n, "iptables-nft", "-t", "raw", "-A", "OUTPUT", "-m", "set", "--match-set", name, "dst")
		},
		mended: func(n *nodetest.Node) { nodetest.Run(n, "iptables-nft", "-t", "raw", "-F") },
	}
	if nodetest.Nftables() {
		r = r.lackingRequest()
	}
	testRefused(t, r)
}

// TestRefusedEntry: if the kernel refuses one entry of a set, the agent reports the policy's field, and applies
// everything else.
func TestRefusedEntry(t *testing.T) {
	swap := func(room string) func(n *nodetest.Node) {
		return func(n *nodetest.Node) {
			var name string
			n.Eventually("the set is there", func() (err error) {
				name, err = netSet(n)
				return err
			})
			nodetest.Run(n, "ipset", "create", "other", "hash:net", "comment", "maxelem", room)
			nodetest.Run(n, "ipset", "swap", name, "other")
			nodetest.Run(n, "ipset", "destroy", "other")
		}
	}
	r := refusal{
		spec: someBlocks, field: "spec.ingress[0].from", after: swap("1"), mended: swap("100"),
		// The request has the bytes of 10.88.0.128, the address after the network 10.88.0.0/25.
		opens: true, kind: newElement, request: "\x0a\x58\x00\x80",
	}
	if nodetest.Nftables() {
		r = r.lackingRequest()
	}
	testRefused(t, r)
}

func netSet(n *nodetest.Node) (string, error) {
	for name := range strings.Lines(nodetest.Run(n, "ipset", "list", "-name")) {
		if strings.HasPrefix(name, "weir-net-") {
			return strings.TrimSpace(name), nil
		}
	}
	return "", fmt.Errorf("there is no set with networks")
}

// testRefused checks a refused part of a policy: the agent must report the policy and the field, and apply everything
// else.
func testRefused(t *testing.T, r refusal) {
	if !nodetest.IsolatedWithWeir(t) {
		return
	}
	if r.legacy {
		nodetest.AboutIptables(t)
	}
	n := nodetest.NewNode(t, nil)
	if r.legacy {
		nodetest.Run(t, "iptables-legacy", "-t", "mangle", "-N", "KUBE-KUBELET-CANARY")
	}
	n.Manifest("tenants.yaml", fmt.Sprintf(twoPolicies, harmless))
	n.StartAgent()
	began := time.Now()
	web := n.AddPod("shop", "web")
	most := max(10*time.Second, 20*time.Since(began)) // how long the start of three pods may take
	n.Serve(web.Netns, "tcp", ":80")
	n.Serve(web.Netns, "tcp", ":1234")
	if r.before != nil {
		r.before(n)
	}
	n.Manifest("tenants.yaml", fmt.Sprintf(twoPolicies, r.spec))
	if r.after != nil {
		r.after(n)
	}
	told := "NetworkPolicy shop/np: " + r.field
	n.Eventually("the status tells of it", func() error {
		out, err := n.Ctl("status")
		if !strings.Contains(out, told) || !strings.Contains(out, "the kernel refuses") || err != nil {
			return fmt.Errorf("no %q: %w: %s", told, err, out)
		}
		return nil
	})
	if out, err := n.Ctl("status"); strings.Contains(out, "iptables-legacy") != r.legacy {
		t.Errorf("the node uses another iptables than it should: %v\n%s", err, out)
	}
	began = time.Now()
	server, client, shopper := n.AddPod("sane", "server"), n.AddPod("sane", "client"), n.AddPod("shop", "client")
	if took := time.Since(began); took > most {
		t.Errorf("three pods took %v to start", took)
	}
	n.Serve(server.Netns, "tcp", ":80")
	n.Serve(server.Netns, "tcp", ":81")
	others := func() {
		t.Helper()
		n.Reach(client, server.IP+":80", true)
		n.Reach(client, server.IP+":81", false)
		n.Reach(shopper, server.IP+":80", false)
		n.Reach(shopper, web.IP+":80", true)
	}
	others()
	log := n.AgentLog()
	if want := fmt.Sprintf(`object="NetworkPolicy shop/np" field=%s `, r.field); !strings.Contains(log, want) {
		t.Errorf("the log doesn't tell of the field: %s", want)
	}
	time.Sleep(12 * time.Second) // at least one resync happens in this time
	others()
	more := strings.TrimPrefix(n.AgentLog(), log)
	if strings.Contains(more, "can't be used as written") || strings.Contains(more, "had changed") {
		t.Errorf("it is told of at each resync:\n%s", more)
	}
	if r.after == nil { // otherwise the set has room for one entry, which may be the shopper's network
		n.Reach(shopper, web.IP+":1234", false)
	}
	r.mended(n)
	n.Eventually("what the kernel takes by now is applied", func() error {
		if out, err := n.Ctl("status"); err != nil || strings.Contains(out, told) {
			return fmt.Errorf("it isn't: %w\n%s", err, out)
		}
		return nil
	})
	n.Reach(shopper, web.IP+":1234", r.opens)
	others()
}
