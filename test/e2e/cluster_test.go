//go:build e2e

// Package e2e_test does what users and attackers do, on a real cluster (scripts/cluster/up). It runs the real kubectl.
package e2e_test

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"text/template"
	"time"
)

const scripts = "../../scripts/cluster/"

var probeBinary string

func TestMain(m *testing.M) {
	dir, err := filepath.Abs("../../bin")
	if err == nil {
		probeBinary = filepath.Join(dir, "probe")
		build := exec.Command("go", "build", "-o", probeBinary, "./probe")
		build.Env = append(os.Environ(), "CGO_ENABLED=0")
		build.Stderr = os.Stderr
		err = build.Run()
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, "build probe:", err)
		os.Exit(1)
	}
	os.Exit(m.Run())
}

func run(ctx context.Context, stdin, name string, args ...string) (string, error) {
	cmd := exec.CommandContext(ctx, name, args...)
	cmd.Stdin = strings.NewReader(stdin)
	var out, errs bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &errs
	if err := cmd.Run(); err != nil {
		return out.String(), fmt.Errorf("%s %s: %w\n%s%s", name, strings.Join(args, " "), err, out.String(), errs.String())
	}
	return out.String(), nil
}

func must(t *testing.T, stdin, name string, args ...string) string {
	t.Helper()
	out, err := run(t.Context(), stdin, name, args...)
	if err != nil {
		t.Fatal(err)
	}
	return out
}

func kubectl(t *testing.T, args ...string) string {
	t.Helper()
	return must(t, "", scripts+"kubectl", args...)
}

func apply(t *testing.T, manifest string, values any) {
	t.Helper()
	var b strings.Builder
	if err := template.Must(template.New("").Parse(manifest)).Execute(&b, values); err != nil {
		t.Fatal(err)
	}
	must(t, b.String(), scripts+"kubectl", "apply", "-f", "-")
}

func enter(t *testing.T, node string, command ...string) string {
	t.Helper()
	return must(t, "", scripts+"enter", append([]string{node}, command...)...)
}

// eventually calls check until check returns nil. The parameter usual is the longest time that this takes on a machine
// with little other work. The test fails after ten times as long.
func eventually(t *testing.T, usual time.Duration, what string, check func() error) {
	t.Helper()
	within := 10 * usual
	deadline := time.Now().Add(within)
	for {
		err := check()
		if err == nil {
			return
		}
		if time.Now().After(deadline) {
			t.Fatalf("%s: not within %v: %v", what, within, err)
		}
		select {
		case <-t.Context().Done():
			t.Fatal(t.Context().Err())
		case <-time.After(100 * time.Millisecond):
		}
	}
}

// namespace makes a namespace, and waits for its service account. No pod can be created before that.
func namespace(t *testing.T, name string) string {
	t.Helper()
	kubectl(t, "create", "namespace", name)
	kubectl(t, "-n", name, "wait", "--for=create", "serviceaccount/default", "--timeout=300s")
	t.Cleanup(func() {
		ctx, cancel := context.WithTimeout(context.WithoutCancel(t.Context()), 10*time.Minute)
		defer cancel()
		if _, err := run(ctx, "", scripts+"kubectl", "delete", "namespace", name, "--ignore-not-found"); err != nil {
			t.Error(err)
		}
	})
	return name
}

type node struct {
	name    string
	address netip.Addr
	subnet  netip.Prefix
}

func workers(t *testing.T) []node {
	t.Helper()
	var list struct {
		Items []struct {
			Metadata struct {
				Name string `json:"name"`
			} `json:"metadata"`
			Status struct {
				Addresses []struct{ Type, Address string } `json:"addresses"`
			} `json:"status"`
		} `json:"items"`
	}
	if err := json.Unmarshal([]byte(kubectl(t, "get", "nodes", "-l", "node-role.kubernetes.io/node", "-o", "json")),
		&list); err != nil {
		t.Fatal(err)
	}
	var all []node
	for _, i := range list.Items {
		n := node{name: i.Metadata.Name}
		for _, a := range i.Status.Addresses {
			// Take the first address: a node may have an address of each family.
			if a.Type == "InternalIP" && !n.address.IsValid() {
				n.address = netip.MustParseAddr(a.Address)
				n.subnet = netip.PrefixFrom(n.address, 24).Masked()
			}
		}
		all = append(all, n)
	}
	return all
}

// apart returns three workers. The results a and neighbour are in the same subnet. The result remote is in another
// subnet.
func apart(t *testing.T) (a, neighbour, remote node) {
	t.Helper()
	all := workers(t)
	a = all[0]
	i := slices.IndexFunc(all[1:], func(n node) bool { return n.subnet == a.subnet })
	j := slices.IndexFunc(all, func(n node) bool { return n.subnet != a.subnet })
	if i < 0 || j < 0 {
		t.Fatalf("of the workers %v no two are in one subnet, or all are", all)
	}
	return a, all[i+1], all[j]
}

// atEachDistance runs a subtest for a client and a server on one node, in one subnet, and in two subnets.
func atEachDistance(t *testing.T, test func(t *testing.T, client, server node)) {
	first, neighbour, remote := apart(t)
	t.Run("same node", func(t *testing.T) { test(t, first, first) })
	t.Run("same subnet", func(t *testing.T) { test(t, first, neighbour) })
	t.Run("other subnet", func(t *testing.T) { test(t, first, remote) })
}

type pod struct {
	Namespace, Name, Node string
	Labels                string // as in YAML: "a: b, c: d"
	Image                 string
	Command               string // a YAML list; empty for the image's own command
	More                  string // more fields of the container, one on each line
	Once                  bool   // true if the pod ends by itself
	Grace                 int    // seconds that the pod has to end after it is deleted
}

func listener(namespace, name string, on node) pod {
	return pod{
		Namespace: namespace, Name: name, Node: on.name, Labels: "app: server", Image: probe,
		Command: `[probe, listen, ":9000"]`,
	}
}

const podManifest = `
apiVersion: v1
kind: Pod
metadata: {name: {{.Name}}, namespace: {{.Namespace}}, labels: { {{.Labels}} }}
spec:
  nodeName: {{.Node}}
  terminationGracePeriodSeconds: {{.Grace}}
  restartPolicy: {{if .Once}}Never{{else}}Always{{end}}
  containers:
  - name: main
    image: {{.Image}}
    imagePullPolicy: Never
{{with .Command}}    command: {{.}}{{end}}
{{with .More}}{{.}}{{end}}
`

const (
	httpEcho = "weir.local/http-echo:dev"
	busybox  = "docker.io/library/busybox:latest"
	probe    = "weir.local/probe:dev"
	idle     = `[sleep, infinity]`
)

func start(t *testing.T, pods ...pod) {
	t.Helper()
	for _, p := range pods {
		apply(t, podManifest, p)
	}
	for _, p := range pods {
		kubectl(t, "-n", p.Namespace, "wait", "--for=condition=Ready", "--timeout=300s", "pod/"+p.Name)
	}
}

func podIP(t *testing.T, namespace, name string) string {
	t.Helper()
	return kubectl(t, "-n", namespace, "get", "pod", name, "-o", "jsonpath={.status.podIP}")
}

func execIn(ctx context.Context, namespace, pod string, command ...string) (string, error) {
	return run(ctx, "", scripts+"kubectl", append([]string{"-n", namespace, "exec", pod, "--"}, command...)...)
}

type attempt struct {
	To            string        `json:"to"`
	Start         time.Time     `json:"start"`
	Took          time.Duration `json:"took"`
	OK            bool          `json:"ok"`
	Retransmitted int           `json:"retransmitted"`
	Late          bool          `json:"late"`
	Error         string        `json:"error"`
}

func attempts(t *testing.T, out string) []attempt {
	t.Helper()
	var all []attempt
	for d := json.NewDecoder(strings.NewReader(out)); d.More(); {
		var a attempt
		if err := d.Decode(&a); err != nil {
			t.Fatalf("%v in %q", err, out)
		}
		all = append(all, a)
	}
	slices.SortFunc(all, func(a, b attempt) int { return a.Start.Compare(b.Start) })
	return all
}

// api sends requests through kubectl proxy, because it would take long to start kubectl for each request.
type api struct {
	*testing.T
	client *http.Client
	url    string
	dial   func(ctx context.Context, network, address string) (net.Conn, error)
}

func newAPI(t *testing.T) api {
	t.Helper()
	socket := filepath.Join(t.TempDir(), "api")
	proxy := exec.CommandContext(t.Context(), scripts+"kubectl", "proxy", "--unix-socket="+socket)
	if err := proxy.Start(); err != nil {
		t.Fatal(err)
	}
	dial := func(ctx context.Context, _, _ string) (net.Conn, error) {
		return (&net.Dialer{}).DialContext(ctx, "unix", socket)
	}
	a := api{
		T: t, url: "http://localhost", dial: dial, client: &http.Client{Transport: &http.Transport{DialContext: dial}},
	}
	eventually(t, 10*time.Second, "kubectl proxy answers", func() error {
		resp, err := a.client.Get(a.url + "/version")
		if err == nil {
			_ = resp.Body.Close()
		}
		return err
	})
	return a
}

func (a api) send(method, path, body string) {
	a.Helper()
	req, err := http.NewRequestWithContext(a.Context(), method, a.url+path, strings.NewReader(body))
	if err != nil {
		a.Fatal(err)
	}
	req.Header.Set("Content-Type", "application/json")
	resp, err := a.client.Do(req)
	if err != nil {
		a.Fatal(err)
	}
	defer func() { _ = resp.Body.Close() }()
	if resp.StatusCode >= 300 {
		text, _ := io.ReadAll(resp.Body)
		a.Fatalf("%s %s: %s: %s", method, path, resp.Status, text)
	}
}
