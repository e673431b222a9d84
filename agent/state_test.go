package agent

import (
	"context"
	"errors"
	"log/slog"
	"net/netip"
	"slices"
	"testing"

	"github.com/containernetworking/plugins/pkg/netlinksafe"
	networkingv1 "k8s.io/api/networking/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/weir-net/weir/endpoint"
	"github.com/weir-net/weir/netfilter"
	"github.com/weir-net/weir/netfilter/iptables"
	"github.com/weir-net/weir/policy"
	"github.com/weir-net/weir/policy/ruleset"
)

// TestClusterViewJoinsLookups: if the agent has looked up a pod, the pod counts until its endpoint ends, or until the
// source reports this pod or a newer one of the same name.
func TestClusterViewJoinsLookups(t *testing.T) {
	web := endpoint.Endpoint{ContainerID: "c", IfName: "eth0", Pod: endpoint.Pod{Namespace: "shop", Name: "web", UID: "2"}}
	endpoints := map[string]endpoint.Endpoint{web.ID(): web}
	name := policy.Name{Namespace: "shop", Name: "web"}
	pod := func(uid string) *policy.Pod { return &policy.Pod{Namespace: "shop", Name: "web", UID: uid} }
	c := newClusterView("self")
	told := func(pods ...*policy.Pod) {
		d := policy.NewDelta()
		d.Pods[name] = pods
		c.update(d, endpoints)
	}
	want := func(when string, lookups int, uids ...string) {
		t.Helper()
		var got []string
		for _, p := range c.engine.Pods(name) {
			got = append(got, p.UID)
		}
		if !slices.Equal(got, uids) || len(c.lookups) != lookups || len(c.hidden) != lookups {
			t.Errorf("%s: the pods are %q, and %d lookups are kept", when, got, len(c.lookups))
		}
	}
	if told(pod("1")); c.knows(web) {
		t.Error("a namesake is taken for the pod")
	}
	c.addLookup(web.ID(), lookup{pod("2"), "1"}, endpoints)
	if want("after the lookup", 1, "2"); !c.knows(web) {
		t.Error("the looked-up pod isn't known")
	}
	told(pod("1"))
	want("after a change of the old namesake", 1, "2")
	told(pod("3"))
	want("after another pod of the name", 0, "3")
	c.addLookup(web.ID(), lookup{pod("2"), "3"}, map[string]endpoint.Endpoint{})
	want("after a lookup for an endpoint that has ended", 0, "3")
	c.addLookup(web.ID(), lookup{pod("2"), "3"}, endpoints)
	told()
	want("after the namesake's end", 1, "2")
	c.dropLookups(nil)
	want("after the endpoint's end", 0)
}

// TestClusterViewReplacesLookups: if a pod is deleted and made again before the source reports it, the pod that was
// looked up last counts.
func TestClusterViewReplacesLookups(t *testing.T) {
	for _, ids := range [][]string{{"a", "b"}, {"b", "a"}} {
		c, endpoints := newClusterView("self"), map[string]endpoint.Endpoint{}
		d := policy.NewDelta()
		d.Pods[policy.Name{Namespace: "shop", Name: "web"}] = []*policy.Pod{{Namespace: "shop", Name: "web", UID: "1"}}
		c.update(d, endpoints)
		for i, uid := range []string{"2", "3"} {
			e := endpoint.Endpoint{
				ContainerID: ids[i], IfName: "eth0", Pod: endpoint.Pod{Namespace: "shop", Name: "web", UID: uid},
			}
			endpoints[e.ID()] = e
			pod := &policy.Pod{Namespace: "shop", Name: "web", UID: uid}
			if c.addLookup(e.ID(), lookup{pod, c.namesake(e.Pod)}, endpoints); !c.knows(e) {
				t.Errorf("%q: the looked-up pod with UID %s isn't known", ids, uid)
			}
		}
	}
}

// TestStatusWithoutReconcile: if a change causes no reconcile, the status still shows the change.
func TestStatusWithoutReconcile(t *testing.T) {
	o := Options{Source: newCluster(), Log: slog.New(slog.DiscardHandler)}
	a := newAgent(o, &iptables.Driver{}, netlinksafe.Handle{})
	a.takeUpdate(policy.NewDelta(), nil)
	a.present()
	d := policy.NewDelta()
	np := &networkingv1.NetworkPolicy{ObjectMeta: metav1.ObjectMeta{Namespace: "elsewhere", Name: "np"}}
	d.Policies[policy.Name{Namespace: "elsewhere", Name: "np"}] = []*networkingv1.NetworkPolicy{np}
	d.Unenforced = &[]policy.Unenforced{{Kind: "Other"}}
	if a.takeUpdate(d, errors.New("broken")).reconcile {
		t.Error("a policy of no concern leaves work")
	}
	s := a.status.Load()
	if s.policies.Len() != 1 || len(s.unenforced) != 1 || s.faults[partSource] == nil {
		t.Errorf("the status has %d policies, %v and %v", s.policies.Len(), s.unenforced, s.faults)
	}
	if a.takeUpdate(policy.NewDelta(), nil); len(a.status.Load().faults) > 0 {
		t.Errorf("the status still has %v", a.status.Load().faults)
	}
}

type publications struct {
	Source
	calls []map[endpoint.Pod][]netip.Addr
}

func (p *publications) Publish(_ context.Context, pods map[endpoint.Pod][]netip.Addr) {
	p.calls = append(p.calls, pods)
}

func (p *publications) AwaitPublished(context.Context, endpoint.Pod) {}

// TestPublisher: if a pod is enrolled, the addresses of its eth0 are published.
func TestPublisher(t *testing.T) {
	at := func(ifName, address string) endpoint.Endpoint {
		return endpoint.Endpoint{
			ContainerID: "c", IfName: ifName, Pod: endpoint.Pod{Namespace: "shop", Name: "web"},
			Addresses: []endpoint.Address{{Addr: netip.MustParseAddr(address)}},
		}
	}
	records := newRecords()
	records.endpoints["c:eth0"], records.endpoints["c:net1"] = at("eth0", "10.0.0.1"), at("net1", "10.0.0.2")
	var p publisher
	source := &publications{}
	for _, enrolled := range []map[string]bool{{}, {"c:eth0": true, "c:net1": true}, {"c:eth0": true}, {}} {
		p.publish(t.Context(), source, enrolled, records.copies())
	}
	if len(source.calls) != 2 || len(source.calls[0]) != 1 || len(source.calls[1]) != 0 {
		t.Errorf("published: %v", source.calls)
	}
	for _, addrs := range source.calls[0] {
		if len(addrs) != 1 || addrs[0] != netip.MustParseAddr("10.0.0.1") {
			t.Errorf("published: %v", addrs)
		}
	}
}

// TestFaultsAreLoggedWhenTheyChange: if a fault lasts, it is logged only when it begins and when it ends.
func TestFaultsAreLoggedWhenTheyChange(t *testing.T) {
	var log journal
	f := newFaults(slog.New(slog.NewTextHandler(&log, nil)))
	for range 3 {
		f.set(partSource, errors.New("no YAML"))
	}
	f.nothingKnown = false
	f.set(partSource, nil)
	f.set(partSource, nil)
	first := firstMeanings[partSource]
	if n := log.count("level=ERROR", first, "no YAML"); n != 1 || log.count("level=INFO", "no longer: "+first) != 1 {
		t.Errorf("the fault was logged as\n%s", log.String())
	}
	f.set(partSource, errors.New("no YAML"))
	if log.count("level=ERROR", parts[partSource].meaning) != 1 {
		t.Errorf("the fault was logged as\n%s", log.String())
	}
}

// TestCuttingIsDue: a walk through all connections is due if and only if a connection may have to be cut or restored.
func TestCuttingIsDue(t *testing.T) {
	for _, tc := range []struct {
		name   string
		before cutting
		result netfilter.Result
		verify netfilter.Verify
		due    bool
	}{
		{"nothing has changed", cutting{standing: 1}, netfilter.Result{}, netfilter.All, false},
		{"more is allowed", cutting{}, netfilter.Result{Changed: true}, netfilter.Trust, false},
		{"more is allowed, and a connection is cut", cutting{standing: 1}, netfilter.Result{Changed: true}, 0, true},
		{"more is allowed, and a walk runs", cutting{walking: true}, netfilter.Result{Changed: true}, 0, true},
		{"less is allowed", cutting{}, netfilter.Result{Changed: true, Closes: true}, netfilter.Trust, true},
		{"something was missing in the kernel", cutting{}, netfilter.Result{Changed: true}, netfilter.All, true},
		{"a walk was due", cutting{due: true}, netfilter.Result{}, netfilter.Trust, true},
	} {
		if tc.before.afterApply(tc.result, tc.verify, false); tc.before.due != tc.due {
			t.Errorf("%s: a walk is due: %v", tc.name, tc.before.due)
		}
	}
}

// TestRefusalsAreReplaced: if a refusal is new, refuse makes a new map, because the engine keeps the old map.
func TestRefusalsAreReplaced(t *testing.T) {
	var k kernelView
	one, two := ruleset.Refusal{Set: "one"}, ruleset.Refusal{Set: "two"}
	if !k.refuse(ruleset.Refused{one: "no"}) || k.refuse(ruleset.Refused{one: "no"}) {
		t.Error("what is new isn't told from what isn't")
	}
	shared := k.refused
	if !k.refuse(ruleset.Refused{two: "no"}) || len(k.refused) != 2 || len(shared) != 1 {
		t.Errorf("%v, and what was shared is %v", k.refused, shared)
	}
}
