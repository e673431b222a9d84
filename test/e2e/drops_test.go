//go:build e2e

package e2e_test

import (
	"context"
	"encoding/json"
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/rest"

	"github.com/weir-net/weir/agentapi"
	"github.com/weir-net/weir/endpoint"
	"github.com/weir-net/weir/source/kube"
)

// denied starts a server and a client on two nodes, with policies that deny the client. The function wget tries to
// connect once.
func denied(t *testing.T, name string) (ns string, client, server node, wget func()) {
	t.Helper()
	client, _, server = apart(t)
	ns = namespace(t, name)
	start(t,
		listener(ns, "server", server),
		pod{Namespace: ns, Name: "client", Node: client.name, Labels: "app: client", Image: busybox, Command: idle})
	apply(t, twoDenies, ns)
	for _, p := range []string{"deny-all", "only-friends"} {
		weir(t, 0, "wait", "policy", ns+"/"+p)
	}
	address := "http://" + podIP(t, ns, "server") + ":9000/"
	return ns, client, server, func() {
		t.Helper()
		if out, err := execIn(t.Context(), ns, "client", "timeout", "1", "wget", "-O-", address); err == nil {
			t.Fatalf("the denied wget succeeds: %s", out)
		}
	}
}

// restartAgent deletes the agent's pod on the node, and waits until another agent is ready.
func restartAgent(t *testing.T, node string) {
	t.Helper()
	args := []string{
		"-n", "kube-system", "get", "pods", "-l", "k8s-app=weir", "--field-selector", "spec.nodeName=" + node, "-o",
		`jsonpath={range .items[*]}{.metadata.name} {.status.containerStatuses[0].ready}{end}`,
	}
	was, _, _ := strings.Cut(kubectl(t, args...), " ")
	kubectl(t, "-n", "kube-system", "delete", "pod", was)
	eventually(t, time.Minute, "another agent runs on "+node, func() error {
		if now := kubectl(t, args...); strings.HasPrefix(now, was+" ") || !strings.HasSuffix(now, " true") {
			return fmt.Errorf("%s", now)
		}
		return nil
	})
}

type podEvent struct {
	Note      string
	Regarding struct{ Kind, Name string }
	Series    struct{ Count int }
}

func dropEvents(t *testing.T, ns string) (all []podEvent) {
	t.Helper()
	var list struct{ Items []podEvent }
	out := kubectl(t, "-n", ns, "get", "events.events.k8s.io", "--field-selector", "reason=PacketsDropped", "-o", "json")
	if err := json.Unmarshal([]byte(out), &list); err != nil {
		t.Fatal(err)
	}
	return list.Items
}

// TestDropEvents: if an agent with --drop-events drops many connections to a pod, the pod gets one event. Further drops
// increase the event's count.
func TestDropEvents(t *testing.T) {
	ns, _, server, wget := denied(t, "drop-events")
	patch := func(ctx context.Context, strategy, change string) {
		if _, err := run(ctx, "", scripts+"kubectl", "-n", "kube-system", "patch", "daemonset", "weir", "--type=json", "-p",
			`[{"op": "replace", "path": "/spec/updateStrategy", "value": `+strategy+`}, `+change+`]`); err != nil {
			t.Fatal(err)
		}
	}
	const command = "/spec/template/spec/containers/0/command/"
	flags := strings.Count(kubectl(t, "-n", "kube-system", "get", "daemonset", "weir", "-o",
		`jsonpath={range .spec.template.spec.containers[0].command[*]}{@}{"\n"}{end}`), "\n")
	patch(t.Context(), `{"type": "OnDelete"}`, `{"op": "add", "path": "`+command+`-", "value": "--drop-events"}`)
	t.Cleanup(func() {
		ctx, cancel := context.WithTimeout(context.WithoutCancel(t.Context()), 10*time.Minute)
		defer cancel()
		patch(ctx, `{"type": "RollingUpdate", "rollingUpdate": {"maxUnavailable": 1}}`,
			fmt.Sprintf(`{"op": "remove", "path": "%s%d"}`, command, flags))
		if _, err := run(ctx, "", scripts+"kubectl", "-n", "kube-system", "rollout", "status", "ds/weir"); err != nil {
			t.Error(err)
		}
	})
	restartAgent(t, server.name)
	for range 5 {
		wget()
	}
	eventually(t, 20*time.Second, "the event is there", func() error {
		if len(dropEvents(t, ns)) == 0 {
			wget()
			return fmt.Errorf("it isn't")
		}
		return nil
	})
	wget()
	events := dropEvents(t, ns)
	said := kubectl(t, "-n", ns, "describe", "pod", "server")
	for _, want := range []string{
		"PacketsDropped", "dropped TCP from " + ns + "/client", ns + "/deny-all", ns + "/only-friends",
	} {
		if !strings.Contains(said, want) {
			t.Errorf("%q is not in kubectl describe:\n%s", want, said)
		}
	}
	if e := events[0]; len(events) != 1 || e.Regarding.Kind != "Pod" || e.Regarding.Name != "server" {
		t.Errorf("%+v", events)
	}

	config := &rest.Config{Host: "http://localhost", Dial: newAPI(t).dial, Impersonate: rest.ImpersonationConfig{
		UserName: "system:serviceaccount:kube-system:weir",
		Groups:   []string{"system:serviceaccounts", "system:serviceaccounts:kube-system", "system:authenticated"},
	}}
	source := &kube.Source{Client: kubernetes.NewForConfigOrDie(config), Node: server.name}
	later := agentapi.PodEvent{
		Key: "k", Pod: endpoint.Pod{Namespace: ns, Name: "client", UID: kubectl(t, "-n", ns, "get", "pod", "client", "-o",
			"jsonpath={.metadata.uid}")}, Reason: "PacketsDropped", Note: "dropped", Count: 1, First: time.Now(),
		Last: time.Now(),
	}
	for _, count := range []uint64{1, 22, 44} {
		later.Count = count
		if err := source.AnnounceOnPod(t.Context(), later); err != nil {
			t.Fatal(err)
		}
	}
	all := dropEvents(t, ns)
	if !slices.ContainsFunc(all, func(e podEvent) bool { return e.Regarding.Name == "client" && e.Series.Count == 44 }) ||
		len(all) != 2 {
		t.Errorf("%+v", all)
	}
}

// TestDropsGoOn: if a node's agent restarts, "kubectl weir drops -f" reports the restart. Then it shows the packets
// that are dropped while the next agent runs.
func TestDropsGoOn(t *testing.T) {
	ns, _, server, wget := denied(t, "drops-go-on")
	drops, said := followDrops(t, "-n", ns)
	eventually(t, 5*time.Second, "a drop shows", func() error {
		if len(drops()) == 0 {
			wget() // at each try, because a busy machine may end wget before it sends a packet
			return fmt.Errorf("none")
		}
		return nil
	})
	restartAgent(t, server.name)
	eventually(t, time.Minute, "the command says that the agent has restarted", func() error {
		lines := strings.Join(said(), "\n")
		if !strings.Contains(lines, server.name+": sends drops again") || !strings.Contains(lines, "; trying again") {
			return fmt.Errorf("%s", lines)
		}
		return nil
	})
	before, began := len(drops()), time.Now()
	eventually(t, 5*time.Second, "a drop of the next agent shows", func() error {
		for _, d := range drops()[before:] {
			if d.Source.Pod == ns+"/client" && d.Destination.Pod == ns+"/server" && len(d.Policies) == 2 {
				t.Logf("shown %d ms after the first wget began; the command said:\n%s", d.came.Sub(began).Milliseconds(),
					strings.Join(said(), "\n"))
				return nil
			}
		}
		wget()
		return fmt.Errorf("none")
	})
}

// TestExplainWithoutANode: if the server's node is down, kubectl weir explain still prints the policies' verdict, and
// the verdict of the other node's kernel.
func TestExplainWithoutANode(t *testing.T) {
	ns, client, server, _ := denied(t, "explain-away")
	must(t, "", scripts+"node-down", server.name)
	up := func(ctx context.Context) {
		if _, err := run(ctx, "", scripts+"node-up", server.name); err != nil {
			t.Error(err)
		}
		if _, err := run(ctx, "", scripts+"kubectl", "wait", "--for=condition=Ready", "node/"+server.name,
			"--timeout=600s"); err != nil {
			t.Error(err)
		}
	}
	t.Cleanup(func() { up(context.WithoutCancel(t.Context())) })
	for _, known := range []bool{false, true} { // before and after the API server notices that the node is down
		if known {
			kubectl(t, "wait", "--for=condition=Ready=Unknown", "node/"+server.name, "--timeout=600s")
		}
		began := time.Now()
		text, _ := weir(t, 3, "explain", ns+"/client", ns+"/server:9000")
		took := time.Since(began)
		t.Logf("after %d ms:\n%s", took.Milliseconds(), text)
		for _, want := range []string{
			ns + "/deny-all", ns + "/only-friends", "kernel of " + client.name + ": allowed",
			"kernel of " + server.name + ": unknown, ",
		} {
			if !strings.Contains(text, want) {
				t.Errorf("%q is missing", want)
			}
		}
		if known && !strings.Contains(text, "unknown, the node is not ready") || took > 2*time.Minute {
			t.Errorf("after %v", took)
		}
	}
	_, errs := weir(t, 1, "drops", "-n", ns)
	if !strings.Contains(errs, server.name+": the node is not ready") {
		t.Errorf("kubectl weir drops doesn't name the node: %s", errs)
	}
}
