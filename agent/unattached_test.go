package agent

import (
	"fmt"
	"strings"
	"testing"

	"github.com/weir-net/weir/endpoint"
	"github.com/weir-net/weir/netfilter"
	"github.com/weir-net/weir/policy"
	"github.com/weir-net/weir/test/nodetest"
)

// TestUnattachedPods: the agent reports a pod of this node that has addresses, but has had no record for a minute. It
// doesn't report pods of other nodes, pods of the host network, pods without addresses, and pods that have ended.
func TestUnattachedPods(t *testing.T) {
	if !nodetest.Isolated(t) {
		return
	}
	a := newConflistAgent(t)
	a.Source = newServer()
	local := func(name string, change func(*policy.Pod)) policy.Pod {
		p := pod(name, "10.88.0.7")
		p.NodeName, p.UID = "self", "1"
		change(&p)
		return p
	}
	same := func(*policy.Pod) {}
	pods := []policy.Pod{
		local("foreign", same), local("attached", same), local("recreated", same),
		local("elsewhere", func(p *policy.Pod) { p.NodeName = "peer" }),
		local("host", func(p *policy.Pod) { p.HostNetwork = true }),
		local("new", func(p *policy.Pod) { p.Addresses = nil }),
		local("ended", func(p *policy.Pod) { p.Finished = true }),
	}
	a.takeUpdate(policy.Difference(*healthy(), policy.Objects{Nodes: healthy().Nodes, Pods: pods}), nil)
	for name, uid := range map[string]string{"attached": "1", "recreated": "0"} {
		e := endpoint.Endpoint{ContainerID: name, IfName: "eth0", Pod: endpoint.Pod{Namespace: "shop", Name: name, UID: uid}}
		a.records.endpoints[e.ID()] = e
	}
	u := &a.cluster.unattached
	want := func(when string, pods ...string) {
		t.Helper()
		a.faults.set(partUnattached, nil)
		(&round{agent: a, verify: netfilter.All}).lookForUnattached(t.Context())
		said := fmt.Sprint(a.faults.now[partUnattached])
		for _, p := range pods {
			if !strings.Contains(said, p) {
				t.Errorf("%s: %q lacks %s", when, said, p)
			}
		}
		if n := strings.Count(said, "shop/"); n != len(pods) {
			t.Errorf("%s: %q, want %d pods", when, said, len(pods))
		}
	}
	passes := func() {
		for name := range u.since {
			u.since[name] = u.since[name].Add(-unattachedAfter)
		}
	}
	want("at once")
	passes()
	want("after a minute", "shop/foreign", "shop/recreated")
	a.records.broken["c:eth0"] = endpoint.ErrBroken
	want("while a record is broken, nothing is reported anew")
	delete(a.records.broken, "c:eth0")
	delete(a.records.endpoints, endpoint.ID("attached", "eth0"))
	want("a record is lost", "shop/foreign", "shop/recreated")
	passes()
	want("a minute later", "shop/attached", "shop/foreign", "shop/recreated")
	a.takeUpdate(policy.Difference(policy.Objects{Pods: pods}, policy.Objects{Pods: pods[3:]}), nil)
	want("the pods are deleted")
	if len(u.since) > 0 {
		t.Errorf("deleted pods are remembered: %v", u.since)
	}
	a.Node.Conflist = ""
	a.takeUpdate(policy.Difference(policy.Objects{}, policy.Objects{Pods: pods}), nil)
	want("weir isn't the network of all pods")
	if len(u.since) > 0 {
		t.Errorf("pods are looked at all the same: %v", u.since)
	}
}
