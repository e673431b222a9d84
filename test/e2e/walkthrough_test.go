//go:build e2e

package e2e_test

import (
	"fmt"
	"regexp"
	"strings"
	"testing"
	"time"
)

// TestWalkthrough follows a workshop's chapter on network policies. After the namespace is deleted, nothing of it is
// left on the nodes.
func TestWalkthrough(t *testing.T) {
	kubectl(t, "-n", "kube-system", "rollout", "status", "ds/weir", "--timeout=600s")
	atEachDistance(t, walkthrough)
}

const service = `
apiVersion: v1
kind: Service
metadata: {name: http-echo, namespace: ns-1}
spec:
  selector: {app: http-echo}
  ports: [{port: 80}]
`

const denyAll = `
kind: NetworkPolicy
apiVersion: networking.k8s.io/v1
metadata: {name: deny-all-by-default, namespace: {{.}}}
spec: {podSelector: {}}
`

const allowBusybox = `
kind: NetworkPolicy
apiVersion: networking.k8s.io/v1
metadata: {name: allow, namespace: ns-1}
spec:
  podSelector: {matchLabels: {app: http-echo}}
  ingress:
  - from:
    - podSelector: {matchLabels: {app: busybox}}
`

func walkthrough(t *testing.T, client, server node) {
	namespace(t, "ns-1")
	start(t,
		pod{Namespace: "ns-1", Name: "http-echo", Node: server.name, Labels: "app: http-echo", Image: httpEcho},
		pod{Namespace: "ns-1", Name: "busybox", Node: client.name, Labels: "run: busybox", Image: busybox, Command: idle})
	apply(t, service, nil)
	wget := func(seconds string) (string, error) {
		return run(t.Context(), "", scripts+"kubectl", "-n", "ns-1", "exec", "busybox", "--", "sh", "-c",
			`timeout `+seconds+
				` wget -S http://http-echo.ns-1.svc.cluster.local/test --post-data '{"message":"hello"}' -O test 2>&1`)
	}
	answers := func(step string) {
		t.Helper()
		eventually(t, 10*time.Second, step, func() error {
			out, err := wget("3")
			if err == nil && !strings.Contains(out, "HTTP/1.1 200 OK") {
				err = fmt.Errorf("the answer is %q", out)
			}
			return err
		})
	}
	timesOut := func(step string) {
		t.Helper()
		eventually(t, 10*time.Second, step+": wget times out", func() error { // an agent learns of a change a moment later
			if out, err := wget("2"); err == nil || !strings.Contains(err.Error(), "exit code 143") {
				return fmt.Errorf("%w: %s", err, out)
			}
			return nil
		})
	}

	answers("without a policy")
	if log := kubectl(t, "-n", "ns-1", "logs", "http-echo"); !strings.Contains(log, `POST /test`) ||
		!strings.Contains(log, `{"message":"hello"}`) {
		t.Fatalf("the server has logged %q", log)
	}
	apply(t, denyAll, "ns-1")
	timesOut("deny-all-by-default")
	kubectl(t, "-n", "ns-1", "delete", "networkpolicy", "deny-all-by-default")
	apply(t, allowBusybox, nil)
	timesOut("busybox lacks the label")
	kubectl(t, "-n", "ns-1", "label", "pod", "busybox", "app=busybox")
	answers("busybox has the label")
	// The namespace's name as a whole field, and not as a part of a longer name.
	traces := []*regexp.Regexp{regexp.MustCompile(`(^|[^\w-])ns-1($|[^\w-])`)}
	for _, p := range []string{"http-echo", "busybox"} {
		// An address as a whole field. A port, a prefix length or the end of a range may follow.
		traces = append(traces,
			regexp.MustCompile(`(^|[^\w.])`+regexp.QuoteMeta(podIP(t, "ns-1", p))+`($|[^\w.])`))
	}
	kubectl(t, "delete", "ns", "ns-1")
	for _, n := range []node{client, server} {
		eventually(t, 10*time.Second, "nothing is left on "+n.name, func() error {
			for _, command := range []string{
				"ipset save", "iptables-save", "ip neighbour show dev weir0",
				// kube-proxy's rules aren't searched, because kube-proxy keeps chains of deleted Services for a while.
				"nft list tables | grep ' weir' | while read -r table; do nft list $table; done",
				"ls /run/weir/endpoints", "conntrack -L",
			} {
				out, err := run(t.Context(), "", scripts+"enter", n.name, "sh", "-c", command+" 2>/dev/null")
				if err != nil {
					return err
				}
				for line := range strings.Lines(out) {
					for _, trace := range traces {
						if trace.MatchString(line) {
							return fmt.Errorf("%s: %s", command, line)
						}
					}
				}
			}
			return nil
		})
	}
}
