package podcheck

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/http"
	"strings"
	"sync"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	weirctl "github.com/weir-net/weir/plugins/weirctl/client"
	"github.com/weir-net/weir/plugins/weirctl/probe"
)

var quickly = Times{
	Poll: time.Millisecond, Alive: 20 * time.Millisecond, Starts: 200 * time.Millisecond, Applies: 100 * time.Millisecond,
	Reach: time.Second, Denied: time.Second, Removes: time.Minute,
}

func (f *fake) check(t *testing.T) *Check {
	t.Helper()
	return &Check{
		Cluster: f.start(t), MaxNodes: 10, Parallel: 3, World: "192.0.2.200:443", Ends: time.Minute, Times: quickly,
		Tell: func(Line) {},
	}
}

func (f *fake) leftNamespaces() (all []string) {
	f.mu.Lock()
	defer f.mu.Unlock()
	for p := range f.objects {
		if name, ok := strings.CutPrefix(p, "/api/v1/namespaces/"); ok && !strings.HasPrefix(name, "kube-system/") {
			all = append(all, name)
		}
	}
	return all
}

// TestHealthy: if a cluster is healthy, every check is ok and nothing is left. With one node, the check across nodes
// is skipped.
func TestHealthy(t *testing.T) {
	for _, nodes := range []int{1, 3} {
		f := newFake(nodes)
		f.starts = func(p *corev1.Pod) {
			s := p.Spec.Containers[0].SecurityContext
			if *s.AllowPrivilegeEscalation || s.Capabilities.Drop[0] != "ALL" || !*p.Spec.SecurityContext.RunAsNonRoot ||
				p.Spec.SecurityContext.SeccompProfile.Type != "RuntimeDefault" ||
				p.Spec.Containers[0].Image != "weir:"+p.Spec.NodeName {
				t.Errorf("%+v", p)
			}
		}
		report, err := f.check(t).Run(t.Context())
		if err != nil || report.Broken() != "" || len(report.Nodes) != nodes {
			t.Fatalf("%v %+v", err, report)
		}
		for i, want := range []Name{
			Nodes, Start, SameNode, Across, Large, Service, DNS, NodePort, World, Deny, Allow, Reopen, DenyEgress, CleanUp,
		} {
			l := report.Lines[i]
			state := OK
			if want == Across && nodes == 1 {
				state = Skipped
			}
			if l.Check != want || l.State != state {
				t.Errorf("line %d: %+v, want %s %s", i, l, want, state)
			}
		}
		if left := f.leftNamespaces(); len(left) > 0 {
			t.Errorf("%q", left)
		}
	}
}

// TestBroken: if a connection is broken, the report names the check that fails, and the node.
func TestBroken(t *testing.T) {
	v6 := func(p probe.Probe) bool { return strings.HasPrefix(p.To, "[") }
	for name, tc := range map[string]struct {
		change func(*fake)
		want   string // the beginning of Report.Broken
	}{
		"a node's tunnel": {func(f *fake) {
			f.broken = func(_ probe.Probe, from, to int) string {
				return map[bool]string{true: "no answer"}[to >= 0 && from != to && (from == 1 || to == 1)]
			}
		}, "across nodes: from and to n1: no answer; does the network"},
		"all tunnels": {func(f *fake) {
			f.broken = func(_ probe.Probe, from, to int) string {
				return map[bool]string{true: "no answer"}[to >= 0 && from != to]
			}
		}, "across nodes: everywhere: no answer; does the network"},
		"IPv6 to a node": {func(f *fake) {
			f.broken = func(p probe.Probe, from, to int) string {
				return map[bool]string{true: "no route to host"}[to == 2 && from != to && v6(p)]
			}
		}, "across nodes: IPv6 to n2: no route to host"},
		"large packets": {func(f *fake) {
			f.broken = func(p probe.Probe, from, to int) string {
				return map[bool]string{true: "no answer"}[p.Kind == probe.Large && from != to]
			}
		}, "large packets: everywhere: no answer; the network between the nodes"},
		"a node's proxy": {func(f *fake) {
			f.broken = func(p probe.Probe, from, _ int) string {
				return map[bool]string{true: "connection refused"}[from == 2 && strings.HasSuffix(p.To, ":80")]
			}
		}, "service: from n2: connection refused; kube-proxy"},
		"DNS": {func(f *fake) {
			f.broken = func(p probe.Probe, _, _ int) string {
				return map[bool]string{true: "no answer from the DNS server 10.96.0.10:53"}[p.Kind == probe.Resolve]
			}
		}, "dns: everywhere: no answer from the DNS server"},
		"a node's nodePort": {func(f *fake) {
			f.broken = func(p probe.Probe, _, _ int) string {
				to, _, _ := net.SplitHostPort(p.To)
				return map[bool]string{true: "no answer"}[to == "192.0.2.1" || to == "2001:db8::1"]
			}
		}, "node port: to n1: no answer; kube-proxy"},
		"the world": {func(f *fake) {
			f.broken = func(p probe.Probe, _, _ int) string { return map[bool]string{true: "no answer"}[p.Kind == probe.Open] }
		}, "world: everywhere: no answer"},
		"a node enforces nothing": {func(f *fake) {
			f.ignores = func(node int) bool { return node == 1 }
		}, "deny ingress: to n1: a connection succeeds that a policy denies (further broken checks: 2)"},
		"a pod doesn't start": {func(f *fake) {
			f.starts = func(p *corev1.Pod) {
				if p.Spec.NodeName == "n0" {
					p.UID, p.Status = "uid-pod", corev1.PodStatus{}
				}
			}
		}, "pods start: on n0: FailedCreatePodSandBox: no address is left"},
		"an agent is away": {func(f *fake) {
			delete(f.objects, "/api/v1/namespaces/kube-system/pods/weir-n2")
		}, "nodes: n2 is left out: no pod of weir runs on this node"},
	} {
		t.Run(name, func(t *testing.T) {
			f := newFake(3)
			tc.change(f)
			report, err := f.check(t).Run(t.Context())
			if err != nil || !strings.HasPrefix(report.Broken(), tc.want) {
				t.Errorf("%v %q, want %q\n%+v", err, report.Broken(), tc.want, report)
			}
			if left := f.leftNamespaces(); len(left) > 0 {
				t.Errorf("%q", left)
			}
		})
	}
}

// TestOneBreakOneLine: if a connection is broken, the report doesn't call checks broken that depend on this
// connection.
func TestOneBreakOneLine(t *testing.T) {
	f := newFake(3)
	f.broken = func(_ probe.Probe, from, to int) string {
		return map[bool]string{true: "no answer"}[to >= 0 && from != to && (from == 1 || to == 1) || to < 0 && from == 1]
	}
	c := f.check(t)
	c.World = ""
	report, err := c.Run(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	broken := 0
	for _, l := range report.Lines {
		if l.State == Broken {
			broken++
		}
	}
	if broken != 1 {
		t.Errorf("%+v", report)
	}
}

// TestInterrupted: if a check is interrupted, or may not make an object, it removes its namespace.
func TestInterrupted(t *testing.T) {
	interrupted := errors.New("interrupted")
	for _, when := range []string{"pods", "exec", "policies", "forbidden"} {
		t.Run(when, func(t *testing.T) {
			f := newFake(2)
			ctx, stop := context.WithCancelCause(t.Context())
			var once sync.Once
			end := func() { once.Do(func() { stop(interrupted) }) }
			want := interrupted.Error()
			switch when {
			case "pods":
				f.starts = func(*corev1.Pod) { end() }
			case "exec":
				f.runs = func(int) { end() }
			case "policies":
				f.forbids = func(r *http.Request) bool {
					if strings.HasSuffix(r.URL.Path, "/networkpolicies") {
						end()
					}
					return false
				}
			case "forbidden":
				want = "the API server refuses to create services"
				f.forbids = func(r *http.Request) bool { return strings.HasSuffix(r.URL.Path, "/services") }
			}
			_, err := f.check(t).Run(ctx)
			if err == nil || !strings.Contains(err.Error(), want) || !strings.Contains(err.Error(), "is removed") {
				t.Error(err)
			}
			if left := f.leftNamespaces(); len(left) > 0 {
				t.Errorf("%q", left)
			}
		})
	}
}

// TestLeftovers: if a check was killed, the next check removes the namespace of the killed check. Namespaces of running
// checks and of other programs stay.
func TestLeftovers(t *testing.T) {
	f := newFake(1)
	for _, name := range []string{"killed", "running", "foreign"} {
		n := namespaceObject(name)
		if name == "foreign" {
			n.Labels = nil
		}
		f.objects["/api/v1/namespaces/"+name] = n
	}
	requests := 0
	f.forbids = func(*http.Request) bool { // the running check gives a sign of life before each request of this check
		requests++
		running := f.objects["/api/v1/namespaces/running"].(metav1.Object)
		running.SetAnnotations(map[string]string{aliveAnnotation: fmt.Sprint(requests)})
		return false
	}
	report, err := f.check(t).Run(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	last := report.Lines[len(report.Lines)-1]
	if !strings.HasSuffix(last.Detail, "so are those that earlier checks have left: killed") {
		t.Errorf("%+v", last)
	}
	if left := f.leftNamespaces(); len(left) != 2 {
		t.Errorf("%q", left)
	}
}

// TestRefused: if the user may not make a namespace, or if World or a node's name is wrong, Run returns an error at
// once.
func TestRefused(t *testing.T) {
	f := newFake(1)
	f.forbids = func(r *http.Request) bool {
		return r.Method == http.MethodDelete || r.Method == http.MethodPost && strings.HasSuffix(r.URL.Path, "/namespaces")
	}
	_, err := f.check(t).Run(t.Context())
	if err == nil || !strings.Contains(err.Error(), "kubectl auth can-i create namespaces") {
		t.Error(err)
	}
	c := f.check(t)
	c.World = "example.com"
	if _, err := c.Run(t.Context()); err == nil || !strings.Contains(err.Error(), "HOST:PORT") {
		t.Error(err)
	}
	c = f.check(t)
	c.Nodes = []string{"n7"}
	if code, text := weirctl.Code(func() error { _, err := c.Run(t.Context()); return err }()); code != weirctl.ExitUsage {
		t.Errorf("%d, %s", code, text)
	}
}
