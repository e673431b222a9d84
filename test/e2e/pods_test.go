//go:build e2e

package e2e_test

import (
	"fmt"
	"strings"
	"testing"
	"time"
)

// TestProbesPass: if policies deny all ingress, kubelet's probes from the pod's own node still arrive.
func TestProbesPass(t *testing.T) {
	ns := namespace(t, "probes")
	apply(t, denyAll, ns)
	node := workers(t)[0].name
	start(t, pod{Namespace: ns, Name: "probed", Node: node, Labels: "app: probed", Image: httpEcho, More: `
    readinessProbe: {httpGet: {port: 80}, periodSeconds: 1}
    livenessProbe: {tcpSocket: {port: 80}, periodSeconds: 1, failureThreshold: 1}
    startupProbe: {tcpSocket: {port: 80}, periodSeconds: 1, failureThreshold: 20}`})
	if n := kubectl(t, "-n", ns, "get", "pod", "probed", "-o",
		"jsonpath={.status.containerStatuses[0].restartCount}"); n != "0" {
		t.Errorf("the container was started %s times again", n)
	}
	// A refused connection only means that the server hasn't started. A dropped packet would be a timeout.
	failed := kubectl(t, "-n", ns, "get", "events", "--field-selector", "reason=Unhealthy", "-o",
		"jsonpath={range .items[*]}{.message}{\"\\n\"}{end}")
	for line := range strings.Lines(failed) {
		if strings.HasPrefix(line, "Startup probe failed") && !strings.Contains(line, "connection refused") {
			t.Error(line)
		}
	}
}

// TestHostPort: the world and a pod on another node reach a pod's hostPort. If a policy denies all connections, neither
// of the two reaches it.
func TestHostPort(t *testing.T) {
	ns := namespace(t, "host-port")
	a, _, remote := apart(t)
	start(t,
		pod{
			Namespace: ns,
			Name:      "server",
			Node:      a.name,
			Labels:    "app: server",
			Image:     httpEcho,
			More:      "    ports: [{containerPort: 80, hostPort: 8080}]",
		},
		pod{
			Namespace: ns,
			Name:      "client",
			Node:      remote.name,
			Labels:    "app: client",
			Image:     probe,
			Command:   `[sleep, infinity]`,
		})
	from := map[string]func() error{
		"the world": func() error {
			_, err := run(t.Context(), "", scripts+"enter", "router", "curl", "-sS", "--max-time", "1",
				fmt.Sprintf("http://%s:8080/", a.address))
			return err
		},
		"a pod on another node": func() error {
			out, err := execIn(t.Context(), ns, "client", "probe", "connect", "--count=1", a.address.String()+":8080")
			if err == nil && !attempts(t, out)[0].OK {
				err = fmt.Errorf("%s", out)
			}
			return err
		},
	}
	for who, connects := range from {
		eventually(t, 10*time.Second, who+" reaches the port", connects)
	}
	apply(t, denyAll, ns)
	for who, connects := range from {
		eventually(t, 10*time.Second, who+" doesn't reach the port under a policy", func() error {
			if connects() == nil {
				return fmt.Errorf("it does")
			}
			return nil
		})
	}
}

// TestPodReachesItselfThroughItsService: an isolated pod still reaches itself through its Service. The answers need
// hairpin mode or masquerading.
func TestPodReachesItselfThroughItsService(t *testing.T) {
	ns := namespace(t, "ns-1") // the namespace in the manifest of the Service
	start(t, pod{Namespace: ns, Name: "http-echo", Node: workers(t)[0].name, Labels: "app: http-echo", Image: httpEcho})
	apply(t, service, nil)
	calls := func() error {
		_, err := execIn(t.Context(), ns, "http-echo", "timeout", "2", "wget", "-q", "-O",
			"-", "http://http-echo.ns-1.svc.cluster.local/")
		return err
	}
	eventually(t, 15*time.Second, "the pod reaches itself", calls)
	apply(t, `
kind: NetworkPolicy
apiVersion: networking.k8s.io/v1
metadata: {name: closed, namespace: ns-1}
spec:
  podSelector: {}
  policyTypes: [Ingress, Egress]
  egress: [{ports: [{port: 53, protocol: UDP}]}]
`, nil)
	eventually(t, 10*time.Second, "the pod reaches itself under a policy that lets only its questions to the DNS through",
		calls)
}

// TestPodsReachTheWorldAsTheirNode: a pod reaches a host outside of the cluster. The network between the nodes drops
// packets without a node's address as the source, so weir must masquerade the packets.
func TestPodsReachTheWorldAsTheirNode(t *testing.T) {
	ns := namespace(t, "world")
	start(t,
		pod{Namespace: ns, Name: "client", Node: workers(t)[0].name, Labels: "app: client", Image: busybox, Command: idle})
	eventually(t, 10*time.Second, "the pod reaches the host", func() error {
		out, err := execIn(t.Context(), ns, "client", "timeout", "3", "wget", "-q", "-O", "-", "http://203.0.113.1/")
		if err == nil && strings.TrimSpace(out) == "" {
			err = fmt.Errorf("the answer is empty")
		}
		return err
	})
}
