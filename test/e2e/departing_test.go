//go:build e2e

package e2e_test

import (
	"context"
	"fmt"
	"strings"
	"testing"
	"time"
)

// TestANamespaceThatIsBeingDeleted: while a namespace is being deleted, its policies stay in force until its pods have
// ended, even if the policies are deleted first (CVE-2024-7598).
func TestANamespaceThatIsBeingDeleted(t *testing.T) {
	ns, others := namespace(t, "departing"), namespace(t, "departing-client")
	on := workers(t)[0].name
	start(t,
		// This pod takes long to end, as a database does.
		pod{
			Namespace: ns, Name: "server", Node: on, Labels: "app: server", Image: probe, Grace: 300,
			Command: `[sh, -c, "trap '' TERM; probe listen :9000 & until [ -e /tmp/end ]; do sleep 1; done"]`,
		},
		pod{Namespace: others, Name: "client", Node: on, Labels: "app: client", Image: probe, Command: idle})
	t.Cleanup(func() {
		if _, err := execIn(context.WithoutCancel(t.Context()), ns, "server", "touch", "/tmp/end"); err != nil {
			t.Error(err)
		}
	})
	to := podIP(t, ns, "server") + ":9000"
	connects := func() error {
		out, err := execIn(t.Context(), others, "client", "probe", "connect", "--count=1", "--timeout=500ms", to)
		if err == nil && !attempts(t, out)[0].OK {
			err = fmt.Errorf("%s", out)
		}
		return err
	}
	closed := func(when string) {
		t.Helper()
		for range 10 {
			if connects() == nil {
				t.Fatalf("%s: the client reaches the server, which a policy isolates", when)
			}
		}
	}
	eventually(t, 15*time.Second, "the client reaches the server", connects)
	apply(t, denyAll, ns)
	weir(t, 0, "wait", "policy", ns+"/deny-all-by-default")
	closed("the policy is in force")

	kubectl(t, "delete", "namespace", ns, "--wait=false")
	// Kubernetes before 1.33 may itself delete the policies before the pods. Later versions usually delete the pods first
	// (KEP-5080).
	kubectl(t, "-n", ns, "delete", "networkpolicies", "--all")
	running := func() {
		t.Helper()
		if phase := kubectl(t, "-n", ns, "get", "pod", "server", "-o", "jsonpath={.status.phase}"); phase != "Running" {
			t.Fatalf("the server is %s: the test tests nothing", phase)
		}
	}
	closed("the policy is deleted, the pod is not")
	running()

	agent := kubectl(t, "-n", "kube-system", "get", "pods", "-l", "k8s-app=weir", "--field-selector", "spec.nodeName="+on,
		"-o", "name")
	kubectl(t, "-n", "kube-system", "delete", strings.TrimSpace(agent), "--grace-period=0", "--force")
	closed("the agent is killed")
	kubectl(t, "-n", "kube-system", "rollout", "status", "ds/weir", "--timeout=300s")
	eventually(t, 15*time.Second, "the new agent says that policies are unknown", func() error {
		out, err := run(t.Context(), "", scripts+"enter", on, "weirctl", "status")
		if err == nil && !strings.Contains(out, "Namespace "+ns) {
			err = fmt.Errorf("%s", out)
		}
		return err
	})
	closed("a new agent runs")
	running()
}
