//go:build e2e

package e2e_test

import (
	"context"
	"encoding/json"
	"fmt"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"
)

func reaches(t *testing.T, ns, pod, address string) bool {
	t.Helper()
	out, err := execIn(t.Context(), ns, pod, "probe", "connect", "--count=1", "--timeout=900ms", address)
	if err != nil {
		t.Fatal(err)
	}
	return attempts(t, out)[0].OK
}

func friendReaches(t *testing.T, ns, server string) {
	t.Helper()
	eventually(t, 10*time.Second, "the friend reaches the server", func() error {
		if !reaches(t, ns, "friend", server) {
			return fmt.Errorf("it doesn't")
		}
		return nil
	})
}

// TestNodeJoinsAndLeaves: if a node joins the cluster, its pods can be reached. After the node has left, its networks
// and address are in no route, neighbour entry, forwarding entry or set of another node.
func TestNodeJoinsAndLeaves(t *testing.T) {
	all := workers(t)
	name := "w" + strconv.Itoa(len(all)+1)
	must(t, "", scripts+"node-up", name)
	up := true
	t.Cleanup(func() {
		if up {
			_, _ = run(context.WithoutCancel(t.Context()), "", scripts+"node-down", name, "--forget")
			_, _ = run(context.WithoutCancel(t.Context()), "", scripts+"kubectl", "delete", "node", name)
		}
	})
	must(t, "", scripts+"node-wait", name)
	kubectl(t, "wait", "--for=condition=Ready", "node/"+name, "--timeout=600s")
	ns := namespace(t, "joins")
	apply(t, labelled, ns)
	start(t,
		pod{
			Namespace: ns,
			Name:      "server",
			Node:      name,
			Labels:    "app: server",
			Image:     probe,
			Command:   `[probe, listen, ":9000"]`,
		},
		pod{Namespace: ns, Name: "friend", Node: all[0].name, Labels: "app: friend", Image: probe, Command: idle},
		pod{Namespace: ns, Name: "stranger", Node: all[0].name, Labels: "app: stranger", Image: probe, Command: idle})
	server := podIP(t, ns, "server") + ":9000"
	friendReaches(t, ns, server)
	if reaches(t, ns, "stranger", server) {
		t.Error("the new node's pod is reached by whom its policy doesn't mean")
	}
	its := strings.Fields(kubectl(t, "get", "node", name, "-o",
		`jsonpath={.spec.podCIDRs[*]} {.status.addresses[?(@.type=="InternalIP")].address}`))
	must(t, "", scripts+"node-down", name, "--forget")
	up = false
	kubectl(t, "delete", "node", name)
	eventually(t, 10*time.Second, "nothing of the node that left is on the others", func() error {
		out, err := run(t.Context(), "", scripts+"enter", all[0].name, "sh", "-c",
			"ip route; ip -6 route; ip neighbour; bridge fdb; ipset save")
		for line := range strings.Lines(out) {
			if slices.ContainsFunc(strings.Fields(line), func(word string) bool { return slices.Contains(its, word) }) {
				return fmt.Errorf("%s", line)
			}
		}
		return err
	})
}

// startServer starts the pods of the manifest labelled: the server on one node, and the pods friend and stranger on
// another node.
func startServer(t *testing.T, ns string, server, clients node) {
	t.Helper()
	start(t,
		listener(ns, "server", server),
		pod{Namespace: ns, Name: "friend", Node: clients.name, Labels: "app: friend", Image: probe, Command: idle},
		pod{Namespace: ns, Name: "stranger", Node: clients.name, Labels: "app: stranger", Image: probe, Command: idle})
}

// TestReboot: if a worker reboots, a pod on this worker gets a new address, and the policy still applies to the pod.
func TestReboot(t *testing.T) {
	a, neighbour, _ := apart(t)
	ns := namespace(t, "reboot")
	apply(t, labelled, ns)
	startServer(t, ns, neighbour, a)
	before := podIP(t, ns, "server")
	must(t, "", scripts+"node-down", neighbour.name)
	must(t, "", scripts+"node-up", neighbour.name)
	eventually(t, 120*time.Second, "the server has a new address and is ready", func() error {
		out, err := run(t.Context(), "", scripts+"kubectl", "-n", ns, "get", "pod", "server", "-o", "json")
		if err != nil {
			return err
		}
		var pod struct {
			Status struct {
				PodIP             string `json:"podIP"`
				ContainerStatuses []struct {
					Ready        bool `json:"ready"`
					RestartCount int  `json:"restartCount"`
				} `json:"containerStatuses"`
			} `json:"status"`
		}
		if err := json.Unmarshal([]byte(out), &pod); err != nil {
			return err
		}
		if s := pod.Status; len(s.ContainerStatuses) != 1 || !s.ContainerStatuses[0].Ready ||
			s.ContainerStatuses[0].RestartCount == 0 || s.PodIP == before {
			return fmt.Errorf("%+v", s)
		}
		return nil
	})
	server := podIP(t, ns, "server") + ":9000"
	friendReaches(t, ns, server)
	if reaches(t, ns, "stranger", server) {
		t.Error("after the reboot the server is reached by whom its policy doesn't mean")
	}
	kubectl(t, "-n", "kube-system", "rollout", "status", "ds/weir", "--timeout=300s")
	out := enter(t, neighbour.name, "weirctl", "status", "-o", "json")
	var status struct {
		Pods []struct {
			Addresses []string `json:"addresses"`
		} `json:"pods"`
	}
	if err := json.Unmarshal([]byte(out), &status); err != nil {
		t.Fatal(err)
	}
	for _, p := range status.Pods {
		if slices.Contains(p.Addresses, before) {
			t.Errorf("%s is held by the pod's life before the reboot", before)
		}
	}
	kubectl(t, "wait", "--for=condition=Ready", "node/"+neighbour.name, "--timeout=300s")
}

const strayNode = `
apiVersion: v1
kind: Node
metadata: {name: {{.Name}}}
spec: { {{with .PodCIDR}}podCIDR: {{.}}, podCIDRs: [{{.}}], {{end}}taints: [{key: stray, effect: NoExecute}]}
`

// TestNodesThatAreWrong: the status names each faulty Node, and other nodes' pods still reach each other. If a Node's
// address changes, the tunnel leads to the new address.
func TestNodesThatAreWrong(t *testing.T) {
	a, _, remote := apart(t)
	ns := namespace(t, "wrong-nodes")
	apply(t, labelled, ns)
	startServer(t, ns, remote, a)
	server := podIP(t, ns, "server") + ":9000"
	taken := kubectl(t, "get", "node", remote.name, "-o", "jsonpath={.spec.podCIDR}")
	for _, n := range []struct{ Name, PodCIDR, Address, Problem string }{
		// zz-overlaps claims the network of an older Node. Its name sorts last, because the order of names decides
		// between Nodes of the same age.
		{"zz-overlaps", taken, "10.200.0.250", "overlaps"},
		{"zz-homeless", "100.127.0.0/24", "", "InternalIP"},
	} {
		apply(t, strayNode, n)
		t.Cleanup(func() {
			_, _ = run(context.WithoutCancel(t.Context()), "", scripts+"kubectl", "delete", "node", n.Name)
		})
		if n.Address != "" {
			kubectl(t, "patch", "node", n.Name, "--subresource=status", "-p",
				`{"status":{"addresses":[{"type":"InternalIP","address":"`+n.Address+`"}]}}`)
		}
		eventually(t, 10*time.Second, n.Name+" is named in the status", func() error {
			out, err := run(t.Context(), "", scripts+"enter", a.name, "weirctl", "status")
			if err == nil && (!strings.Contains(out, n.Name) || !strings.Contains(out, n.Problem)) {
				err = fmt.Errorf("%s", out)
			}
			return err
		})
	}
	friendReaches(t, ns, server)
	if reaches(t, ns, "stranger", server) {
		t.Error("a wrong Node has changed what the policy of others lets through")
	}
	moved := struct{ Name, PodCIDR string }{"zz-moves", "100.127.1.0/24"}
	apply(t, strayNode, moved)
	t.Cleanup(func() {
		_, _ = run(context.WithoutCancel(t.Context()), "", scripts+"kubectl", "delete", "node", moved.Name)
	})
	for _, address := range []string{"10.200.0.251", "10.200.1.252"} {
		kubectl(t, "patch", "node", moved.Name, "--subresource=status", "-p",
			`{"status":{"addresses":[{"type":"InternalIP","address":"`+address+`"}]}}`)
		eventually(t, 10*time.Second, "the tunnel leads to "+address, func() error {
			out, err := run(t.Context(), "", scripts+"enter", a.name, "bridge", "fdb")
			if err == nil &&
				(!strings.Contains(out, address) || (address == "10.200.1.252" && strings.Contains(out, "10.200.0.251"))) {
				err = fmt.Errorf("%s", out)
			}
			return err
		})
	}
}
