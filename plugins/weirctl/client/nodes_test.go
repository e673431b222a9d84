package client

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/rest"

	"github.com/weir-net/weir/agentapi"
	"github.com/weir-net/weir/test/execserver"
)

// fakeCluster is an API server with nodes and weir's pods. The pod of the node n is weir-n.
type fakeCluster struct {
	nodes  []corev1.Node
	pods   []corev1.Pod
	handle func(node string, w http.ResponseWriter, r *http.Request)
	fails  func(node string) string
	forbid bool
	guard  sync.Locker  // guards nodes and pods; nil if they never change
	now    atomic.Int32 // the number of commands that run at present
}

func (f *fakeCluster) add(name string) {
	ready := corev1.NodeCondition{Type: corev1.NodeReady, Status: corev1.ConditionTrue}
	f.nodes = append(f.nodes, corev1.Node{
		ObjectMeta: metav1.ObjectMeta{Name: name}, Status: corev1.NodeStatus{Conditions: []corev1.NodeCondition{ready}},
	})
	f.pods = append(f.pods, corev1.Pod{
		ObjectMeta: metav1.ObjectMeta{Name: "weir-" + name, Namespace: "kube-system", CreationTimestamp: metav1.Now()},
		Spec:       corev1.PodSpec{NodeName: name},
		Status: corev1.PodStatus{Phase: corev1.PodRunning, ContainerStatuses: []corev1.ContainerStatus{{
			Name: agentContainer, State: corev1.ContainerState{Running: &corev1.ContainerStateRunning{}},
		}}},
	})
}

func (f *fakeCluster) start(t *testing.T) *Cluster {
	t.Helper()
	server := httptest.NewServer(f)
	t.Cleanup(server.Close)
	api, err := NewAPI(&rest.Config{Host: server.URL})
	if err != nil {
		t.Fatal(err)
	}
	return &Cluster{api, "kube-system"}
}

func (f *fakeCluster) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	if f.guard != nil && !strings.HasSuffix(r.URL.Path, "/exec") {
		f.guard.Lock()
		defer f.guard.Unlock()
	}
	answer := func(status int, v any) {
		w.Header().Set("Content-Type", "application/json")
		w.WriteHeader(status)
		_ = json.NewEncoder(w).Encode(v)
	}
	switch {
	case r.URL.Path == "/api/v1/nodes":
		answer(http.StatusOK, corev1.NodeList{TypeMeta: metav1.TypeMeta{Kind: "NodeList", APIVersion: "v1"}, Items: f.nodes})
	case r.URL.Path == "/api/v1/namespaces/kube-system/pods":
		if r.URL.Query().Get("labelSelector") != "k8s-app=weir" {
			answer(http.StatusBadRequest, metav1.Status{})
			return
		}
		answer(http.StatusOK, corev1.PodList{TypeMeta: metav1.TypeMeta{Kind: "PodList", APIVersion: "v1"}, Items: f.pods})
	case f.forbid && strings.HasSuffix(r.URL.Path, "/exec"):
		answer(http.StatusForbidden, metav1.Status{
			TypeMeta: metav1.TypeMeta{Kind: "Status", APIVersion: "v1"}, Status: "Failure", Message: "no",
			Reason: metav1.StatusReasonForbidden, Code: http.StatusForbidden,
		})
	case strings.HasSuffix(r.URL.Path, "/exec"):
		f.exec(w, r)
	default:
		http.NotFound(w, r)
	}
}

func (f *fakeCluster) exec(w http.ResponseWriter, r *http.Request) {
	f.now.Add(1)
	defer f.now.Add(-1)
	node := strings.TrimPrefix(strings.Split(r.URL.Path, "/")[6], "weir-")
	execserver.Serve(w, r, func(
		command []string, stdin io.Reader, stdout, stderr io.Writer, gone <-chan struct{},
	) error {
		text := ""
		if f.fails != nil {
			text = f.fails(node)
		}
		if !slices.Equal(command, []string{"weirctl", "connect"}) {
			text = fmt.Sprintf("the command is %q", command)
		}
		if text != "" {
			_, _ = io.WriteString(stderr, text)
			return errors.New("command terminated with exit code 1")
		}
		request, err := http.ReadRequest(bufio.NewReader(stdin))
		if err != nil {
			return err
		}
		ctx, cancel := context.WithCancel(context.Background())
		defer cancel()
		go func() {
			select {
			case <-gone:
				cancel()
			case <-ctx.Done():
			}
		}()
		f.handle(node, &streamWriter{out: stdout, header: http.Header{}}, request.WithContext(ctx))
		return nil
	})
}

type streamWriter struct {
	out    io.Writer
	header http.Header
	begun  bool
}

func (w *streamWriter) Header() http.Header { return w.header }

func (w *streamWriter) WriteHeader(status int) {
	w.begun = true
	_, _ = fmt.Fprintf(w.out, "HTTP/1.1 %d %s\r\nConnection: close\r\n\r\n", status, http.StatusText(status))
}

func (w *streamWriter) Write(p []byte) (int, error) {
	if !w.begun {
		w.WriteHeader(http.StatusOK)
	}
	return w.out.Write(p)
}

func answerJSON(v any) func(string, http.ResponseWriter, *http.Request) {
	return func(_ string, w http.ResponseWriter, _ *http.Request) { _ = json.NewEncoder(w).Encode(v) }
}

func collect(
	ctx context.Context, t *testing.T, c *Cluster, o AskOptions,
) (map[string]Answer[agentapi.Summary], error) {
	t.Helper()
	agents, err := c.Agents(ctx)
	if err != nil {
		t.Fatal(err)
	}
	all := map[string]Answer[agentapi.Summary]{}
	err = AskAll(ctx, agents, o, func(ctx context.Context, of Agent) (s agentapi.Summary, err error) {
		return s, c.Ask(ctx, of, agentapi.SummaryPath, nil, &s)
	}, func(a Answer[agentapi.Summary]) { all[a.Node] = a })
	return all, err
}

// TestAskAll: AskAll asks exactly as many nodes at the same time as AskOptions.Parallel allows.
func TestAskAll(t *testing.T) {
	const allowed = 5
	f := &fakeCluster{}
	var mu sync.Mutex
	var once sync.Once
	now, most, full := 0, 0, make(chan struct{})
	for i := range 40 {
		f.add(fmt.Sprintf("n%d", i))
	}
	f.handle = func(node string, w http.ResponseWriter, r *http.Request) {
		if r.Method != http.MethodGet || r.URL.Path != agentapi.SummaryPath {
			http.NotFound(w, r)
			return
		}
		mu.Lock()
		now++
		if most = max(most, now); now == allowed {
			once.Do(func() { close(full) })
		}
		mu.Unlock()
		select {
		case <-full:
		case <-r.Context().Done():
		}
		time.Sleep(20 * time.Millisecond) // gives AskAll time to ask one node too many
		mu.Lock()
		now-- // before the answer, because the next question may come right after it
		mu.Unlock()
		_ = json.NewEncoder(w).Encode(agentapi.Summary{Node: node, Ready: true})
	}
	all, err := collect(t.Context(), t, f.start(t), AskOptions{Parallel: allowed, Within: time.Minute})
	if err != nil || len(all) != 40 {
		t.Fatalf("%d answers, %v", len(all), err)
	}
	for node, a := range all {
		if a.Err != nil || a.Value.Node != node {
			t.Errorf("%s: %+v", node, a)
		}
	}
	if most != allowed {
		t.Errorf("%d commands at the same time, want %d", most, allowed)
	}
}

// TestAskAllPartly: a node that can't answer has one line with the reason, and the answers of other nodes still come.
func TestAskAllPartly(t *testing.T) {
	f := &fakeCluster{}
	for _, name := range []string{"well", "crashing", "bare", "away", "old", "dead", "windows", "refusing"} {
		f.add(name)
	}
	waiting := &corev1.ContainerStateWaiting{Reason: "CrashLoopBackOff", Message: "back-off 5m0s"}
	f.pods[1].Status.ContainerStatuses[0].State = corev1.ContainerState{Waiting: waiting}
	f.pods[2].Spec.NodeName = "well" // an older pod of the node well, which also has a newer one
	f.pods[2].CreationTimestamp = metav1.NewTime(time.Now().Add(-time.Hour))
	f.nodes[3].Status.Conditions[0] = corev1.NodeCondition{
		Type: corev1.NodeReady, Status: corev1.ConditionUnknown, Message: "Kubelet stopped posting node status.",
	}
	f.nodes[6].Labels = map[string]string{corev1.LabelOSStable: "windows"}
	f.pods[6].Spec.NodeName = "well"
	f.pods[6].DeletionTimestamp = &metav1.Time{Time: time.Now()}
	f.fails = func(node string) string {
		return map[string]string{
			"away": "error dialing backend: no route to host", "old": `weirctl: unknown command "connect" for "weirctl"`,
			"dead": "weirctl: no agent answers on /run/weir/agent.sock: connection refused",
		}[node]
	}
	f.handle = func(node string, w http.ResponseWriter, r *http.Request) {
		if node == "refusing" {
			w.WriteHeader(http.StatusServiceUnavailable)
			_, _ = io.WriteString(w, `{"error": "not yet"}`)
			return
		}
		answerJSON(agentapi.Summary{Node: node})(node, w, r)
	}
	all, err := collect(t.Context(), t, f.start(t), AskOptions{Parallel: 3, Within: time.Minute})
	if err != nil {
		t.Fatal(err)
	}
	for node, want := range map[string]string{
		"well":     "",
		"crashing": "the container weir-agent of weir-crashing doesn't run: CrashLoopBackOff: back-off 5m0s",
		"bare":     "no pod of weir runs on this node",
		"away":     "the node is not ready: Kubelet stopped posting node status.",
		"old":      "weir on this node is older than weirctl and doesn't know this command: update it",
		"dead":     "no agent answers on /run/weir/agent.sock: connection refused",
		"refusing": "not yet",
	} {
		got, asked := all[node]
		if text := fmt.Sprint(got.Err); !asked || (want == "") != (got.Err == nil) || got.Err != nil && text != want {
			t.Errorf("%s: %s, want %q", node, text, want)
		}
		delete(all, node)
	}
	if len(all) > 0 {
		t.Errorf("%v", all)
	}
	if all, err := collect(t.Context(), t, f.start(t), AskOptions{Parallel: 3, Within: time.Minute}); err != nil ||
		all["well"].Value.Node != "well" {
		t.Errorf("another pod than the newest that runs was asked: %+v", all["well"])
	}
}

// TestAskAllForbidden: if the user may not run commands, AskAll returns one error that says so, and no answers.
func TestAskAllForbidden(t *testing.T) {
	f := &fakeCluster{forbid: true}
	for i := range 40 {
		f.add(fmt.Sprintf("n%d", i))
	}
	all, err := collect(t.Context(), t, f.start(t), AskOptions{Parallel: 1, Within: time.Minute})
	want := "you may not run commands in pods of kube-system, which this command needs: ask an administrator (check " +
		"with: kubectl auth can-i create pods --subresource=exec -n kube-system)"
	if err == nil || err.Error() != want || len(all) > 0 {
		t.Errorf("%d answers, %v", len(all), err)
	}
}

// TestAskAllEnds: if a node hangs, its answer is an error after the time Within. If ctx ends, AskAll returns the cause.
func TestAskAllEnds(t *testing.T) {
	f := &fakeCluster{}
	f.add("hangs")
	f.add("well")
	f.handle = func(node string, w http.ResponseWriter, r *http.Request) {
		if node == "hangs" {
			<-r.Context().Done()
			return
		}
		answerJSON(agentapi.Summary{Node: node})(node, w, r)
	}
	all, err := collect(t.Context(), t, f.start(t), AskOptions{Parallel: 2, Within: 5 * time.Second})
	if err != nil || all["well"].Err != nil || fmt.Sprint(all["hangs"].Err) != "no answer within 5s" {
		t.Errorf("%v, %+v", err, all)
	}
	ctx, cancel := context.WithCancelCause(t.Context())
	interrupted := errors.New("interrupted")
	var once sync.Once
	f = &fakeCluster{handle: func(_ string, _ http.ResponseWriter, r *http.Request) {
		once.Do(func() { cancel(interrupted) })
		<-r.Context().Done()
	}}
	f.add("a")
	f.add("b")
	all, err = collect(ctx, t, f.start(t), AskOptions{Parallel: 1, Within: time.Minute})
	if !errors.Is(err, interrupted) || len(all) > 0 {
		t.Errorf("%v, %+v", err, all)
	}
}

// TestClusterStatus: the worst nodes come first. If there are many healthy nodes, the text lists only some of them, and
// counts the rest.
func TestClusterStatus(t *testing.T) {
	s := NewClusterStatus(33)
	add := func(node string, sum *agentapi.Summary, err error) {
		s.Add(Answer[*agentapi.Summary]{Agent{Node: node}, sum, err})
	}
	for i := range 29 {
		add(fmt.Sprintf("n%02d", i), &agentapi.Summary{Ready: true, Pods: 3, Isolated: 1}, nil)
	}
	add("p", &agentapi.Summary{Ready: true, Closed: 1, Problems: 2, FirstProblems: []agentapi.Problem{
		{Object: "Pod a/b", Field: "f", Message: "m\x1b[2J"},
	}}, nil)
	add("f", &agentapi.Summary{Ready: true, Errors: []string{"API server: away"}}, nil)
	add("r", &agentapi.Summary{Errors: []string{"kernel: no room"}}, nil)
	add("a", nil, errors.New("no pod of weir runs on this node"))
	var out strings.Builder
	if err := PrintClusterStatus(&out, Text, s, false); err != nil {
		t.Fatal(err)
	}
	lines := strings.Split(strings.TrimSpace(out.String()), "\n")
	want := "33 nodes: 1 no answer, 1 not ready, 1 faulty, 1 problems, 29 ready; 87 pods: 29 isolated, 1 closed"
	if lines[0] != want || s.Bad() != 2 || len(lines) != 3+4+maxWell+1 {
		t.Errorf("%d bad, %d lines, %s", s.Bad(), len(lines), lines[0])
	}
	for i, want := range []string{
		"no pod of weir runs on this node", "kernel: no room", "API server: away",
		"1 closed pods; 2 problems, such as Pod a/b: f: m?[2J",
	} {
		if !strings.HasSuffix(lines[3+i], want) {
			t.Errorf("line %d: %s", i, lines[3+i])
		}
	}
	if last := lines[len(lines)-1]; last != "and 9 more that are ready (--all lists them)" {
		t.Error(last)
	}
}
