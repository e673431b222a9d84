package main

import (
	"fmt"
	"os"
	"strings"
	"testing"

	"github.com/weir-net/weir/test/golden"
)

// TestExplainServices: an explanation knows which endpoints kube-proxy and DNS lead to, and what kube-proxy drops.
func TestExplainServices(t *testing.T) {
	manifest, err := os.ReadFile("testdata/services/cluster.yaml")
	if err != nil {
		t.Fatal(err)
	}
	here, err := os.Getwd()
	if err != nil {
		t.Fatal(err)
	}
	inDirectory(t, manifest)
	var text strings.Builder
	for _, question := range []string{
		"shop/web svc/shop/headless:80",   // the Service is headless, so nothing translates the port
		"shop/web svc/shop/headless:5432", // the Service lacks this port
		"shop/web svc/shop/headless:sql",  // the Service has this name in an SRV record
		"shop/web svc/shop/headless",
		"shop/web svc/shop/headless:http",
		"shop/web svc/shop/portless",
		"shop/web svc/shop/portless:5432",
		"shop/web svc/shop/db", // the Service has only IPv4, and one of its four pods is ready
		"shop/web svc/shop/db:/icmp",
		"203.0.112.7 203.0.113.6:80", // a node forwards the connection, so the pod may see the node's address
		"world svc/shop/ranges",      // the sender is in no ipBlock of any policy
		"203.0.112.7 node/n1:30443",
		"203.0.112.7 node/n2:30443",
		"203.0.112.7 10.9.0.1:30444", // the node n1 forwards the connection
		"203.0.112.7 node/n2:30444",
		"shop/web svc/shop/local", // the sender's node has no endpoint
		"node/n2 svc/shop/local",
		"203.0.112.7 203.0.113.5:443", // the sender is outside of loadBalancerSourceRanges
		"198.51.100.7 203.0.113.5:443",
		"world 203.0.113.5:443",
		"world shop/db:5432",  // 2000::/3 has all public IPv6 addresses
		"shop/db shop/web:80", // a policy in another namespace than default
	} {
		out, code, message := runExplain(t, append(strings.Fields(question), "--source", "dir:manifests")...)
		fmt.Fprintf(&text, "$ weirctl explain %s\n%s%sexit code %d\n\n", question, out, message, code)
	}
	first, _, _ := strings.Cut(text.String(), "exit code")
	first = strings.Replace(first, "headless:80\n", "headless:80 --source dir:manifests\n", 1)
	docs, err := os.ReadFile(here + "/../../docs/explain.md")
	if err != nil || !strings.Contains(string(docs), indented(first)) {
		t.Errorf("docs/explain.md doesn't show\n%s%v", first, err)
	}
	golden.Compare(t, here+"/testdata/services/explain.txt", text.String())
}
