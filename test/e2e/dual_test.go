//go:build e2e

package e2e_test

import (
	"encoding/json"
	"fmt"
	"net"
	"net/netip"
	"os"
	"testing"
	"time"
)

// TestBothFamilies: on dual-stack nodes, pods reach pods, Services and the world over IPv4 and IPv6.
func TestBothFamilies(t *testing.T) {
	if cidrs := nodeCIDRs(t, workers(t)[0].name); len(cidrs) != 2 {
		if os.Getenv("CI") != "" {
			t.Fatal("the cluster's nodes have pod networks of one family: ", cidrs)
		}
		t.Skip("the cluster's nodes have pod networks of one family: ", cidrs)
	}
	atEachDistance(t, bothFamilies)
}

func nodeCIDRs(t *testing.T, name string) (cidrs []string) {
	t.Helper()
	text := kubectl(t, "get", "node", name, "-o", "jsonpath={.spec.podCIDRs}")
	if err := json.Unmarshal([]byte(text), &cidrs); err != nil {
		t.Fatalf("%v in %q", err, text)
	}
	return cidrs
}

type families [2]string

func podIPs(t *testing.T, namespace, name string) (ips families) {
	t.Helper()
	var all []struct {
		IP netip.Addr `json:"ip"`
	}
	text := kubectl(t, "-n", namespace, "get", "pod", name, "-o", "jsonpath={.status.podIPs}")
	if err := json.Unmarshal([]byte(text), &all); err != nil || len(all) != 2 || !all[0].IP.Is4() || !all[1].IP.Is6() {
		t.Fatalf("%s has addresses %q, want one of each family (%v)", name, text, err)
	}
	return families{all[0].IP.String(), all[1].IP.String()}
}

const dualService = `
apiVersion: v1
kind: Service
metadata: {name: server, namespace: {{.}}}
spec:
  ipFamilyPolicy: RequireDualStack
  selector: {app: server}
  ports: [{port: 80, targetPort: 9000}]
`

const policies = `
kind: NetworkPolicy
apiVersion: networking.k8s.io/v1
metadata: {name: policy, namespace: %s}
spec:
  podSelector: {matchLabels: {app: server}}
  ingress: [%s]
`

func bothFamilies(t *testing.T, client, server node) {
	ns := namespace(t, "families")
	start(t,
		listener(ns, "server", server),
		pod{Namespace: ns, Name: "client", Node: client.name, Labels: "app: client", Image: probe, Command: idle})
	apply(t, dualService, ns)
	ips := podIPs(t, ns, "server")
	var services families
	text := kubectl(t, "-n", ns, "get", "service", "server", "-o", "jsonpath={.spec.clusterIPs}")
	var clusterIPs []string
	if err := json.Unmarshal([]byte(text), &clusterIPs); err != nil || copy(services[:], clusterIPs) != 2 {
		t.Fatalf("the Service's addresses are %q: %v", text, err)
	}
	want := func(what string, reached ...bool) {
		t.Helper()
		for i, to := range []string{
			net.JoinHostPort(ips[0], "9000"), net.JoinHostPort(ips[1], "9000"),
			net.JoinHostPort(services[0], "80"), net.JoinHostPort(services[1], "80"),
		} {
			eventually(t, 10*time.Second, fmt.Sprint(what, ": ", to), func() error {
				if got := reaches(t, ns, "client", to); got != reached[i%2] {
					return fmt.Errorf("reached: %v, want %v", got, reached[i%2])
				}
				return nil
			})
		}
	}
	policy := func(ingress string) { apply(t, fmt.Sprintf(policies, ns, ingress), nil) }
	want("without a policy", true, true)
	for _, ip := range ips {
		eventually(t, 10*time.Second, "a large packet to "+ip+" is answered", func() error {
			_, err := execIn(t.Context(), ns, "client", "probe", "datagram", "--size=1400", net.JoinHostPort(ip, "9000"))
			return err
		})
	}
	policy("")
	want("denied", false, false)
	policy("{from: [{podSelector: {matchLabels: {app: friend}}}]}")
	want("without the label", false, false)
	kubectl(t, "-n", ns, "label", "pod", "client", "--overwrite", "app=friend")
	want("with the label", true, true)
	policy(`{from: [{ipBlock: {cidr: "::/0"}}]}`)
	want("all of IPv6", false, true)
	policy("{from: [{ipBlock: {cidr: 0.0.0.0/0}}]}")
	want("all of IPv4", true, false)
	policy("{from: [{podSelector: {matchLabels: {app: friend}}}]}")
	want("with the label again", true, true)
	kubectl(t, "-n", ns, "label", "pod", "client", "--overwrite", "app=client")
	want("without the label again", false, false)
	for _, world := range []string{"203.0.113.1:80", "[2001:db8:203::1]:80"} {
		eventually(t, 10*time.Second, "the client reaches the world at "+world, func() error {
			if !reaches(t, ns, "client", world) {
				return fmt.Errorf("it doesn't")
			}
			return nil
		})
	}
}
