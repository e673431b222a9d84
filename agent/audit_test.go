package agent

import (
	"context"
	"fmt"
	"math/rand/v2"
	"net/netip"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/weir-net/weir/agent/drops"
	"github.com/weir-net/weir/agentapi"
	"github.com/weir-net/weir/netfilter/nflog"
	"github.com/weir-net/weir/policy"
	"github.com/weir-net/weir/policy/policytest"
	"github.com/weir-net/weir/policy/ruleset"
	"github.com/weir-net/weir/policy/verdict"
)

// TestAuditsReportWouldDrops: on random clusters, the agent reports a packet if and only if the audited policies
// would drop it.
func TestAuditsReportWouldDrops(t *testing.T) {
	reported, left := 0, 0
	for seed := range uint64(2000) {
		r := rand.New(rand.NewPCG(seed, 41))
		s := policytest.State(r)
		engine := policy.NewEngine(s.Node)
		engine.Apply(policy.Difference(policy.Objects{}, s.Objects))
		engine.SetNodes(s.Nodes)
		engine.SetEndpoints(s.Endpoints)
		rules, err := ruleset.NewSimulator(engine.Ruleset())
		if err != nil {
			t.Fatal(err)
		}
		whole := verdict.New(s)
		for _, p := range policytest.Probes(r, s, 1) {
			v := whole.Evaluate(verdict.Packet{Src: p.Src, Dst: p.Dst, Proto: p.Proto, Port: p.Port})
			around := engine.Around([]netip.Addr{p.Src, p.Dst})
			_, logged := rules.Audit(p)
			for _, d := range logged {
				w, ok := evaluateAudited(verdict.New(around), around, drops.Line{
					Kind: agentapi.DropShown, Prefix: &drops.Prefix{Direction: d, Reason: agentapi.ByAudit}, Flow: flowOf(p),
				})
				if ok != slices.Contains(v.WouldDrop(), d) {
					t.Fatalf("seed %d: %s of %+v is reported: %v, and\n%s\n%s", seed, d, p, ok, v, policytest.YAML(s))
				}
				if !ok {
					left++
					continue
				}
				reported++
				if len(w.policies) == 0 || w.local == nil {
					t.Fatalf("seed %d: %s of %+v: %+v", seed, d, p, w)
				}
			}
			for _, d := range v.WouldDrop() {
				end := map[ruleset.Direction]verdict.Side{ruleset.Egress: v.Egress, ruleset.Ingress: v.Ingress}[d]
				if end.Here && len(end.Either) == 0 && !slices.Contains(logged, d) {
					t.Fatalf("seed %d: %s of %+v is not logged, and\n%s\n%s", seed, d, p, v, policytest.YAML(s))
				}
			}
		}
	}
	if reported < 1000 || left < 100 {
		t.Errorf("%d packets are reported, and %d left out: the test tests too little", reported, left)
	}
}

func flowOf(p ruleset.Packet) nflog.Flow {
	f := nflog.Flow{EtherType: 0x0800, Src: p.Src.As16(), Dst: p.Dst.As16(), DstPort: p.Port}
	if p.Dst.Is6() {
		f.EtherType = 0x86dd
	}
	f.Proto = map[ruleset.Protocol]uint8{ruleset.TCP: 6, ruleset.UDP: 17, ruleset.SCTP: 132, "1": 1, "58": 58}[p.Proto]
	return f
}

// TestAuditSumsAreBounded: if some namespaces have very many kinds of connections, another namespace's few kinds are
// all kept. If a connection is added to a kind while a report is made, the report doesn't forget the kind.
func TestAuditSumsAreBounded(t *testing.T) {
	s := newAuditSums()
	sent := uint64(0)
	send := func(namespace string, port int) {
		sent++
		s.add(&drops.Entry{Drop: &agentapi.Drop{
			Count: 1, Direction: "ingress", Protocol: "tcp",
			Destination: agentapi.DropEnd{Pod: namespace + "/p", Port: uint16(port)},
		}}, wouldDrop{policies: []string{namespace + "/np" + fmt.Sprint(port%7)}})
	}
	const namespaces = maxAudited/maxAuditedEach + 2
	for port := range 2 * maxAuditedEach {
		for n := range namespaces {
			send(fmt.Sprint("ns", n), port)
		}
	}
	for port := range 5 {
		send("quiet", port)
	}
	r := s.report("", func(*agentapi.AuditedTraffic) bool { return true })
	count, quiet := r.More, 0
	for _, d := range r.Dropped {
		if count += d.Count; strings.HasPrefix(d.Policies[0], "quiet/") {
			quiet++
		}
	}
	if count != sent || quiet != 5 || len(s.kinds) > maxAudited || len(s.series) > maxDropSeries {
		t.Errorf("%d of %d connections, %d of 5 kinds of a quiet namespace, %d kinds, %d series", count, sent, quiet,
			len(s.kinds), len(s.series))
	}
	var still *agentapi.AuditedTraffic
	s.report("", func(of *agentapi.AuditedTraffic) bool {
		if !s.mu.TryLock() {
			t.Fatal("nothing can be counted while a report evaluates the connections anew")
		}
		s.mu.Unlock()
		if still == nil && strings.HasPrefix(of.Policies[0], "quiet/") {
			still = of
			send("quiet", int(of.Port))
		}
		return false
	})
	if r := s.report("", func(*agentapi.AuditedTraffic) bool { return true }); len(r.Dropped) != 1 ||
		r.Dropped[0].Port != still.Port || r.Dropped[0].Count != still.Count+1 {
		t.Errorf("connections that came while a report was made are forgotten: %+v", r.Dropped)
	}
	s.report("", func(*agentapi.AuditedTraffic) bool { return false })
	if len(s.kinds)+len(s.each)+s.room != 0 {
		t.Errorf("%d kinds and %d namespaces are left, with room %d", len(s.kinds), len(s.each), s.room)
	}
}

// TestAuditSumsBoundLabels: if labels are large, or lists of policies are long, fewer kinds of connections are kept.
// If a pod's labels or a list are too large to keep, the connections are only counted.
func TestAuditSumsBoundLabels(t *testing.T) {
	s := newAuditSums()
	sent := uint64(0)
	send := func(namespace string, port, labels, policies int) {
		sent++
		pod := &policy.Pod{Namespace: namespace, Name: "p", Labels: map[string]string{
			"app": strings.Repeat("x", labels), "port": fmt.Sprint(port),
		}}
		by := make([]string, policies)
		for i := range by {
			by[i] = fmt.Sprint(namespace, "/np", i)
		}
		s.add(&drops.Entry{Drop: &agentapi.Drop{
			Count: 1, Direction: "ingress", Protocol: "tcp",
			Destination: agentapi.DropEnd{Pod: namespace + "/p", Port: uint16(port)},
		}}, wouldDrop{policies: by, local: pod, peer: pod})
	}
	const large = 20 << 10
	for port := range 1000 {
		for n := range 20 {
			send(fmt.Sprint("ns", n), port, large, 1)
		}
		send("many", port, 1, 1000)
		send("huge", port, 1<<20, 1)
		send("long", port, 1, 10_000)
		if port%200 == 0 {
			send("quiet", port, 10, 1)
		}
	}
	var bytes int
	by := map[string]int{}
	count := uint64(0)
	r := s.report("", func(*agentapi.AuditedTraffic) bool { return true })
	for _, d := range r.Dropped {
		bytes += len(d.Pod.Kind()) + len(d.Peer.Kind()) + len(strings.Join(d.Policies, ","))
		count += d.Count
		by[d.Pod.Namespace]++
	}
	if count+r.More != sent || bytes > maxAudited*labelRoom {
		t.Errorf("%d of %d connections, %d bytes", count+r.More, sent, bytes)
	}
	if by["quiet"] != 5 || by["ns3"] == 0 || by["many"] == 0 || by["huge"]+by["long"] != 0 {
		t.Errorf("kinds by namespace: %v", by)
	}
	for policies := range s.more {
		if len(policies) > labelRoom {
			t.Errorf("a key of %d bytes", len(policies))
		}
	}
}

// TestAuditWithoutAPod: if a packet has the address of an ended pod, the agent doesn't evaluate the packet (lacksPod).
// The agent evaluates a packet with the address of a node, or of a host outside of the pods' networks.
func TestAuditWithoutAPod(t *testing.T) {
	at := netip.MustParseAddr
	s := &snapshot{nodes: []policy.Node{{Name: "n1", PodCIDRs: []netip.Prefix{netip.MustParsePrefix("10.0.1.0/24")}}}}
	state := policy.State{Objects: policy.Objects{Nodes: s.nodes, Pods: []policy.Pod{{
		Namespace: "shop", Name: "db", NodeName: "n1", Addresses: []netip.Addr{at("10.0.1.2")},
	}}}}
	var view dropView
	view.load(s)
	var e auditEvaluator
	e.networks.load(s)
	for peer, want := range map[string]bool{"10.0.1.3": true, "10.0.1.2": false, "10.0.1.1": false, "192.0.2.1": false} {
		line := drops.Line{Flow: flowOf(ruleset.Packet{Src: at(peer), Dst: at("10.0.1.2"), Proto: ruleset.TCP, Port: 80})}
		if got := e.lacksPod(verdict.New(state), &view, line); got != want {
			t.Errorf("%s: %v", peer, got)
		}
	}
}

// TestAuditWaitsForTheLoop: the agent evaluates connections even if the loop is busy for some seconds. If the loop is
// busy for a minute, the connections count as unevaluated.
func TestAuditWaitsForTheLoop(t *testing.T) {
	for busy, want := range map[time.Duration]uint64{4 * time.Second: 0, time.Minute: 1} {
		synctest.Test(t, func(t *testing.T) {
			a := &agent{events: make(chan event), metrics: &metrics{audits: newAuditSums()}}
			ctx, cancel := context.WithCancel(t.Context())
			defer cancel()
			go func() { // stands in for the agent's loop
				select {
				case <-time.After(busy):
					(<-a.events).(stateWanted).answer <- policy.State{}
				case <-ctx.Done():
				}
			}()
			var view dropView
			view.load(&snapshot{})
			p := ruleset.Packet{
				Src: netip.MustParseAddr("10.0.1.2"), Dst: netip.MustParseAddr("10.0.1.3"), Proto: ruleset.TCP, Port: 80,
			}
			new(auditEvaluator).only(ctx, a, &view, []drops.Line{{
				Kind: agentapi.DropShown, Count: 1, Flow: flowOf(p),
				Prefix: &drops.Prefix{Direction: ruleset.Ingress, Reason: agentapi.ByAudit},
			}})
			r := a.metrics.audits.report("", func(*agentapi.AuditedTraffic) bool { return true })
			if r.Unevaluated != want {
				t.Errorf("the loop is busy for %v: %d connections are unevaluated, want %d", busy, r.Unevaluated, want)
			}
		})
	}
}
