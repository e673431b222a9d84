package packettest

import (
	"flag"
	"fmt"
	"math/rand/v2"
	"net/netip"
	"slices"
	"testing"

	"github.com/weir-net/weir/conf"
	"github.com/weir-net/weir/policy"
	"github.com/weir-net/weir/policy/policytest"
	"github.com/weir-net/weir/policy/reach"
	"github.com/weir-net/weir/policy/verdict"
)

var matrices = flag.Int("matrices", 10, "the matrices of how many random clusters are compared with packets")

// TestRandomMatrices sends packets in random clusters, before and after a random change of the policies and of a
// pod's labels. A reach.Matrix says which connections the policies of a cluster allow. The packets that this matrix
// allows must arrive, and no others. The difference of the matrices before and after the change must have exactly the
// packets that arrive only before the change, or only after it.
//
// To replay one cluster: go test ./internal/packettest -run TestRandomMatrices -seed N
func TestRandomMatrices(t *testing.T) {
	onNodes(t, randomMatrices)
}

func randomMatrices(t *testing.T, n *Node, p part) {
	t.Helper()
	all := p.of(1, uint64(*matrices))
	if *seed != 0 {
		all = span{*seed, *seed + 1}
	}
	sent, changed := 0, 0
	for s := all.first; s < all.end && !t.Failed(); s++ {
		n.Use(Names[s%uint64(len(Names))])
		packets, moved := compareMatrices(n, s)
		sent, changed = sent+packets, changed+moved
	}
	if !t.Failed() && *seed == 0 {
		if changed == 0 {
			t.Fatal("no packet's fate changed: the test tests nothing")
		}
		fmt.Printf("reach-packets: %d clusters, %d packets, %d of them changed, 0 differences\n", all.len(), sent, changed)
	}
}

func compareMatrices(n *Node, seed uint64) (sent, changed int) {
	n.Helper()
	r := rand.New(rand.NewPCG(seed, 12))
	before := policytest.State(r)
	after := before
	after.Policies, after.Namespaces = slices.Clone(before.Policies), slices.Clone(before.Namespaces)
	after.Pods = slices.Clone(before.Pods)
	for i := range 1 + r.IntN(3) {
		after.Policies = append(after.Policies, policytest.Policy(r, 20+i))
	}
	if len(before.Policies) > 0 {
		after.Policies = after.Policies[1:]
	}
	if i := r.IntN(len(after.Pods)); r.IntN(2) == 0 {
		after.Pods[i].Labels = after.Pods[0].Labels
	}
	d := reach.Compare(before, after, nil)
	var headers []verdict.Packet
	place := places(before)
	for _, p := range probes(n, before, policytest.Probes(r, before, 10)) {
		src, dst := place(p.Src), place(p.Dst)
		numbered := p.Proto != icmp && p.Proto != icmpv6
		if src != elsewhere && dst != elsewhere && (src == attachedHere || dst == attachedHere) && p.Src != p.Dst &&
			(p.Port != 0 || !numbered) {
			headers = append(headers, header(p))
		}
	}
	arrived := func(s policy.State, rows []reach.Row) []bool {
		n.Enforce(s)
		expect := make([]bool, len(headers))
		for i, p := range headers {
			expect[i] = inRows(d.Before, rows, p)
		}
		got := n.Send(headers, expect)
		for i := range got {
			if got[i] != expect[i] {
				n.Errorf("seed %d: %+v arrived: %v. But the matrix says %v\n%s", seed, headers[i], got[i], expect[i],
					policytest.YAML(s))
				break
			}
		}
		return got
	}
	was, now := arrived(before, d.Before.Rows()), arrived(after, d.After.Rows())
	for i, p := range headers {
		if was[i] != now[i] {
			changed++
		}
		opened, closed := inRows(d.Before, d.Opened, p), inRows(d.Before, d.Closed, p)
		if opened != (now[i] && !was[i]) || closed != (was[i] && !now[i]) {
			n.Errorf("seed %d: %+v arrived: %v, and after the change: %v. But it opens: %v, closes: %v", seed, p, was[i],
				now[i], opened, closed)
		}
	}
	return len(headers), changed
}

type where int

const (
	inWorld where = iota
	attachedHere
	elsewhere // an address of a pod on another node, or an address in a podCIDR that no pod of this node has
)

func places(s policy.State) func(netip.Addr) where {
	evaluator := verdict.New(s)
	attached := map[netip.Addr]bool{}
	for _, e := range s.Endpoints {
		for _, a := range e.Addresses {
			attached[a.Addr] = true
		}
	}
	return func(a netip.Addr) where {
		pods := slices.ContainsFunc(s.Nodes, func(n policy.Node) bool {
			return slices.ContainsFunc(n.PodCIDRs, func(p netip.Prefix) bool { return p.Contains(a) })
		})
		switch {
		case attached[a]:
			return attachedHere
		case pods, evaluator.At(a).Name() != "":
			return elsewhere
		}
		return inWorld
	}
}

func inRows(m *reach.Matrix, rows []reach.Row, p verdict.Packet) bool {
	from, ok := m.PartyOf(p.Src)
	to, ok2 := m.PartyOf(p.Dst)
	return ok && ok2 && slices.ContainsFunc(rows, func(r reach.Row) bool {
		return slices.Contains(r.From, from) && slices.Contains(r.To, to) &&
			(r.Family == "" || r.Family == conf.FamilyOf(p.Src).String()) && r.Ports.Contains(p.Proto, p.Port)
	})
}
