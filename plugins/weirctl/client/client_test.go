package client

import (
	"bytes"
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/weir-net/weir/agentapi"
	"github.com/weir-net/weir/test/nodetest"
)

// TestBuildsElsewhere: weirctl also builds for macOS and Windows.
func TestBuildsElsewhere(t *testing.T) {
	for _, system := range []string{"darwin", "windows"} {
		build := exec.Command("go", "build", "-o", os.DevNull, "..")
		build.Env = append(os.Environ(), "GOOS="+system, "CGO_ENABLED=0")
		if out, err := build.CombinedOutput(); err != nil {
			t.Errorf("%s: %v\n%s", system, err, out)
		}
	}
}

// TestStoppedAgent: if the agent doesn't answer, the error says so, and how long weirctl has waited.
func TestStoppedAgent(t *testing.T) {
	if !nodetest.Isolated(t) {
		return
	}
	defer func(was time.Duration) { answersWithin = was }(answersWithin)
	answersWithin = 100 * time.Millisecond
	if err := os.MkdirAll(filepath.Dir(agentapi.Socket), 0o700); err != nil {
		t.Fatal(err)
	}
	l, err := net.Listen("unix", agentapi.Socket)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = l.Close() }()
	for name, ask := range map[string]func() error{
		"GET":  func() error { return Get(t.Context(), agentapi.StatusPath, nil) },
		"POST": func() error { return Post(t.Context(), agentapi.ExplainPath, make([]byte, 8<<20), nil) },
	} {
		err := ask()
		if err == nil || errors.Is(err, agentapi.ErrNoAgent) || !strings.Contains(err.Error(), "not answered within 100ms") {
			t.Errorf("%s: %v", name, err)
		}
	}
}

func TestParseFormat(t *testing.T) {
	for _, s := range []string{"text", "json"} {
		if f, err := ParseFormat(s); err != nil || string(f) != s {
			t.Errorf("%s: %q, %v", s, f, err)
		}
	}
	if _, err := ParseFormat("xml"); err == nil || err.Error() != "-o xml: must be text or json" {
		t.Errorf("xml: %v", err)
	}
}

func TestPrint(t *testing.T) {
	pods := []agentapi.PodStatus{{
		Pod: "ns-1/a", ContainerID: "0123456789abcdef", Addresses: []string{"10.88.0.2", "fd00::2"}, MAC: "0a:58:0a:58:00:02",
		HostIf: "weirp0123456789", Since: time.Unix(0, 0), Ingress: "ns-1/deny", Egress: "open",
	}}
	text, json := &strings.Builder{}, &strings.Builder{}
	if err := PrintPods(text, Text, pods); err != nil {
		t.Fatal(err)
	}
	since := time.Unix(0, 0).Format(time.RFC3339)
	want := "" +
		"CONTAINER      POD     ADDRESSES          LINK             MAC                INGRESS    EGRESS  SINCE\n" +
		"0123456789abc  ns-1/a  10.88.0.2,fd00::2  weirp0123456789  0a:58:0a:58:00:02  ns-1/deny  open    " + since + "\n"
	if diff := cmp.Diff(want, text.String()); diff != "" {
		t.Error(diff)
	}
	text.Reset()
	sets := []agentapi.SetStatus{{Name: "weir-pods", Type: "hash:ip"}}
	s := &agentapi.Status{Errors: []string{"no agent"}, Pods: pods, Sets: sets}
	if err := PrintStatus(text, Text, s); err != nil {
		t.Fatal(err)
	}
	want = "" +
		"ready:     false\n" +
		"ERROR:     no agent\n" +
		"policies:  \n" +
		"\n" +
		"POD     ADDRESS            LINK             INGRESS    EGRESS\n" +
		"ns-1/a  10.88.0.2,fd00::2  weirp0123456789  ns-1/deny  open\n" +
		"\n" +
		"SET        TYPE     ENTRIES\n" +
		"weir-pods  hash:ip  0\n"
	if diff := cmp.Diff(want, text.String()); diff != "" {
		t.Error(diff)
	}
	if err := PrintPods(json, JSON, []agentapi.PodStatus{}); err != nil || json.String() != "[]\n" {
		t.Errorf("no pods: %q, %v", json, err)
	}
}

// TestLongLists: if there are a thousand policies or problems, the text output shortens the lists, and the JSON
// output has all.
func TestLongLists(t *testing.T) {
	s := &agentapi.Status{}
	for i := range 1000 {
		s.Policies = append(s.Policies, fmt.Sprintf("ns/policy-%d", i))
		s.Problems = append(s.Problems, agentapi.Problem{Object: fmt.Sprintf("Node n%d", i), Message: "bad"})
	}
	s.Classes = []agentapi.Class{{Direction: "ingress", Family: "IPv6", Policies: s.Policies, Set: "weir-in-x"}}
	text, json := &strings.Builder{}, &strings.Builder{}
	if err := errors.Join(PrintStatus(text, Text, s), PrintStatus(json, JSON, s)); err != nil {
		t.Fatal(err)
	}
	for line := range strings.Lines(text.String()) {
		if len(line) > 300 {
			t.Errorf("%d bytes: %.300s", len(line), line)
		}
	}
	if got := strings.Count(text.String(), "PROBLEM"); got != maxProblems+1 {
		t.Errorf("%d lines of problems", got)
	}
	for _, want := range []string{
		"ns/policy-9, and 990 more\n", "ingress    IPv6    0     ns/policy-0",
		"and 950 more (weirctl status -o json lists all)",
	} {
		if !strings.Contains(text.String(), want) {
			t.Errorf("the text lacks %q", want)
		}
	}
	if !strings.Contains(json.String(), "ns/policy-999") || !strings.Contains(json.String(), "Node n999") {
		t.Error("the JSON lacks the last policy or problem")
	}
}

// TestLastSync: the status of a node and the status of the cluster say how long ago the last sync was, even after days.
// If the clock was set back, no status has a negative time.
func TestLastSync(t *testing.T) {
	for since, want := range map[time.Duration]string{
		49*time.Hour + 30*time.Minute: "2d1h ago", -time.Hour: "in the future",
	} {
		at := time.Now().Add(-since)
		cluster, text := NewClusterStatus(1), &strings.Builder{}
		cluster.Add(Answer[*agentapi.Summary]{Agent{Node: "n1"}, &agentapi.Summary{Ready: true, LastSync: at}, nil})
		err := errors.Join(PrintStatus(text, Text, &agentapi.Status{LastSync: at}),
			PrintClusterStatus(text, Text, cluster, false))
		if err != nil || strings.Count(text.String(), want) != 2 || strings.Contains(text.String(), "(-") {
			t.Errorf("%s: %v\n%s", since, err, text)
		}
	}
}

// TestTablesEscape: if an agent's texts have control characters, they don't reach the terminal.
func TestTablesEscape(t *testing.T) {
	const bad = "x\x1b[2J\u009b\r\u202ey"
	pods := []agentapi.PodStatus{
		{Pod: bad, ContainerID: bad, HostIf: bad, Ingress: bad, Egress: bad, Addresses: []string{bad}},
	}
	s := &agentapi.Status{
		Backend: bad, BackendReason: bad, IPTables: bad, Errors: []string{bad}, Policies: []string{bad},
		Audited:  []string{bad},
		Problems: []agentapi.Problem{{Object: bad, Field: bad, Message: bad}}, Pods: pods, LastSync: time.Now(),
		Classes:     []agentapi.Class{{Chain: bad, Policies: []string{bad}}, {Audited: []string{bad}}},
		Sets:        []agentapi.SetStatus{{Name: bad, Type: bad}},
		NodeRepairs: []agentapi.NodeRepair{{Kind: bad, Was: bad, Command: bad}},
	}
	b := &bytes.Buffer{}
	if err := errors.Join(PrintStatus(b, Text, s), PrintPods(b, Text, pods)); err != nil ||
		strings.ContainsAny(b.String(), "\x1b\u009b\r\u202e") {
		t.Errorf("%v: %q", err, b)
	}
}
