package blackbox

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/weir-net/weir/test/nodetest"
)

const shop = `
apiVersion: v1
kind: Namespace
metadata: {name: shop}
---
apiVersion: v1
kind: Pod
metadata: {name: server, namespace: shop, labels: {app: server}}
---
apiVersion: v1
kind: Pod
metadata: {name: client, namespace: shop, labels: {app: client}}
---
apiVersion: v1
kind: Pod
metadata: {name: other, namespace: shop}
---
`

const denyJSON = `{"apiVersion": "networking.k8s.io/v1", "kind": "NetworkPolicy",
  "metadata": {"name": "deny", "namespace": "shop"},
  "spec": {"podSelector": {"matchLabels": {"app": "server"}}}}`

func shopNode(t *testing.T) (n *nodetest.Node, server, client, other *nodetest.Pod) {
	n = nodetest.NewNode(t, nil)
	n.Manifest("shop.yaml", shop)
	n.StartAgent()
	server, client, other = n.AddPod("shop", "server"), n.AddPod("shop", "client"), n.AddPod("shop", "other")
	n.Serve(server.Netns, "tcp", server.IP+":80")
	n.Reach(client, server.IP+":80", true)
	return n, server, client, other
}

func put(n *nodetest.Node, name, text string) {
	n.Helper()
	path := filepath.Join(n.Manifests, name)
	if err := errors.Join(os.MkdirAll(filepath.Dir(path), 0o700), os.WriteFile(path, []byte(text), 0o600)); err != nil {
		n.Fatal(err)
	}
}

// closesServer writes each of the files (name, text) in turn. While a file exists, the client must not reach the
// server.
func closesServer(t *testing.T, files [][2]string) {
	n, server, client, _ := shopNode(t)
	for _, f := range files {
		t.Logf("%s: %.60q", f[0], f[1])
		put(n, f[0], f[1])
		n.Reach(client, server.IP+":80", false)
		if err := os.Remove(filepath.Join(n.Manifests, f[0])); err != nil {
			n.Fatal(err)
		}
		n.Reach(client, server.IP+":80", true)
	}
}

// TestManifestsAnywhere: the agent reads manifests that are hidden, in a subdirectory, or have an upper-case extension.
func TestManifestsAnywhere(t *testing.T) {
	if !nodetest.IsolatedWithWeir(t) {
		return
	}
	closesServer(t, [][2]string{
		{"sub/dir/deny.yaml", denyJSON},
		{"deny.YAML", denyJSON},
		{"deny.Json", denyJSON},
		{".deny.yml", denyJSON},
	})
}

// TestManifestsWrapped: the agent finds objects in lists, in templates, and in files with several JSON objects.
func TestManifestsWrapped(t *testing.T) {
	if !nodetest.IsolatedWithWeir(t) {
		return
	}
	spec := `"metadata": {"name": "deny", "namespace": "shop"}, "spec": {"podSelector": {}}`
	closesServer(t, [][2]string{
		{"list.yaml", "apiVersion: v1\nkind: List\nitems:\n- " + denyJSON + "\n"},
		{"policies.json", `{"apiVersion": "networking.k8s.io/v1", "kind": "NetworkPolicyList", "items": [{` + spec + `}]}`},
		{"stream.json", `{"apiVersion": "v1", "kind": "Service", "metadata": {"name": "x"}}` + "\n" + denyJSON},
		{"template.yaml", `
apiVersion: template.openshift.io/v1
kind: Template
metadata: {name: t}
parameters: [{name: NAMESPACE, value: shop}]
objects:
- apiVersion: networking.k8s.io/v1
  kind: NetworkPolicy
  metadata: {name: deny, namespace: "${NAMESPACE}"}
  spec: {podSelector: {}}
`},
		{"small.yaml", "apiVersion: v1\nkind: list\nItems:\n- " + denyJSON + "\n"},
		{"comments.json", "# two objects\n" + `{"apiVersion": "v1", "kind": "Service", "metadata": {"name": "x"}}` +
			"\n# the second\n" + denyJSON},
		{
			"dump.yaml",
			"apiVersion: networking.k8s.io/v1\nkind: NetworkPolicy\nmetadata: {name: deny, namespace: shop, " +
				"creationTimestamp: null}\nspec: {podSelector: {}}\nstatus: {}\n",
		},
	})
}

// TestWindowsManifests: the agent reads manifests in UTF-16 with CRLF, as PowerShell writes them.
func TestWindowsManifests(t *testing.T) {
	if !nodetest.IsolatedWithWeir(t) {
		return
	}
	utf16 := "\xff\xfe"
	for _, b := range []byte(strings.ReplaceAll("apiVersion: v1\nkind: Service\nmetadata: {name: x}\n---\n"+denyJSON,
		"\n", "\r\n")) {
		utf16 += string([]byte{b, 0})
	}
	closesServer(t, [][2]string{{"deny.yaml", utf16}})
}

// TestFieldsNewerThanWeir: unknown fields in a pod's spec and status have no effect.
func TestFieldsNewerThanWeir(t *testing.T) {
	if !nodetest.IsolatedWithWeir(t) {
		return
	}
	n := nodetest.NewNode(t, nil)
	n.Manifest("pod.yaml", `
apiVersion: v1
kind: Pod
metadata: {name: server, namespace: shop, managedFields: [{manager: x, fieldsV1: {}}]}
spec: {newerField: {}, containers: [{name: c, image: i, newerField: 1, resources: {newer: 1}}]}
status: {newerField: {}, podIP: 10.88.0.200}
`)
	n.StartAgent()
	n.AddPod("shop", "server")
}

// TestFilesThatAreNoManifests: a file that is no manifest doesn't stop the agent, and the status lists the file.
func TestFilesThatAreNoManifests(t *testing.T) {
	if !nodetest.IsolatedWithWeir(t) {
		return
	}
	n := nodetest.NewNode(t, nil)
	n.Manifest("shop.yaml", shop)
	n.Manifest("values.yaml", "replicas: 3\nkind: of\n")
	n.Manifest("kustomization.yaml", "resources:\n- shop.yaml\n")
	n.Manifest("Chart.yaml", "apiVersion: v2\nname: shop\n")
	n.Manifest("service.yaml", "apiVersion: v1\nkind: Service\nmetadata: {name: {{ .Values.name }}}\n")
	n.StartAgent()
	out, err := n.Ctl("status")
	for _, name := range []string{"values.yaml", "kustomization.yaml", "Chart.yaml", "service.yaml", "shop.yaml"} {
		if err != nil || !strings.Contains(out, name) {
			t.Errorf("the status doesn't speak of %s: %v\n%s", name, err, out)
		}
	}
	server, client := n.AddPod("shop", "server"), n.AddPod("shop", "client")
	n.Serve(server.Netns, "tcp", server.IP+":80")
	n.Reach(client, server.IP+":80", true)
}

// TestAFileThatMayHoldAPolicy: if a broken file may contain a policy, the agent isn't ready, and no pod starts. With
// --ignore-broken, the agent starts without the file.
func TestAFileThatMayHoldAPolicy(t *testing.T) {
	if !nodetest.IsolatedWithWeir(t) {
		return
	}
	n := nodetest.NewNode(t, nil)
	n.Manifest("shop.yaml", shop)
	n.Manifest("broken.yaml", "apiVersion: networking.k8s.io/v1\nkind: NetworkPolicy\nmetadata: {name: x\n")
	n.SpawnAgent()
	n.Eventually("the agent isn't ready, and says which file", func() error {
		out, err := n.Ctl("status")
		if err == nil || !strings.Contains(out, "broken.yaml: document 1") ||
			strings.Contains(out, "good state stays in force") {
			return fmt.Errorf("%s", out)
		}
		return nil
	})
	if strings.Contains(n.AgentLog(), "stays in force") {
		t.Errorf("the log says of what never was that it stays in force:\n%s", n.AgentLog())
	}
	if _, err := n.TryAddPod("shop", "server"); err == nil {
		t.Error("a pod was let in")
	}
	n.KillAgent()
	n.SpawnAgent("--source", "dir:"+n.Manifests, "--ignore-broken")
	n.Eventually("the agent starts without the file", func() error {
		out, err := n.Ctl("status")
		if err != nil || !strings.Contains(out, "broken.yaml") {
			return fmt.Errorf("%w: %s", err, out)
		}
		return nil
	})
	n.AddPod("shop", "server")
}

// TestBadPoliciesClose: if a policy has a wrong field, it allows nothing, and isolates the pods that it selects. If
// the policy's podSelector can't be read, the policy's last good version stays in force. Without a good version, the
// policy isolates all pods of the namespace, and allows nothing.
func TestBadPoliciesClose(t *testing.T) {
	if !nodetest.IsolatedWithWeir(t) {
		return
	}
	n := nodetest.NewNode(t, nil)
	n.Manifest("shop.yaml", shop)
	bad := func(spec string) string {
		return "apiVersion: networking.k8s.io/v1\nkind: NetworkPolicy\nmetadata: {name: bad, namespace: shop}\nspec: " +
			spec + "\n"
	}
	n.Manifest("bad.yaml", bad("{podSelector: {matchLabels: {app: server}}, ingress: [{form: []}]}"))
	n.StartAgent()
	server, client, other := n.AddPod("shop", "server"), n.AddPod("shop", "client"), n.AddPod("shop", "other")
	for _, p := range []*nodetest.Pod{server, other} {
		n.Serve(p.Netns, "tcp", p.IP+":80")
	}
	reach := func(toServer, toOther bool) {
		t.Helper()
		n.Reach(client, server.IP+":80", toServer)
		n.Reach(client, other.IP+":80", toOther)
	}
	reach(false, true)
	for _, spec := range []string{
		"{podSelector: {matchLabels: {app: server}}, ingress: [{}, {from: [{ipBlock: {cidr: 10.0.0.0/33}}]}]}",
		"{podSelector: {matchLabels: {app: server}}, ingress: [{from: [{ipBlock: {cidr: 10.0.0.0/8, " +
			"excpet: [10.0.0.0/8]}}]}]}",
		"{podSelector: {matchLabels: {app: server}}, ingress: [{}], newField: {}}",
	} {
		n.Manifest("bad.yaml", bad("{podSelector: {matchLabels: {app: server}}, ingress: [{}]}"))
		reach(true, true)
		n.Manifest("bad.yaml", bad(spec))
		reach(false, true)
	}
	// A good version comes first. In the next version, the selector can't be read, so the good version stays in force.
	n.Manifest("bad.yaml", bad("{podSelector: {matchLabels: {app: server}}}"))
	n.Eventually("the agent has read the good version", func() error {
		out, err := n.Ctl("status")
		if err == nil && strings.Contains(out, "newField") {
			err = errors.New(out)
		}
		return err
	})
	reach(false, true)
	n.Manifest("bad.yaml", bad("{podSelectr: {}, ingress: [{}]}"))
	n.Manifest("other.yaml", strings.ReplaceAll(denyJSON, "server", "none")) // shows when the agent has read bad.yaml
	n.Eventually("the status has the other policy and the problem", func() error {
		out, err := n.Ctl("status")
		if err != nil || !strings.Contains(out, "shop/deny") || !strings.Contains(out, "podSelectr") {
			return fmt.Errorf("%w: %s", err, out)
		}
		return nil
	})
	reach(false, true)
	// After the deletion of the policy, the agent has no good version of it, so the whole namespace is closed.
	n.Manifest("bad.yaml", "")
	reach(true, true)
	n.Manifest("bad.yaml", bad("{podSelectr: {}, ingress: [{}]}"))
	reach(false, false)
}

// TestNamespacesHaveTheirName: a namespace without a manifest still has the label kubernetes.io/metadata.name.
func TestNamespacesHaveTheirName(t *testing.T) {
	if !nodetest.IsolatedWithWeir(t) {
		return
	}
	n := nodetest.NewNode(t, nil)
	n.Manifest("pods.yaml", `
apiVersion: v1
kind: Pod
metadata: {name: server, namespace: one, labels: {app: server}}
---
apiVersion: v1
kind: Pod
metadata: {name: client, namespace: two}
---
apiVersion: v1
kind: Pod
metadata: {name: client, namespace: three}
---
apiVersion: networking.k8s.io/v1
kind: NetworkPolicy
metadata: {name: p, namespace: one}
spec:
  podSelector: {}
  ingress:
  - from:
    - namespaceSelector: {matchLabels: {kubernetes.io/metadata.name: two}}
    - namespaceSelector: {matchExpressions: [{key: team, operator: DoesNotExist}]}
`)
	n.StartAgent()
	server, two, three := n.AddPod("one", "server"), n.AddPod("two", "client"), n.AddPod("three", "client")
	n.Serve(server.Netns, "tcp", server.IP+":80")
	n.Reach(two, server.IP+":80", true)
	n.Reach(three, server.IP+":80", false) // it is unknown whether the namespace of the pod three has the label team
}

// TestTwoFilesWithOneObject: if two files have different versions of a policy, a connection passes only if both
// versions allow it.
func TestTwoFilesWithOneObject(t *testing.T) {
	if !nodetest.IsolatedWithWeir(t) {
		return
	}
	n, server, client, other := shopNode(t)
	open := strings.Replace(denyJSON, `"spec": {`, `"spec": {"ingress": [{}], `, 1)
	some := strings.Replace(denyJSON, `"spec": {`,
		`"spec": {"ingress": [{"from": [{"podSelector": {"matchLabels": {"app": "client"}}}]}, `+
			`{"from": [{"podSelector": {}}]}], `, 1)
	one := strings.Replace(denyJSON, `"spec": {`,
		`"spec": {"ingress": [{"from": [{"podSelector": {"matchLabels": {"app": "client"}}}]}], `, 1)
	for _, files := range [][2]string{{denyJSON, open}, {open, denyJSON}} {
		put(n, "a.yaml", files[0])
		put(n, "b.yaml", files[1])
		n.Reach(client, server.IP+":80", false)
		n.Eventually("the status says that two files have it", func() error {
			out, err := n.Ctl("status")
			if err != nil || !strings.Contains(out, "another version is in b.yaml") {
				return fmt.Errorf("%w: %s", err, out)
			}
			return nil
		})
		n.Manifest("a.yaml", "")
		n.Manifest("b.yaml", "")
		n.Reach(client, server.IP+":80", true)
	}
	put(n, "a.yaml", some)
	put(n, "b.yaml", one)
	n.Reach(other, server.IP+":80", false)
	n.Reach(client, server.IP+":80", true)
}

func TestPoliciesThatAreNotEnforced(t *testing.T) {
	if !nodetest.IsolatedWithWeir(t) {
		return
	}
	n := nodetest.NewNode(t, nil)
	kinds := map[string]string{
		"CiliumNetworkPolicy": "cilium.io/v2", "AdminNetworkPolicy": "policy.networking.k8s.io/v1alpha1",
		"ClusterNetworkPolicy": "policy.networking.k8s.io/v1alpha2",
		"GlobalNetworkPolicy":  "crd.projectcalico.org/v1", "NetworkPolicy": "projectcalico.org/v3",
		"AuthorizationPolicy": "security.istio.io/v1",
		"SomeNetworkPolicy":   "example.com/v1",
	}
	for kind, version := range kinds {
		n.Manifest(kind+".yaml",
			fmt.Sprintf("apiVersion: %s\nkind: %s\nmetadata: {name: p, namespace: shop}\nspec: {x: y}\n", version, kind))
	}
	n.StartAgent()
	out, err := n.Ctl("status")
	if err != nil {
		t.Fatal(err)
	}
	served, err := metrics()
	if err != nil {
		t.Fatal(err)
	}
	for kind, version := range kinds {
		group, _, _ := strings.Cut(version, "/")
		for where, text := range map[string]string{"log": n.AgentLog(), "status": out} {
			if !strings.Contains(text, kind+"."+group) {
				t.Errorf("the %s doesn't warn of %s of %s:\n%s", where, kind, version, text)
			}
		}
		if want := fmt.Sprintf(`weir_unenforced_policies{kind="%s.%s"} 1`, kind, group); !strings.Contains(served, want) {
			t.Errorf("no metric %s", want)
		}
	}
}

// TestOddFiles: the agent doesn't hang if the directory has pipes, sockets, devices, or links that form a circle.
func TestOddFiles(t *testing.T) {
	if !nodetest.IsolatedWithWeir(t) {
		return
	}
	n := nodetest.NewNode(t, nil)
	n.Manifest("shop.yaml", shop)
	path := func(name string) string { return filepath.Join(n.Manifests, name) }
	socket, err := net.Listen("unix", path("socket.yaml"))
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = socket.Close() }()
	put(n, "dir.yaml/deny.yaml", denyJSON)
	if err := errors.Join(
		unix.Mkfifo(path("pipe.yaml"), 0o600), unix.Mknod(path("zero.json"), unix.S_IFCHR|0o600, int(unix.Mkdev(1, 5))),
		os.Symlink(".", path("loop")), os.Symlink("../dir.yaml", path("dir.yaml/loop")),
	); err != nil {
		t.Fatal(err)
	}
	n.StartAgent()
	out, err := n.Ctl("status")
	for _, name := range []string{"pipe.yaml", "socket.yaml", "zero.json"} {
		if err != nil || !strings.Contains(out, name+": it is no regular file; it contains no policy, and is left out") {
			t.Errorf("the status doesn't say that %s is left out: %v\n%s", name, err, out)
		}
	}
	server, client := n.AddPod("shop", "server"), n.AddPod("shop", "client")
	n.Serve(server.Netns, "tcp", server.IP+":80")
	n.Reach(client, server.IP+":80", false)
	if err := errors.Join(unix.Mkfifo(path("late.yaml"), 0o600), os.RemoveAll(path("dir.yaml"))); err != nil {
		t.Fatal(err)
	}
	n.Reach(client, server.IP+":80", true)
}

// TestALinkThatLeadsNowhere: if the target of a symbolic link doesn't exist, a new agent isn't ready, because the
// missing file may have a policy. A running agent keeps the policy that the file had.
func TestALinkThatLeadsNowhere(t *testing.T) {
	if !nodetest.IsolatedWithWeir(t) {
		return
	}
	n := nodetest.NewNode(t, nil)
	n.Manifest("shop.yaml", shop)
	target := filepath.Join(t.TempDir(), "deny.yaml")
	if err := os.Symlink(target, filepath.Join(n.Manifests, "deny.yaml")); err != nil {
		t.Fatal(err)
	}
	says := func(ready bool) {
		t.Helper()
		n.Eventually("the status says where the link leads", func() error {
			out, err := n.Ctl("status")
			if ready != (err == nil) || !strings.Contains(out, "deny.yaml: it is a link that leads nowhere") {
				return fmt.Errorf("%w: %s", err, out)
			}
			return nil
		})
	}
	n.SpawnAgent()
	says(false)
	if err := os.WriteFile(target, []byte(denyJSON), 0o600); err != nil {
		t.Fatal(err)
	}
	n.Eventually("the agent is ready", func() error {
		_, err := n.Ctl("status")
		return err
	})
	server, client := n.AddPod("shop", "server"), n.AddPod("shop", "client")
	n.Serve(server.Netns, "tcp", server.IP+":80")
	n.Reach(client, server.IP+":80", false)
	if err := os.Remove(target); err != nil {
		t.Fatal(err)
	}
	says(true)
	n.Reach(client, server.IP+":80", false)
}

// TestNamesThatPretend: names with control characters can't forge lines of the log or of weir's output.
func TestNamesThatPretend(t *testing.T) {
	if !nodetest.IsolatedWithWeir(t) {
		return
	}
	n := nodetest.NewNode(t, nil)
	n.Manifest("shop.yaml", shop)
	const pretended = "x\nFORGED: \x1b[31m\u202e"
	put(n, pretended+".yaml", denyJSON)
	put(n, "2"+pretended+".yaml", "kind: Service\nspec: [\n")
	for i, text := range []string{
		`{"apiVersion": "cilium.io/v2", "kind": "CiliumNetworkPolicy", "metadata": {"name": %q, "namespace": %[1]q}}`,
		`{"apiVersion": "crd.projectcalico.org/v1", "kind": "NetworkPolicy%s", "metadata": {"name": "x"}}`,
		`{"apiVersion": "v1", "kind": "Pod", "metadata": {"name": %q}}`,
		`{"apiVersion": "networking.k8s.io/v1", "kind": "NetworkPolicy", "metadata": {"name": "x"}, ` +
			`"spec": {"podSelector": {}, %q: 1}}`,
	} {
		name, _ := json.Marshal(pretended)
		text = strings.ReplaceAll(strings.ReplaceAll(text, "%[1]q", string(name)), "%q", string(name))
		put(n, fmt.Sprintf("o%d.json", i), strings.ReplaceAll(text, "%s", strings.Trim(string(name), `"`)))
	}
	n.StartAgent()
	status, _ := n.Ctl("status")
	check, _ := exec.Command(filepath.Join(n.Bin, "weir-agent"), "check", "dir:"+n.Manifests).CombinedOutput()
	for by, out := range map[string]string{"status": status, "check": string(check), "the log": n.AgentLog()} {
		if strings.ContainsAny(out, "\x1b\u202e") {
			t.Errorf("%s has what a terminal obeys: %q", by, out)
		}
		for line := range strings.Lines(out) {
			if strings.HasPrefix(strings.TrimPrefix(strings.TrimLeft(line, " "), "ERROR: "), "FORGED") {
				t.Errorf("%s has a forged line: %s", by, line)
			}
		}
	}
	if !strings.Contains(status, "CiliumNetworkPolicy") {
		t.Errorf("the status:\n%s", status)
	}
}

// TestLargeManifests: weir-agent check reads a broken manifest of a megabyte in less than 30 seconds of processor time.
func TestLargeManifests(t *testing.T) {
	if !nodetest.IsolatedWithWeir(t) {
		return
	}
	n := nodetest.NewNode(t, nil)
	const size = 1 << 20
	many := func(format string) string {
		var b strings.Builder
		for i := 0; b.Len() < size; i++ {
			fmt.Fprintf(&b, format, i)
		}
		return b.String()
	}
	for what, text := range map[string]string{
		"unknown fields": denyJSON[:len(denyJSON)-1] + many(`, "k%d": 1`) + "}",
		"bad labels": `{"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "a", "labels": {"a": "b"` +
			many(`, "k%d": 1`) + "}}}",
		"fields twice": "apiVersion: v1\nkind: List\nitems:\n" +
			many("- {apiVersion: v1, kind: ConfigMap, metadata: {name: c%d, name: d}}\n"),
		"one field": denyJSON[:len(denyJSON)-1] + `, "` + strings.Repeat(`x\n`, size/3) + `": 1}`,
	} {
		n.Manifest("large.yaml", text)
		ctx, cancel := context.WithTimeout(t.Context(), 3*time.Minute)
		check := exec.CommandContext(ctx, filepath.Join(n.Bin, "weir-agent"), "check", "dir:"+n.Manifests)
		out, _ := check.CombinedOutput()
		cancel()
		took := check.ProcessState.UserTime() + check.ProcessState.SystemTime()
		if took > 30*time.Second || !strings.Contains(string(out), "large.yaml") {
			t.Errorf("%s: not read in %s: %.200s", what, took, out)
		}
		t.Logf("%s: %s", what, took)
	}
}

// TestCheck: if a file or a policy is broken, "weir-agent check" ends with exit code 1.
func TestCheck(t *testing.T) {
	if !nodetest.IsolatedWithWeir(t) {
		return
	}
	n := nodetest.NewNode(t, nil)
	check := func() (string, error) {
		out, err := exec.Command(filepath.Join(n.Bin, "weir-agent"), "check", "dir:"+n.Manifests).CombinedOutput()
		return string(out), err
	}
	want := func(good bool, words ...string) {
		t.Helper()
		out, err := check()
		var exit *exec.ExitError
		if good != (err == nil) || !good && (!errors.As(err, &exit) || exit.ExitCode() != 1) {
			t.Errorf("check: %v, want success: %v\n%s", err, good, out)
		}
		for _, w := range words {
			if !strings.Contains(out, w) {
				t.Errorf("check doesn't say %q:\n%s", w, out)
			}
		}
	}
	n.Manifest("shop.yaml", shop)
	n.Manifest("values.yaml", "a: 1\n")
	n.Manifest("cilium.yaml", "apiVersion: cilium.io/v2\nkind: CiliumNetworkPolicy\nmetadata: {name: c}\n")
	put(n, "sub/deny.yaml", denyJSON)
	want(true, "shop.yaml", "Pod shop/server", "values.yaml", "sub/deny.yaml", "NetworkPolicy shop/deny",
		"CiliumNetworkPolicy")
	n.Manifest("bad.yaml",
		strings.ReplaceAll(strings.Replace(denyJSON, `"spec": {`, `"spec": {"ingress": [{"form": []}], `, 1), "deny", "bad"))
	want(false, "bad.yaml", "spec.ingress[0].form", "closed")
	n.Manifest("bad.yaml", "kind: NetworkPolicy\nspec: [\n")
	want(false, "bad.yaml", "document 1", "not be ready")
	if _, err := os.Stat("/run/weir"); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("/run/weir: %v: check has touched the node", err)
	}
}

// TestStatusBeforeTheFirstState: if an agent starts with a broken file, the status says that the earlier agent's rules
// are in force.
func TestStatusBeforeTheFirstState(t *testing.T) {
	if !nodetest.IsolatedWithWeir(t) {
		return
	}
	n, server, client, _ := shopNode(t)
	n.StopAgent()
	n.Manifest("policy.yaml", "kind: NetworkPolicy\nspec: [")
	n.SpawnAgent()
	n.Eventually("the agent has seen the broken file", func() error {
		if out, _ := n.Ctl("status"); !strings.Contains(out, "policy.yaml") {
			return fmt.Errorf("%s", out)
		}
		return nil
	})
	n.Reach(client, server.IP+":80", true)
	out, _ := n.Ctl("status")
	for line := range strings.Lines(out) {
		if strings.HasPrefix(line, "shop/server ") &&
			(strings.Contains(line, "closed") || !strings.Contains(line, "as before")) {
			t.Errorf("the pod is reached, and the status says: %s", line)
		}
	}
	if said := n.AgentLog() + out; strings.Contains(said, "last good state stays in force") {
		t.Errorf("there never was a good state:\n%s", said)
	}
}
