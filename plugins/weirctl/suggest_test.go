package main

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"io"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/weir-net/weir/agentapi"
	"github.com/weir-net/weir/plugins/weirctl/client"
	"github.com/weir-net/weir/policy"
	"github.com/weir-net/weir/policy/explain"
	"github.com/weir-net/weir/policy/ruleset"
	"github.com/weir-net/weir/policy/suggest"
	"github.com/weir-net/weir/test/nodetest"
)

// flowsOfAPod has flows of a pod whose name and label contain control characters and YAML.
const flowsOfAPod = `[{"node": "n1", "since": "2026-11-28T19:00:00Z", "flows": [{
	"source": {
		"pod": "shop/x\u009b\n---\nkind: Secret", "labels": {"app": "x\n---\nkind: Secret"}, "address": "10.0.0.9"
	},
	"destination": {"pod": "shop/db", "labels": {"app": "db"}, "address": "10.0.0.3"}, "protocol": "tcp", "port": 80
}, {
	"source": {"pod": "shop/db", "labels": {"app": "db"}, "address": "10.0.0.3"},
	"destination": {"address": "fd00::9"}, "protocol": "u\u001b[2Jdp", "port": 80
}]}]`

// TestInterrupted: a command that reads a pipe ends when its context ends.
func TestInterrupted(t *testing.T) {
	read, write, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _, _ = write.Close(), read.Close() }()
	ctx, stop := context.WithCancel(t.Context())
	cmd := diffCommand()
	cmd.SilenceErrors, cmd.SilenceUsage = true, true
	cmd.SetIn(read)
	cmd.SetArgs([]string{"-f", "-", "--source", "dir:" + t.TempDir()})
	time.AfterFunc(10*time.Millisecond, stop)
	if err := cmd.ExecuteContext(ctx); !errors.Is(err, errInterrupted) {
		t.Errorf("diff: %v", err)
	}
}

// TestSuggestionsNameWhatTheyDrop: if a recorded flow has no ports (ICMP, for example), a note says that the suggested
// policies drop it, and which rule would allow it.
func TestSuggestionsNameWhatTheyDrop(t *testing.T) {
	f := suggest.Flow{Protocol: ruleset.ICMP, Count: 1, First: time.Unix(0, 0), Last: time.Unix(0, 0)}
	f.From.Namespace, f.From.Name, f.To.Namespace, f.To.Name = "shop", "web", "shop", "db"
	var b strings.Builder
	if err := printSuggestions(&b, suggest.Result{Left: []suggest.Flow{f}}, nil); err != nil {
		t.Fatal(err)
	}
	want := "# NOTE: only a rule without ports can allow this, and it allows all ports, so these policies drop it: " +
		"shop/web to shop/db, ICMP, once, 1970-01-01 00:00 UTC\n"
	if _, got, _ := strings.Cut(b.String(), "\n"); got != want {
		t.Errorf("got  %s\nwant %s", got, want)
	}
}

// TestSuggestBadInput: if an argument is wrong, the command prints one line that says what to do.
func TestSuggestBadInput(t *testing.T) {
	dir := t.TempDir()
	flows, none := filepath.Join(dir, "flows.json"), filepath.Join(dir, "none.json")
	quiet := filepath.Join(dir, "quiet.json")
	const objects = "apiVersion: v1\nkind: Namespace\nmetadata: {name: shop}\n---\n" +
		"apiVersion: v1\nkind: Pod\nmetadata: {name: db, namespace: shop}\nspec: {nodeName: n1}\n---\n" +
		"apiVersion: v1\nkind: Pod\nmetadata: {name: far, namespace: shop}\nspec: {nodeName: n2}\n---\n" +
		"apiVersion: v1\nkind: Pod\nmetadata: {name: anywhere, namespace: shop}\n"
	const nothing = `[{"node": "n1", "since": "2026-11-28T19:00:00Z", "flows": []}]`
	for file, text := range map[string]string{
		flows: flowsOfAPod, none: "[]", quiet: nothing, filepath.Join(dir, "m.yaml"): objects,
	} {
		if err := os.WriteFile(file, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	run := func(args ...string) (code int, message, out string) {
		cmd := rootCommand()
		var b strings.Builder
		cmd.SetOut(&b)
		cmd.SetArgs(append(append([]string{"suggest"}, args...), "--source", "dir:"+dir))
		code, message = client.Code(cmd.ExecuteContext(t.Context()))
		return code, message, b.String()
	}
	for _, tc := range []struct {
		args []string
		code int
		want string
	}{
		{nil, client.ExitUsage, "name the namespace"},
		{[]string{"-n", "shop", "--since", "-1s"}, client.ExitUsage, "must be a length of time above 0"},
		{[]string{"-n", "shop", "--flows", "gone.json"}, client.ExitUsage, "--flows gone.json: there is no such file"},
		{[]string{"-n", "shop", "--since", "1h", "--flows", flows}, client.ExitUsage, "exclude each other"},
		{[]string{"-n", "lab", "--flows", flows}, client.ExitUsage, "neither pods nor flows"},
		{[]string{"-n", "shop", "--flows", none}, client.ExitError, "no flows were recorded"},
		{[]string{"-n", "shop", "--flows", quiet}, client.ExitError, "would deny everything"},
	} {
		if code, text, _ := run(tc.args...); code != tc.code || !strings.Contains(text, tc.want) ||
			strings.Contains(text, "\n") {
			t.Errorf("%q: %d, %q", tc.args, code, text)
		}
	}
	code, text, out := run("-n", "shop", "--flows", flows)
	if code != 0 || strings.ContainsAny(out, "\x1b\u009b") || strings.Count(out, "\n---\n") != 3 ||
		strings.Contains(out, "\nkind: Secret") || !strings.Contains(out, "name: allow-db") {
		t.Errorf("%d, %s\n%s", code, text, out)
	}
	const note = "no flows of 1 pods of the namespace, on nodes that were not asked or have not recorded: n2\n"
	if !strings.Contains(out, note) {
		t.Errorf("no %q in\n%s", note, out)
	}
}

// TestNothingRecorded: if nothing was recorded, the command flows fails in each format. In JSON it still prints the
// empty recording. If flows were recorded, the text has the date of each flow.
func TestNothingRecorded(t *testing.T) {
	for _, format := range []client.Format{client.Text, client.JSON} {
		var out bytes.Buffer
		if err := printFlows(&out, format, []agentapi.Flows{{}}); !errors.Is(err, errNothingRecorded) {
			t.Errorf("%s: %v", format, err)
		}
		if format == client.JSON && !json.Valid(out.Bytes()) {
			t.Errorf("no JSON: %s", out.Bytes())
		}
	}
	var out bytes.Buffer
	at := time.Date(2026, time.March, 1, 3, 4, 5, 0, time.Local)
	days := []agentapi.Flows{{Since: at, Flows: []agentapi.Flow{{Last: at}}}}
	err := printFlows(&out, client.Text, days)
	if err != nil || !strings.Contains(out.String(), "2026-03-01 03:04:05") {
		t.Errorf("a recording can take a week, so a flow needs its date: %v\n%s", err, &out)
	}
	recorded := []agentapi.Flows{{Since: time.Now()}}
	if err := printFlows(io.Discard, client.JSON, recorded); err != nil {
		t.Errorf("after a recording without flows: %v", err)
	}
}

// TestFlowsOfUnknownNamespaces: if no flow matches, and the namespace doesn't exist, the command flows fails, and
// its error has the nearest names. The command drops does the same.
func TestFlowsOfUnknownNamespaces(t *testing.T) {
	if !nodetest.Isolated(t) {
		return
	}
	recorded := agentapi.Flows{Since: time.Now(), Flows: []agentapi.Flow{{Source: agentapi.FlowEnd{Pod: "gone/web"}}}}
	c := explain.Cluster{Objects: policy.Objects{
		Pods:       []policy.Pod{{Namespace: "lab", Name: "db"}},
		Namespaces: []policy.Namespace{{Name: "shop"}},
	}}
	mux := http.NewServeMux()
	mux.HandleFunc(agentapi.FlowsPath, func(w http.ResponseWriter, _ *http.Request) {
		_ = json.NewEncoder(w).Encode(recorded)
	})
	mux.HandleFunc(agentapi.ObjectsPath, func(w http.ResponseWriter, _ *http.Request) {
		_ = json.NewEncoder(w).Encode(c)
	})
	actAsAgent(t, mux)
	const nothing = "weirctl: note: no recorded flow matches"
	ask := func(args string, code int, says string) {
		t.Helper()
		var out strings.Builder
		cmd := flowsCommand()
		cmd.SilenceErrors, cmd.SilenceUsage = true, true
		cmd.SetOut(io.Discard)
		cmd.SetErr(&out)
		cmd.SetArgs(strings.Fields(args))
		got, text := client.Code(cmd.ExecuteContext(t.Context()))
		if said := strings.TrimSpace(out.String() + text); got != code || said != says {
			t.Errorf("%s: %d, %q", args, got, said)
		}
	}
	ask("", client.ExitOK, "")
	ask("-n gone", client.ExitOK, "")
	ask("-n lab", client.ExitOK, nothing)
	ask("-n shop -o json", client.ExitOK, nothing)
	ask("-n shp", client.ExitUsage, `there is no namespace "shp" and no pod in it; the nearest names are shop`)
	ask("-n shp --record 1h -o json", client.ExitOK, nothing)
	c.Gaps = []string{"namespaces could not be listed"}
	ask("-n shp", client.ExitOK, nothing)
	c.Gaps, recorded = nil, agentapi.Flows{}
	ask("-n shop", client.ExitError, errNothingRecorded.Error())
}
