package main

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"unicode"

	"github.com/spf13/cobra"
	"sigs.k8s.io/yaml"

	"github.com/weir-net/weir/plugins/weirctl/client"
	"github.com/weir-net/weir/policy"
	"github.com/weir-net/weir/policy/explain"
	"github.com/weir-net/weir/test/golden"
)

func runExplain(t *testing.T, args ...string) (out string, code int, message string) {
	t.Helper()
	cmd := explainCommand()
	cmd.SilenceErrors, cmd.SilenceUsage = true, true
	var b bytes.Buffer
	cmd.SetOut(&b)
	cmd.SetArgs(args)
	code, message = client.Code(cmd.ExecuteContext(t.Context()))
	return b.String(), code, message
}

func inDirectory(t *testing.T, manifest []byte) {
	t.Helper()
	t.Chdir(t.TempDir())
	if err := os.Mkdir("manifests", 0o700); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile("manifests/a.yaml", manifest, 0o600); err != nil {
		t.Fatal(err)
	}
}

// TestWhy: the answers to common questions are the same as in the golden files and in docs/explain.md. The first
// line of each manifest has the arguments.
func TestWhy(t *testing.T) {
	all, err := filepath.Glob("testdata/why/*.yaml")
	if err != nil || len(all) < 10 {
		t.Fatalf("%d questions, %v", len(all), err)
	}
	docs, err := os.ReadFile("../../docs/explain.md")
	if err != nil {
		t.Fatal(err)
	}
	here, err := os.Getwd()
	if err != nil {
		t.Fatal(err)
	}
	for _, path := range all {
		t.Run(filepath.Base(path), func(t *testing.T) {
			manifest, err := os.ReadFile(path)
			if err != nil {
				t.Fatal(err)
			}
			inDirectory(t, manifest)
			first, _, _ := strings.Cut(strings.TrimPrefix(string(manifest), "# "), "\n")
			args := append(strings.Fields(first), "--source", "dir:manifests")
			out, code, message := runExplain(t, args...)
			if message != "" || (code != client.ExitOK && code != client.ExitDropped) {
				t.Fatalf("%v: exit code %d, %s", args, code, message)
			}
			want := "$ weirctl explain " + strings.Join(args, " ") + "\n" + out
			golden.Compare(t, filepath.Join(here, strings.TrimSuffix(path, ".yaml")+".txt"), want)
			if !strings.Contains(string(docs), indented(want)) {
				t.Errorf("docs/explain.md doesn't show\n%s", want)
			}
		})
	}
}

func indented(text string) string {
	var b strings.Builder
	for line := range strings.Lines(text) {
		if line != "\n" {
			b.WriteString("    ")
		}
		b.WriteString(line)
	}
	return b.String()
}

const nodePort = `
{kind: Node, apiVersion: v1, metadata: {name: n1}, spec: {podCIDRs: [10.0.1.0/24]},
 status: {addresses: [{type: InternalIP, address: 192.0.2.1}]}}
---
{kind: Pod, apiVersion: v1, metadata: {name: web, namespace: shop, labels: {app: web}}, spec: {nodeName: n1},
 status: {podIP: 10.0.1.2}}
---
{kind: Service, apiVersion: v1, metadata: {name: web, namespace: shop},
 spec: {type: NodePort, selector: {app: web}, ports: [{port: 80, targetPort: 8080, nodePort: 30080}]}}
---
{kind: NetworkPolicy, apiVersion: networking.k8s.io/v1, metadata: {name: web, namespace: shop},
 spec: {podSelector: {}, ingress: [{from: [{podSelector: {}}], ports: [{port: 8080}]}]}}
`

// TestNodePort: if a nodePort leads to a Service's pods, the policies of these pods decide about the connection.
func TestNodePort(t *testing.T) {
	inDirectory(t, []byte(nodePort))
	for _, tc := range []struct {
		to   string
		code int
		want string
	}{
		{"node/n1:30080", client.ExitDropped, "svc/shop/web port 80: DROPPED"},
		{"192.0.2.1:30080", client.ExitDropped, "svc/shop/web port 80: DROPPED"},
		{"node/n1:30080/udp", client.ExitOK, "neither 203.0.113.7 nor 192.0.2.1 is a pod"},
		{"node/n1:22", client.ExitOK, "neither 203.0.113.7 nor 192.0.2.1 is a pod"},
	} {
		out, code, message := runExplain(t, "203.0.113.7", tc.to, "--source", "dir:manifests")
		if code != tc.code || !strings.Contains(out, tc.want) {
			t.Errorf("%s: exit code %d, %s\n%s", tc.to, code, message, out)
		}
	}
}

const hostPorts = `---
{kind: Node, apiVersion: v1, metadata: {name: n2}, spec: {podCIDRs: [10.0.2.0/24]},
 status: {addresses: [{type: InternalIP, address: 192.0.2.2}, {type: InternalIP, address: 192.0.2.3}]}}
---
{kind: Pod, apiVersion: v1, metadata: {name: db, namespace: shop}, status: {podIP: 10.0.2.2},
 spec: {nodeName: n2, containers: [{ports: [
  {containerPort: 8080, hostPort: 80, hostIP: 0.0.0.0}, {containerPort: 8053, hostPort: 53, protocol: UDP},
  {containerPort: 8081, hostPort: 81, hostIP: 192.0.2.2}, {containerPort: 8082, hostPort: {}, hostIP: 3}]}]}}
`

// TestHostPort: if a hostPort leads to a pod, the pod's policies decide about the container's port, not the hostPort.
func TestHostPort(t *testing.T) {
	inDirectory(t, []byte(nodePort+hostPorts))
	pod := "to shop/db (10.0.2.2, on n2), TCP port"
	for _, tc := range []struct {
		to   string
		code int
		want string
	}{
		{"node/n2:80", client.ExitDropped, pod + " 8080: DROPPED"},
		{"192.0.2.3:80", client.ExitDropped, pod + " 8080: DROPPED"},
		{"192.0.2.2:81", client.ExitDropped, pod + " 8081: DROPPED"},
		{"node/n2:53/udp", client.ExitDropped, "UDP port 8053: DROPPED"},
		{"192.0.2.3:81", client.ExitOK, "neither 203.0.113.7 nor 192.0.2.3 is a pod"},
		{"node/n2:53", client.ExitOK, "neither 203.0.113.7 nor 192.0.2.2 is a pod"},
		{"node/n1:80", client.ExitOK, "neither 203.0.113.7 nor 192.0.2.1 is a pod"},
	} {
		out, code, message := runExplain(t, "203.0.113.7", tc.to, "--source", "dir:manifests")
		if code != tc.code || !strings.Contains(out, tc.want) {
			t.Errorf("%s: exit code %d, %s\n%s", tc.to, code, message, out)
		}
	}
}

func TestHostNetworkWithoutNode(t *testing.T) {
	inDirectory(t, []byte(nodePort+`---
{kind: Pod, apiVersion: v1, metadata: {name: host, namespace: shop, labels: {app: host}}, spec: {hostNetwork: true}}
---
{kind: Service, apiVersion: v1, metadata: {name: hosts, namespace: shop},
 spec: {selector: {app: host}, ports: [{port: 80}]}}
`))
	_, code, message := runExplain(t, "shop/host", "shop/web:80", "--source", "dir:manifests")
	if code != client.ExitUsage || !strings.Contains(message, "uses its node's network") {
		t.Errorf("exit code %d, %s", code, message)
	}
	out, code, message := runExplain(t, "shop/web", "svc/shop/hosts", "--source", "dir:manifests")
	if code != client.ExitDropped || !strings.Contains(strings.Join(strings.Fields(out), " "),
		"none of its pods has a known address") {
		t.Errorf("exit code %d, %s\n%s", code, message, out)
	}
}

// TestICMP: if a rule has ports, it doesn't allow ICMP.
func TestICMP(t *testing.T) {
	inDirectory(t, []byte(nodePort))
	out, code, message := runExplain(t, "203.0.113.7", "shop/web:/icmp", "--source", "dir:manifests")
	if code != client.ExitDropped || !strings.Contains(out, "and without ports") || strings.Contains(out, "port 0") {
		t.Errorf("exit code %d, %s\n%s", code, message, out)
	}
}

// TestManyPolicies: if there are very many policies or rules, the text names some of them, and says how many others
// there are.
func TestManyPolicies(t *testing.T) {
	var manifest strings.Builder
	manifest.WriteString(nodePort)
	for i := range 1000 {
		fmt.Fprintf(&manifest, "---\n{kind: NetworkPolicy, apiVersion: networking.k8s.io/v1, metadata: {name: p%d, "+
			"namespace: shop}, spec: {podSelector: {}, ingress: [{ports: [{port: 9090}]}]}}\n", i)
	}
	inDirectory(t, []byte(manifest.String()))
	for port, want := range map[string]string{
		"80":   "991 more NetworkPolicies isolate it too (-o json lists them)",
		"9090": "990 more rules allow it too (-o json lists them)",
	} {
		out, _, message := runExplain(t, "203.0.113.7", "shop/web:"+port, "--source", "dir:manifests")
		if strings.Count(out, "\n") > 60 || !strings.Contains(out, want) {
			t.Errorf("port %s: %s\n%s", port, message, out)
		}
	}
}

const hostile = `
apiVersion: v1
kind: Namespace
metadata: {name: shop}
---
apiVersion: v1
kind: Pod
metadata: {name: a, namespace: shop}
---
apiVersion: v1
kind: Pod
metadata: {name: b, namespace: shop, labels: {app: b}}
---
apiVersion: networking.k8s.io/v1
kind: NetworkPolicy
metadata: {name: p, namespace: shop}
spec:
  podSelector: {}
  ingress:
  - from: [{ipBlock: {cidr: "10.0.0.0/8\u001b[2J\u009b31m\u202e"}}]
    ports: [{port: "\u001b]0;x\u0007", protocol: "\u009bTCP"}]
`

// TestHostileObjects: if an object's text has control characters, they don't reach the terminal.
func TestHostileObjects(t *testing.T) {
	inDirectory(t, []byte(hostile))
	for _, format := range []string{"text", "json", "yaml"} {
		out, code, message := runExplain(t, "shop/a", "shop/b:80", "--source", "dir:manifests", "-o", format)
		if code != client.ExitDropped {
			t.Errorf("%s: exit code %d, %s", format, code, message)
		}
		for _, r := range out {
			if r != '\n' && !unicode.IsPrint(r) {
				t.Fatalf("%s: %q in\n%q", format, r, out)
			}
		}
		if !strings.Contains(out, "shop/p") {
			t.Errorf("%s: the policy isn't named:\n%s", format, out)
		}
	}
}

func TestFormats(t *testing.T) {
	inDirectory(t, []byte(hostile))
	var all [2]explain.Explanation
	for i, format := range []string{"json", "yaml"} {
		out, _, _ := runExplain(t, "shop/a", "shop/b:80", "--source", "dir:manifests", "-o", format)
		read := json.Unmarshal
		if format == "yaml" {
			read = func(b []byte, v any) error { return yaml.Unmarshal(b, v) }
		}
		if err := read([]byte(out), &all[i]); err != nil {
			t.Fatalf("%s: %v\n%s", format, err, out)
		}
	}
	if all[0].Result != explain.Dropped || all[1].Result != all[0].Result || len(all[1].Paths) != 1 {
		t.Errorf("%+v\n%+v", all[0], all[1])
	}
}

// TestMistakes: if an argument is wrong, the command prints one line that says what to do.
func TestMistakes(t *testing.T) {
	inDirectory(t, []byte(hostile))
	for args, want := range map[string]string{
		"shop/a": "explain needs two ends, FROM and TO[:PORT[/PROTO]], and got 1; " +
			"see weirctl explain --help",
		"shop/a shop/c:80":              "there is no pod shop/c; the nearest names are shop/a, shop/b",
		"shop/a svc/shop/b:80":          "there is no Service svc/shop/b",
		"shop/a shop/b":                 "which port of shop/b? Write shop/b:PORT, shop/b:PORT/udp or shop/b:/icmp",
		"shop/a shop/b:http":            "shop/b has no named ports: write the number of the port instead of http",
		"shop/a shop/b:99999":           "port 99999 is out of range: 1 to 65535",
		"world world:80":                "one end must be in the cluster",
		"shop/a node/n1:80":             "there is no node node/n1",
		"shop/a shop/b:80 -o table":     "-o table: must be text, json or yaml",
		"shop/a shop/b:80 --source foo": `--source "foo": must be agent, kubernetes or dir:PATH`,
	} {
		list := strings.Fields(args)
		if !strings.Contains(args, "--source") {
			list = append(list, "--source", "dir:manifests")
		}
		out, code, message := runExplain(t, list...)
		if out != "" || code != client.ExitUsage || message != want {
			t.Errorf("%s: exit code %d\ngot  %s\nwant %s\n%s", args, code, message, want, out)
		}
	}
}

// TestMaybeHidden: if the user may not read objects of an end's kind, the error says that the end may exist.
func TestMaybeHidden(t *testing.T) {
	gaps := []string{"you may not read services, so weirctl doesn't know which pods Services lead to"}
	listed := []string{"you may list services only in a, shop, so those of other namespaces are missing"}
	for _, tc := range []struct {
		to       string
		services []policy.Service
		gaps     []string
		hidden   bool
	}{
		{"svc/shop/b:80", nil, gaps, true},
		{"shop/b:80", nil, gaps, true},
		{"svc/shop/b:80", nil, nil, false},
		{"svc/shop/b:80", []policy.Service{{Namespace: "shop", Name: "c"}}, gaps, true}, // shop/b may be hidden
		{"svc/shop/b:80", nil, listed, false},
		{"svc/b/b:80", nil, listed, true},
		{"node/n1:80", nil, listed, false},
		{"node/n1:80", nil, gaps, false},
		{"svc/shop/b:81", []policy.Service{{Namespace: "shop", Name: "b"}}, gaps, false}, // the Service has no ports
	} {
		q, err := explain.Parse("10.0.0.1", tc.to, "")
		if err != nil {
			t.Fatal(err)
		}
		input := (*explain.InputError)(nil)
		if _, err = explain.Explain(explain.Cluster{Services: tc.services}, q); !errors.As(err, &input) {
			t.Fatalf("%s: %v", tc.to, err)
		}
		err = maybeHidden(input, q, tc.gaps)
		wrong := errors.As(err, new(*explain.InputError))
		if wrong == tc.hidden || tc.hidden && !strings.HasSuffix(err.Error(), "or it can't be seen: "+tc.gaps[0]) {
			t.Errorf("%s: %v", tc.to, err)
		}
	}
}

// TestCompletion: a shell completes the names of objects for the first two arguments, and of namespaces for
// --namespace.
func TestCompletion(t *testing.T) {
	manifest, err := os.ReadFile("testdata/why/load-balancer.yaml")
	if err != nil {
		t.Fatal(err)
	}
	inDirectory(t, manifest)
	for args, want := range map[string]string{
		"s":                "shop/web svc/shop/web",
		"world|svc/shop/w": "svc/shop/web",
		"world|node/":      "node/node-1 node/node-2",
		"world|shop/web|":  "",
		"--namespace|sh":   "shop",
	} {
		cmd := explainCommand()
		root := &cobra.Command{Use: "weirctl"}
		root.AddCommand(cmd)
		var out bytes.Buffer
		root.SetOut(&out)
		root.SetArgs(append([]string{cobra.ShellCompNoDescRequestCmd, "explain", "--source", "dir:manifests"},
			strings.Split(args, "|")...))
		if err := root.ExecuteContext(t.Context()); err != nil {
			t.Fatal(err)
		}
		lines, _, _ := strings.Cut(out.String(), ":")
		if got := strings.Join(strings.Fields(lines), " "); got != want {
			t.Errorf("%s: %q, want %q", args, got, want)
		}
	}
}

// TestColours: if the output is a file, it has no colours.
func TestColours(t *testing.T) {
	f, err := os.Create(filepath.Join(t.TempDir(), "out"))
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = f.Close() }()
	p := client.NewPrinter(f)
	p.Line(client.Styled{Style: client.Red, Text: "DROPPED"}, strings.Repeat(" word", 30))
	text, err := os.ReadFile(f.Name())
	if err != nil || p.Err() != nil {
		t.Fatal(err, p.Err())
	}
	lines := strings.Split(strings.TrimSpace(string(text)), "\n")
	if strings.Contains(string(text), "\x1b") || len(lines) != 2 || !strings.HasPrefix(lines[1], "  word") {
		t.Errorf("%q", text)
	}
}
