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

// These names are as long as Kubernetes allows: 63 bytes for a namespace, 253 for a pod or a policy.
var (
	longNamespace = strings.Repeat("n", 63)
	longName      = func(first string) string { return first + strings.Repeat("x", 253-len(first)) }
)

var longest = fmt.Sprintf(`
apiVersion: v1
kind: Namespace
metadata: {name: %[1]s, labels: {team: %[5]s}}
---
apiVersion: v1
kind: Pod
metadata: {name: %[2]s, namespace: %[1]s, labels: {app: server}}
spec: {containers: [{name: c, image: i, ports: [{name: fifteen-letters, containerPort: 80}]}]}
---
apiVersion: v1
kind: Pod
metadata: {name: %[3]s, namespace: %[1]s, labels: {app: client}}
---
apiVersion: v1
kind: Pod
metadata: {name: %[4]s, namespace: %[1]s}
---
apiVersion: networking.k8s.io/v1
kind: NetworkPolicy
metadata: {name: %[6]s, namespace: %[1]s}
spec:
  podSelector: {matchLabels: {app: server}}
  ingress:
  - from: [{podSelector: {matchLabels: {app: client}}, namespaceSelector: {matchLabels: {team: %[5]s}}}]
    ports: [{port: fifteen-letters}]
`, longNamespace, longName("server"), longName("client"), longName("other"), strings.Repeat("t", 63),
	longName("policy"))

// TestLongestNames: ADD, CHECK, DEL, policies and the status work if all names are as long as possible.
func TestLongestNames(t *testing.T) { testLongestNames(t, nil) }

// TestLongestNamesBehindPtp: if the plugin ptp attaches the pods, ADD, DEL, policies and the status work with names
// that are as long as possible.
func TestLongestNamesBehindPtp(t *testing.T) {
	testLongestNames(t, []nodetest.Conf{
		{"type": "ptp", "ipam": nodetest.Conf{"type": "host-local", "subnet": "10.88.0.0/24"}},
		{"type": "weir"},
	})
}

func testLongestNames(t *testing.T, plugins []nodetest.Conf) {
	if !nodetest.IsolatedWithWeir(t, "main/ptp", "ipam/host-local") {
		return
	}
	n := nodetest.NewNode(t, nodetest.Conf{"ranges": []any{
		nodetest.Conf{"subnet": "10.88.0.0/24"}, nodetest.Conf{"subnet": "fd00:10:88::/64"},
	}})
	if plugins != nil {
		n.ConfigureList(plugins...)
	}
	n.Manifest("longest.yaml", longest)
	n.StartAgent()
	attach := func(name string) (netns, ip string) {
		t.Helper()
		netns = nodetest.NewNS(t, name)
		out, err := n.CNI("add", netns, nodetest.Args(longNamespace, longName(name), ""))
		if err != nil {
			t.Fatal(err)
		}
		_, rest, _ := strings.Cut(out, `"address": "`)
		ip, _, _ = strings.Cut(rest, "/")
		return netns, ip
	}
	server, ip := attach("server")
	client, _ := attach("client")
	other, _ := attach("other")
	n.Serve(server, "tcp", ":80")
	n.ReachFrom(client, ip+":80", true)
	n.ReachFrom(other, ip+":80", false)
	if plugins == nil {
		if links := nodetest.Run(t, "ip", "link", "show"); !strings.Contains(links, "alias weir: "+longNamespace+"/server") {
			t.Errorf("no link says that it is the server's:\n%s", links)
		}
	}
	if set, err := podSet(); err != nil || !strings.Contains(set, `"`+longNamespace+"/server") {
		t.Errorf("the set of all pods doesn't say which the server is: %v\n%s", err, set)
	}
	out, err := n.Ctl("status")
	if err != nil || strings.Contains(out, "ERROR") || strings.Contains(out, "PROBLEM") {
		t.Errorf("weirctl status: %v\n%s", err, out)
	}
	for netns, name := range map[string]string{server: "server", client: "client"} {
		if plugins == nil { // ptp's CHECK would need a cached result of ADD
			if out, err := n.CNI("check", netns, nodetest.Args(longNamespace, longName(name), "")); err != nil {
				t.Errorf("check %s: %v\n%s", name, err, out)
			}
		}
		if out, err := n.CNI("del", netns, nodetest.Args(longNamespace, longName(name), "")); err != nil {
			t.Errorf("delete %s: %v\n%s", name, err, out)
		}
	}
}

// TestLongestContainerID: if a container's ID is too long for a file name, ADD fails with code 4.
func TestLongestContainerID(t *testing.T) {
	if !nodetest.IsolatedWithWeir(t) {
		return
	}
	n := nodetest.NewNode(t, nil)
	call := func(verb, netns, id string) (string, error) {
		cmd := exec.Command(filepath.Join(n.Bin, "weir"))
		cmd.Env = append(os.Environ(), "CNI_COMMAND="+verb, "CNI_CONTAINERID="+id, "CNI_IFNAME=eth0", "CNI_NETNS="+netns,
			"CNI_PATH="+n.Bin, "CNI_ARGS="+nodetest.Args("ns", "pod", ""))
		cmd.Stdin = strings.NewReader(`{"cniVersion": "1.0.0", "name": "weir", "type": "weir", "enforcement": "off",
			"ranges": [{"subnet": "10.88.0.0/24"}]}`)
		out, err := cmd.CombinedOutput()
		return string(out), err
	}
	attached := 0
	for length := 236; length <= 260; length++ {
		netns, id := nodetest.NewNS(t, fmt.Sprint("c", length)), strings.Repeat("c", length)
		out, err := call("ADD", netns, id)
		switch {
		case err == nil:
			attached++
		case !strings.Contains(out, `"code": 4`):
			t.Errorf("%d bytes: ADD isn't refused with code 4: %s", length, out)
		}
		if out, err := call("DEL", netns, id); err != nil {
			t.Errorf("%d bytes: DEL: %v: %s", length, err, out)
		}
	}
	if attached == 0 {
		t.Error("none was attached")
	}
	if links := nodetest.Run(t, "ip", "link", "show"); strings.Contains(links, "weirp") {
		t.Errorf("there are links after all were deleted:\n%s", links)
	}
}
