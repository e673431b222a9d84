package main

import (
	"context"
	"encoding/json"
	"io"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	networkingv1 "k8s.io/api/networking/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/weir-net/weir/agentapi"
	"github.com/weir-net/weir/plugins/weirctl/client"
	"github.com/weir-net/weir/policy"
	"github.com/weir-net/weir/policy/explain"
	"github.com/weir-net/weir/test/nodetest"
)

// TestDropsBadInput: if an argument is wrong or no agent answers, the command prints one line that says what to do.
func TestDropsBadInput(t *testing.T) {
	for _, tc := range []struct {
		args string
		code int
		want string
	}{
		{"-o xml", client.ExitUsage, "-o xml: must be text or json"},
		{"--since -5m", client.ExitUsage, `"-5m" for "--since" flag: must be a length of time above 0, such as 5m or 24h`},
		{"--since 0s", client.ExitUsage, `"0s" for "--since" flag: must be a length of time above 0`},
		{"--port 53/udp", client.ExitUsage, `"53/udp" for "--port" flag: must be a port from 1 to 65535, without a protocol`},
		{"", client.ExitError, "asks the agent of the node that it runs on"},
	} {
		cmd := rootCommand()
		cmd.SetArgs(append([]string{"drops"}, strings.Fields(tc.args)...))
		code, text := client.Code(cmd.ExecuteContext(t.Context()))
		if code != tc.code || !strings.Contains(text, tc.want) || strings.Contains(text, "\n") {
			t.Errorf("%s: %d, %q", tc.args, code, text)
		}
	}
}

// TestDropsOfUnknownNames: if no drop matches, and the namespace, pod or policy doesn't exist, the command fails with
// the nearest names. With -f, the command only prints a note.
func TestDropsOfUnknownNames(t *testing.T) {
	if !nodetest.Isolated(t) {
		return
	}
	var remembered []agentapi.Drop
	c := explain.Cluster{Objects: policy.Objects{
		Pods:       []policy.Pod{{Namespace: "shop", Name: "web-0"}, {Namespace: "lab", Name: "db"}},
		Namespaces: []policy.Namespace{{Name: "shop"}, {Name: "empty"}},
		Policies:   []*networkingv1.NetworkPolicy{{ObjectMeta: metav1.ObjectMeta{Namespace: "shop", Name: "deny"}}},
	}}
	mux := http.NewServeMux()
	mux.HandleFunc(agentapi.DropsPath, func(w http.ResponseWriter, r *http.Request) {
		w.WriteHeader(http.StatusOK)
		for _, d := range remembered {
			_ = json.NewEncoder(w).Encode(d)
		}
		_ = http.NewResponseController(w).Flush()
		if r.URL.Query().Get("follow") != "" {
			<-r.Context().Done()
		}
	})
	mux.HandleFunc(agentapi.ObjectsPath, func(w http.ResponseWriter, _ *http.Request) {
		_ = json.NewEncoder(w).Encode(c)
	})
	actAsAgent(t, mux)
	ask := func(ctx context.Context, args string, out io.Writer) (int, string) {
		cmd := dropsCommand()
		cmd.SilenceErrors, cmd.SilenceUsage = true, true
		cmd.SetOut(out)
		cmd.SetErr(out)
		cmd.SetArgs(strings.Fields(args))
		return client.Code(cmd.ExecuteContext(ctx))
	}
	const nothing = "weirctl: note: no drop that the agents remember matches\n"
	for args, want := range map[string]string{
		"":                               "",
		"--pod shop/web-0":               "",
		"--pod web-0 -n shop":            "",
		"--pod db --policy deny":         "",
		"-n empty":                       "",
		"-n lab --policy shop/deny":      "",
		"--pod shop/web":                 "there is no pod shop/web; the nearest names are shop/web-0",
		"--pod lab/web-0":                "there is no pod lab/web-0; the nearest names are shop/web-0",
		"--pod nothing/like-it":          "there is no pod nothing/like-it",
		"--policy shop/den":              "there is no NetworkPolicy shop/den; the nearest names are shop/deny",
		"-n shp":                         `there is no namespace "shp" and no pod in it; the nearest names are shop`,
		"-n shp --pod web-0 --since 10m": `there is no namespace "shp" and no pod in it; the nearest names are shop`,
	} {
		var out strings.Builder
		code, text := ask(t.Context(), args, &out)
		switch {
		case want == "" && (code != client.ExitOK || out.String() != nothing):
			t.Errorf("%s: %d, %q, %q", args, code, text, out.String())
		case want != "" && (code != client.ExitUsage || text != want || out.Len() > 0):
			t.Errorf("%s: %d, %q, %q", args, code, text, out.String())
		}
	}
	c.Gaps = []string{"pods could not be listed"}
	if code, text := ask(t.Context(), "--pod shop/web", io.Discard); code != client.ExitOK {
		t.Errorf("without all objects: %d, %s", code, text)
	}
	gone := agentapi.Drop{Kind: agentapi.DropShown, Count: 1, Source: agentapi.DropEnd{Pod: "shop/gone"}}
	c.Gaps, remembered = nil, []agentapi.Drop{gone}
	if code, text := ask(t.Context(), "--pod shop/gone", io.Discard); code != client.ExitOK {
		t.Errorf("a pod that has ended: %d, %s", code, text)
	}
	ctx, cancel := context.WithCancel(t.Context())
	lines := &lineWriter{"there is no pod shop/web; the nearest names are shop/web-0; waiting for drops", cancel}
	if code, text := ask(ctx, "-f --pod shop/web", lines); code != client.ExitOK || ctx.Err() == nil {
		t.Errorf("-f: %d, %s", code, text)
	}
}

// actAsAgent serves the agent's socket until the test ends.
func actAsAgent(t *testing.T, handler http.Handler) {
	t.Helper()
	if err := os.MkdirAll(filepath.Dir(agentapi.Socket), 0o755); err != nil {
		t.Fatal(err)
	}
	l, err := net.Listen("unix", agentapi.Socket)
	if err != nil {
		t.Fatal(err)
	}
	server := &http.Server{Handler: handler, ReadHeaderTimeout: time.Minute}
	go func() { _ = server.Serve(l) }()
	t.Cleanup(func() { _ = server.Close() })
}

// lineWriter is a writer. When a written text contains the text in the field until, lineWriter calls the function
// in the field found.
type lineWriter struct {
	until string
	found func()
}

func (w *lineWriter) Write(p []byte) (int, error) {
	if strings.Contains(string(p), w.until) {
		w.found()
	}
	return len(p), nil
}

func TestPortFlag(t *testing.T) {
	for text, want := range map[string]uint16{
		"1": 1, "65535": 65535, "0": 0, "65536": 0, "-1": 0, "http": 0, "": 0, "80" + " ": 0,
	} {
		port := uint16(0)
		err := (*portFlag)(&port).Set(text)
		if port != want || (err == nil) != (want > 0) {
			t.Errorf("%q: %d, %v", text, port, err)
		}
	}
}
