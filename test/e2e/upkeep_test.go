//go:build e2e

package e2e_test

import (
	"fmt"
	"strings"
	"testing"
	"time"
)

// TestTheNodeIsKept: if weir's settings are removed from a node, the agent restores them. The privileges in
// conf/weir.yaml are enough for this.
func TestTheNodeIsKept(t *testing.T) {
	ns := namespace(t, "kept")
	on := workers(t)[0].name
	start(t,
		pod{
			Namespace: ns,
			Name:      "server",
			Node:      on,
			Labels:    "app: server",
			Image:     probe,
			Command:   `[probe, listen, ":9000"]`,
		},
		pod{Namespace: ns, Name: "client", Node: on, Labels: "app: client", Image: probe, Command: idle})
	server := podIP(t, ns, "server")
	answers := func() error {
		_, err := execIn(t.Context(), ns, "client", "probe", "datagram", "--size=100", server+":9000")
		return err
	}
	eventually(t, 30*time.Second, "the client reaches the server", answers)
	for _, tc := range []struct{ breakIt, mended string }{
		{"echo 0 >/proc/sys/net/ipv4/ip_forward", "grep 1 /proc/sys/net/ipv4/ip_forward"},
		{
			"[ ! -e /proc/sys/net/bridge/bridge-nf-call-iptables ] || echo 1 >/proc/sys/net/bridge/bridge-nf-call-iptables",
			"[ ! -e /proc/sys/net/bridge/bridge-nf-call-iptables ] || grep 0 /proc/sys/net/bridge/bridge-nf-call-iptables",
		},
		{"ip addr flush dev weir0", "ip addr show dev weir0 | grep inet"},
		{"ip link set weir0 down; ip link set weir0 up", "ip route show dev weir0 | grep /"},
		{"ip neigh flush dev weir0 nud permanent", "ip neigh show dev weir0 | grep PERMANENT"},
	} {
		enter(t, on, "sh", "-c", tc.breakIt)
		began := time.Now()
		eventually(t, 20*time.Second, tc.breakIt+": the agent puts it right", func() error {
			_, err := run(t.Context(), "", scripts+"enter", on, "sh", "-c", tc.mended)
			return err
		})
		t.Logf("%s: put right after %s", tc.breakIt, time.Since(began).Round(10*time.Millisecond))
		eventually(t, 10*time.Second, tc.breakIt+": the client reaches the server again", answers)
	}
	eventually(t, 10*time.Second, "weirctl status tells of the repairs", func() error {
		out, err := run(t.Context(), "", scripts+"enter", on, "weirctl", "status")
		if err != nil || !strings.Contains(out, "net.ipv4.ip_forward is 0") {
			return fmt.Errorf("%w: %s", err, out)
		}
		return nil
	})
	// The container that installs the plugin needs no access to the API server.
	out := kubectl(t, "-n", "kube-system", "get", "pods", "-l", "k8s-app=weir", "-o",
		`jsonpath={range .items[*].spec.initContainers[*].volumeMounts[*]}{.mountPath}{"\n"}{end}`)
	if strings.Contains(out, "serviceaccount") {
		t.Errorf("the install container has an API token: %s", out)
	}
}
