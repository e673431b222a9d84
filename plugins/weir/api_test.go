package main

import (
	"encoding/json"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"sigs.k8s.io/yaml"

	"github.com/weir-net/weir/test/nodetest"
)

func serveAPI(t *testing.T, manifests string) (stop func()) {
	t.Helper()
	lists := map[string][]json.RawMessage{"pods": {}, "namespaces": {}, "nodes": {}, "networkpolicies": {}}
	for doc := range strings.SplitSeq(manifests, "\n---\n") {
		data, err := yaml.YAMLToJSON([]byte(doc))
		if err != nil {
			t.Fatal(err)
		}
		var o struct{ Kind string }
		if err := json.Unmarshal(data, &o); err != nil {
			t.Fatal(err)
		}
		kind := strings.NewReplacer("policy", "policies").Replace(strings.ToLower(o.Kind))
		if !strings.HasSuffix(kind, "s") {
			kind += "s"
		}
		lists[kind] = append(lists[kind], data)
	}
	l, err := net.Listen("tcp4", "127.0.0.1:8080")
	if err != nil {
		t.Fatal(err)
	}
	server := &http.Server{Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("Content-Type", "application/json")
		items, ok := lists[filepath.Base(r.URL.Path)]
		switch q := r.URL.Query(); {
		case !ok: // the request is for one pod, which doesn't exist
			w.WriteHeader(http.StatusNotFound)
		case q.Has("sendInitialEvents"):
			w.WriteHeader(http.StatusUnprocessableEntity) // the server can't stream lists, so the agent asks for whole lists
		case q.Has("watch"):
			w.(http.Flusher).Flush()
			<-r.Context().Done()
		default:
			_ = json.NewEncoder(w).Encode(map[string]any{"metadata": map[string]any{"resourceVersion": "1"}, "items": items})
		}
	})}
	go func() { _ = server.Serve(l) }()
	t.Cleanup(func() { _ = server.Close() })
	return func() {
		t.Helper()
		if err := server.Close(); err != nil {
			t.Fatal(err)
		}
	}
}

// TestTheAPIServerIsAway: if the API server is away, the kernel's rules stay, even if the agent restarts. ADD refuses
// pods that the agent doesn't know.
func TestTheAPIServerIsAway(t *testing.T) {
	if !nodetest.IsolatedWithWeir(t) {
		return
	}
	const self = `
apiVersion: v1
kind: Node
metadata: {name: self}
spec: {podCIDRs: [10.88.0.0/24]}
status: {addresses: [{type: InternalIP, address: 192.0.2.2}]}
`
	manifests := strings.Join([]string{self, cluster, noEgress}, "\n---\n")
	n := nodetest.NewNode(t, nil)
	kubeconfig := filepath.Join(t.TempDir(), "kubeconfig")
	err := os.WriteFile(kubeconfig, []byte(`{"apiVersion": "v1", "kind": "Config", "current-context": "x",
"clusters": [{"name": "x", "cluster": {"server": "http://127.0.0.1:8080"}}],
"contexts": [{"name": "x", "context": {"cluster": "x"}}]}`), 0o600)
	if err != nil {
		t.Fatal(err)
	}
	spawn := func() { n.SpawnAgent("--node-name", "self", "--kubeconfig", kubeconfig) }
	says := func(words string, ready bool) {
		t.Helper()
		for deadline := time.Now().Add(time.Minute); ; time.Sleep(20 * time.Millisecond) {
			out, err := n.Ctl("status")
			if strings.Contains(out, words) && (err == nil) == ready {
				return
			}
			if time.Now().After(deadline) {
				t.Fatalf("weirctl doesn't say %q: %v: %s", words, err, out)
			}
		}
	}
	// As after a reboot: the kernel has no rules yet, and the API server doesn't answer.
	spawn()
	says("no good state", false)
	wantRefusal(t, n, nodetest.Args("ns-1", "busybox", ""), "no good state")
	stop := serveAPI(t, manifests)
	says("ns-1/no-egress", true)

	server, client := n.AddPod("ns-1", "http-echo"), n.AddPod("ns-1", "busybox")
	n.Serve(server.Netns, "tcp", ":80")
	count := arrivals(t, server)
	sent := flood(t, client.Netns, server.IP+":9")
	stop()
	says("API server: dial tcp", true)
	other := n.AddPod("ns-2", "other") // the agent already knew this pod
	n.Reach(other, server.IP+":80", true)
	wantRefusal(t, n, nodetest.Args("ns-1", "stranger", ""), "knows no pod ns-1/stranger")

	rules := rulesNow(t)
	n.KillAgent()
	spawn()
	says("no good state", false)
	wantRefusal(t, n, nodetest.Args("ns-1", "stranger", ""), "no good state")
	n.Reach(other, server.IP+":80", true)
	n.DelPod(other)
	if diff := cmp.Diff(rules, rulesNow(t)); diff != "" {
		t.Errorf("an agent that knows nothing changed rules: %s", diff)
	}
	stop = serveAPI(t, manifests)
	says("ns-1/no-egress", true)
	stop()
	if sent() == 0 {
		t.Error("the pod never sent anything: the test tests nothing")
	}
	if got := count.Load(); got != 0 {
		t.Errorf("%d packets of an isolated pod arrived", got)
	}
}
