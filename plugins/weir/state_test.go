package main

import (
	"encoding/json"
	"errors"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/weir-net/weir/agentapi"
	"github.com/weir-net/weir/test/nodetest"
)

// TestHostState: if pods run, "weirctl pods" shows each with its policies. Without an agent, the policies are shown
// as "?".
func TestHostState(t *testing.T) {
	if !nodetest.IsolatedWithWeir(t) {
		return
	}
	n := newNode(t, dualStack)
	n.Manifest("policy.yaml", denyAll)
	p := n.AddPod("ns-1", "busybox")
	pods := func() agentapi.PodStatus {
		t.Helper()
		out, _ := n.Ctl("pods", "-o", "json")
		var all []agentapi.PodStatus
		if err := json.NewDecoder(strings.NewReader(out)).Decode(&all); err != nil || len(all) != 1 {
			t.Fatalf("%v: %s", err, out)
		}
		return all[0]
	}
	n.Eventually("the pod is in its class", func() error {
		if got := pods(); got.Ingress != "ns-1/deny-all-by-default" {
			return errors.New(got.Ingress)
		}
		return nil
	})
	got := pods()
	if got.Pod != "ns-1/busybox" || !strings.HasPrefix(got.ContainerID, "cnitool-") ||
		!slices.Equal(got.Addresses, []string{p.IP, p.IP6}) ||
		!strings.HasPrefix(got.HostIf, "weirp") || got.MAC != "0a:58:0a:58:00:02" || time.Since(got.Since) > time.Minute ||
		got.Egress != "open" {
		t.Errorf("weirctl pods: %+v", got)
	}
	link := nodetest.Run(t, "ip", "-d", "link", "show", got.HostIf)
	if !strings.Contains(link, "alias weir: ns-1/busybox eth0") {
		t.Errorf("the link doesn't name its pod: %s", link)
	}
	text, err := n.Ctl("pods")
	for _, want := range []string{
		"CONTAINER", got.ContainerID[:13], "ns-1/busybox", p.IP + "," + p.IP6, got.HostIf,
		got.MAC, "ns-1/deny-all-by-default", "open", got.Since.Local().Format(time.RFC3339),
	} {
		if err != nil || !strings.Contains(text, want) {
			t.Errorf("weirctl pods lacks %q: %v\n%s", want, err, text)
		}
	}
	n.StopAgent()
	without := pods()
	got.Ingress, got.Egress = "?", "?" // without an agent, the pod's classes are unknown
	if !slices.Equal(without.Addresses, got.Addresses) || without.Ingress != "?" || without.HostIf != got.HostIf {
		t.Errorf("without an agent: %+v, want %+v", without, got)
	}
}
