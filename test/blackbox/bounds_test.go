package blackbox

import (
	"encoding/json"
	"fmt"
	"regexp"
	"strings"
	"testing"

	"github.com/weir-net/weir/test/nodetest"
)

const small = `
apiVersion: v1
kind: Pod
metadata: {name: server, namespace: small, labels: {app: server}}
---
apiVersion: v1
kind: Pod
metadata: {name: client, namespace: small, labels: {app: client}}
---
apiVersion: v1
kind: Pod
metadata: {name: other, namespace: small}
---
apiVersion: networking.k8s.io/v1
kind: NetworkPolicy
metadata: {name: zz, namespace: small}
spec:
  podSelector: {matchLabels: {app: server}}
  ingress: [{from: [{podSelector: {matchLabels: {app: client}}}]}]
`

// TestNamespacesWithManySelectors: if 17 namespaces need more sets than a node has capacity for, policies of another
// namespace still work.
func TestNamespacesWithManySelectors(t *testing.T) {
	testGreedy(t, func(policy int) string {
		var peers []string
		for i := range 1000 {
			peers = append(peers, fmt.Sprintf(`{podSelector: {matchLabels: {n: "%d"}}}`, 1000*policy+i))
		}
		return fmt.Sprintf("{podSelector: {}, ingress: [{from: [%s]}]}", strings.Join(peers, ", "))
	})
}

// TestNamespacesWithManyRules: if 17 namespaces need more rules than a node has capacity for, policies of another
// namespace still work.
func TestNamespacesWithManyRules(t *testing.T) {
	testGreedy(t, func(policy int) string {
		var peers, ports []string
		for i := range 10 {
			peers = append(peers, fmt.Sprintf(`{podSelector: {matchLabels: {n: "%d"}}}`, i))
		}
		for i := range 100 {
			ports = append(ports, fmt.Sprintf("{port: port-%d-%d}", policy, i))
		}
		return fmt.Sprintf("{podSelector: {}, ingress: [{from: [%s], ports: [%s]}]}", strings.Join(peers, ", "),
			strings.Join(ports, ", "))
	})
}

func testGreedy(t *testing.T, spec func(policy int) string) {
	if !nodetest.IsolatedWithWeir(t) {
		return
	}
	n := nodetest.NewNode(t, nil)
	n.Manifest("small.yaml", small)
	const namespaces = 17
	var policies strings.Builder
	for i := range namespaces {
		ns := fmt.Sprintf("greedy-%d", i)
		n.Manifest(ns+".yaml", fmt.Sprintf("apiVersion: v1\nkind: Pod\nmetadata: {name: a, namespace: %s}\n", ns))
		for k := range 4 {
			fmt.Fprintf(&policies,
				"---\napiVersion: networking.k8s.io/v1\nkind: NetworkPolicy\nmetadata: {name: np-%d, namespace: %s}\nspec: %s\n",
				k, ns, spec(k))
		}
	}
	n.StartAgent()
	for i := range namespaces {
		n.AddPod(fmt.Sprintf("greedy-%d", i), "a")
	}
	n.StopAgent()
	n.Manifest("greedy.yaml", policies.String())
	n.StartAgent()
	attach := func(name string) (p *nodetest.Pod) {
		t.Helper()
		n.Eventually("small/"+name+" starts", func() (err error) {
			p, err = n.TryAddPod("small", name)
			return err
		})
		return p
	}
	server, client, other := attach("server"), attach("client"), attach("other")
	n.Serve(server.Netns, "tcp", ":80")
	n.Reach(client, server.IP+":80", true)
	n.Reach(other, server.IP+":80", false)
	n.Manifest("deny.yaml", strings.ReplaceAll(small[strings.LastIndex(small, "---"):], "app: client", "app: nobody"))
	n.Manifest("small.yaml", small[:strings.LastIndex(small, "---")])
	n.Reach(client, server.IP+":80", false)
	var out string
	// For a moment, small.yaml and deny.yaml both have the policy, and the agent reports this as a problem.
	n.Eventually("the agent is ready, and the namespace that needs little has no problem", func() (err error) {
		if out, err = n.Ctl("status"); err != nil {
			return err
		}
		if !regexp.MustCompile(`ready: +true`).MatchString(out) {
			return fmt.Errorf("%.2000s", out)
		}
		for line := range strings.Lines(out) {
			if strings.Contains(line, "PROBLEM") && strings.Contains(line, "small/") {
				return fmt.Errorf("%s", line)
			}
		}
		return nil
	})
	out, err := n.Ctl("status", "-o", "json") // only the JSON has all problems
	if err != nil {
		t.Fatal(err)
	}
	var status struct {
		Problems []struct{ Object, Field string }
	}
	if err := json.Unmarshal([]byte(out), &status); err != nil {
		t.Fatal(err)
	}
	told := map[string]bool{}
	for _, p := range status.Problems {
		told[p.Object] = true
		told[p.Object+" "+p.Field] = true
	}
	for i := range namespaces {
		if want := fmt.Sprintf("NetworkPolicy greedy-%d/np-3", i); !told[want] {
			t.Errorf("the status doesn't tell of %s", want)
		}
		if never := fmt.Sprintf("NetworkPolicy greedy-%d/np-0 spec.ingress[0].from[0]", i); told[never] {
			t.Errorf("a namespace isn't given its part: %s", never)
		}
	}
	if sets := strings.Count(nodetest.Run(t, "ipset", "list", "-name"), "\n"); sets > 10_000 {
		t.Errorf("the kernel has %d sets", sets)
	}
	// Several tries, because iptables fails while the agent replaces sets.
	n.Eventually("the rules can be listed", func() error {
		rules, err := nodetest.ListChecks()
		if count := strings.Count(rules, "\n"); err == nil && count > 35_000 {
			t.Errorf("the kernel has %d rules", count)
		}
		return err
	})
}
