//go:build e2e

package e2e_test

import (
	"encoding/json"
	"fmt"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"
)

const labelled = `
kind: NetworkPolicy
apiVersion: networking.k8s.io/v1
metadata: {name: friends, namespace: {{.}}}
spec:
  podSelector: {matchLabels: {app: server}}
  ingress: [{from: [{podSelector: {matchLabels: {app: friend}}}]}]
`

// underLoad calls the function do while two clients open 200 connections per second. The test fails if a connection
// gets the wrong verdict. The clients connect by themselves, because `kubectl exec` needs the API server.
func underLoad(t *testing.T, ns string, duration time.Duration, do func()) {
	t.Helper()
	a, _, remote := apart(t)
	namespace(t, ns)
	start(t,
		listener(ns, "near", a),
		listener(ns, "far", remote))
	apply(t, labelled, ns)
	for _, n := range []node{a, remote} {
		eventually(t, 10*time.Second, "the policy is known on "+n.name, func() error {
			out, err := run(t.Context(), "", scripts+"enter", n.name, "weirctl", "status")
			if err == nil && !strings.Contains(out, ns+"/friends") {
				err = fmt.Errorf("%s", out)
			}
			return err
		})
	}
	clients := []string{"friend", "stranger"}
	for _, who := range clients {
		start(t, pod{
			Namespace: ns, Name: who, Node: a.name, Labels: "app: " + who, Image: probe, Once: true,
			// If a second SYN was answered, the first SYN was dropped, and the connection counts as wrong. The timeout of the
			// client friend is long, because the machine may be busy.
			Command: fmt.Sprintf(`[probe, connect, --every=20ms, --timeout=%s, --for=%s, "%s:9000", "%s:9000"]`,
				map[string]string{"friend": "10s", "stranger": "500ms"}[who], duration, podIP(t, ns, "near"), podIP(t, ns, "far")),
		})
	}
	do()
	for _, who := range clients {
		kubectl(t, "-n", ns, "wait", "pod/"+who, "--for=jsonpath={.status.phase}=Succeeded", "--timeout=300s")
		all := attempts(t, kubectl(t, "-n", ns, "logs", who))
		wrong := slices.DeleteFunc(slices.Clone(all),
			func(a attempt) bool { return a.OK == (who == "friend") && (a.Retransmitted == 0 || a.Late) })
		for _, a := range wrong[:min(3, len(wrong))] {
			t.Errorf("%s: %+v", who, a)
		}
		t.Logf("%s: %d connections, %d went the wrong way", who, len(all), len(wrong))
		if len(wrong) > 0 || len(all) < int(duration/(400*time.Millisecond)) { // a fortieth of the usual number
			t.Fail()
		}
	}
}

// TestRollingUpdate: if the DaemonSet's agents restart one by one, the rules stay in force.
func TestRollingUpdate(t *testing.T) {
	underLoad(t, "rolling-update", 40*time.Second, func() {
		kubectl(t, "-n", "kube-system", "rollout", "restart", "ds/weir")
		kubectl(t, "-n", "kube-system", "rollout", "status", "ds/weir", "--timeout=600s")
	})
}

// TestAPIServerAway: if the API server is down for ten seconds, agents still enforce their policies. Afterwards, they
// learn of new policies.
func TestAPIServerAway(t *testing.T) {
	controlPlanes := strings.Fields(kubectl(t, "get", "nodes", "-l", "node-role.kubernetes.io/control-plane", "-o",
		"jsonpath={.items[*].metadata.name}"))
	each := func(signal string) {
		for _, cp := range controlPlanes {
			enter(t, cp, "pkill", signal, "kube-apiserver")
		}
	}
	underLoad(t, "api-away", 20*time.Second, func() {
		each("-STOP")
		time.Sleep(10 * time.Second) // how long the API servers are down
		each("-CONT")
	})
	ns := namespace(t, "api-back")
	server := workers(t)[0].name
	start(t, pod{
		Namespace: ns,
		Name:      "server",
		Node:      server,
		Labels:    "app: server",
		Image:     probe,
		Command:   `[probe, listen, ":9000"]`,
	})
	apply(t, denyAll, ns)
	eventually(t, 10*time.Second, "the agent has heard of a new policy", func() error {
		out, err := run(t.Context(), "", scripts+"enter", server, "weirctl", "status")
		if err == nil && !strings.Contains(out, "api-back/deny-all-by-default") {
			err = fmt.Errorf("%s", out)
		}
		return err
	})
}

// TestFirstConnection: the first connection of a new pod to another node succeeds at once. If agents may not publish
// addresses (pods/status), some first connections are late.
func TestFirstConnection(t *testing.T) {
	const fresh = 50
	a, _, remote := apart(t)
	first := func(t *testing.T, ns string) (clean, late, failed int, slowest time.Duration) {
		namespace(t, ns)
		start(t, listener(ns, "server", remote))
		apply(t, labelled, ns)
		server := podIP(t, ns, "server") + ":9000"
		var manifests strings.Builder
		for i := range fresh {
			fmt.Fprintf(&manifests, `
apiVersion: v1
kind: Pod
metadata: {name: client-%d, namespace: %s, labels: {app: friend}}
spec:
  nodeName: %s
  restartPolicy: Never
  terminationGracePeriodSeconds: 0
  containers: [{name: main, image: %q, imagePullPolicy: Never, command: [probe, connect, --count=1, --timeout=8s, %q]}]
---`, i, ns, a.name, probe, server)
		}
		must(t, manifests.String(), scripts+"kubectl", "apply", "-f", "-")
		kubectl(t, "-n", ns, "wait", "pod", "-l", "app=friend", "--for=jsonpath={.status.phase}=Succeeded", "--timeout=240s")
		for i := range fresh {
			got := attempts(t, kubectl(t, "-n", ns, "logs", "client-"+strconv.Itoa(i)))
			slowest = max(slowest, got[0].Took)
			switch {
			case !got[0].OK:
				failed++
			case got[0].Retransmitted > 0 || got[0].Took > 500*time.Millisecond:
				late++
			default:
				clean++
			}
		}
		return clean, late, failed, slowest
	}
	clean, late, failed, slowest := first(t, "first-connection")
	t.Logf("first connections, with publishing: %d of %d at once, %d after a retransmitted SYN, %d not at all; "+
		"the slowest took %v", clean, fresh, late, failed, slowest)
	if clean != fresh {
		t.Fail()
	}
	rules := kubectl(t, "get", "clusterrole", "weir", "-o", "json")
	var role map[string]any
	if err := json.Unmarshal([]byte(rules), &role); err != nil {
		t.Fatal(err)
	}
	role["rules"] = slices.DeleteFunc(role["rules"].([]any),
		func(r any) bool { return strings.Contains(fmt.Sprint(r), "pods/status") })
	delete(role, "metadata")
	role["metadata"] = map[string]any{"name": "weir"}
	without, err := json.Marshal(role)
	if err != nil {
		t.Fatal(err)
	}
	must(t, string(without), scripts+"kubectl", "replace", "-f", "-")
	defer must(t, "", scripts+"kubectl", "apply", "-f", "../../conf/weir.yaml")
	clean, late, failed, slowest = first(t, "first-connection-unpublished")
	t.Logf("first connections, without: %d of %d at once, %d after a retransmitted SYN, %d not at all; "+
		"the slowest took %v", clean, fresh, late, failed, slowest)
	if clean == fresh {
		t.Error("nothing was late, so the test can't tell whether publishing works")
	}
}
