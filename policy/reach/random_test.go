package reach_test

import (
	"flag"
	"fmt"
	"iter"
	"math/rand/v2"
	"net/netip"
	"reflect"
	"slices"
	"sync/atomic"
	"testing"

	"github.com/weir-net/weir/conf"
	"github.com/weir-net/weir/policy"
	"github.com/weir-net/weir/policy/policytest"
	"github.com/weir-net/weir/policy/reach"
	"github.com/weir-net/weir/policy/ruleset"
	"github.com/weir-net/weir/policy/verdict"
)

var (
	cases = flag.Int("cases", 60, "how many random clusters are probed")
	seed  = flag.Uint64("seed", 0, "probe the cluster of that seed only")
)

// TestMatrixIsProbed: on random clusters, the matrix allows a packet if and only if a simulation in the rulesets of the
// sender's and the receiver's nodes allows it.
//
// To replay one cluster: go test ./policy/reach -seed N
func TestMatrixIsProbed(t *testing.T) {
	first, count := uint64(1), *cases
	if *seed != 0 {
		first, count = *seed, 1
	}
	var probed, changed, left atomic.Int64
	policytest.OnAllProcessors(t, first, count, func(seeds iter.Seq[uint64]) {
		for seed := range seeds {
			packets, moved, ok := probe(t, seed)
			probed.Add(int64(packets))
			changed.Add(int64(moved))
			if !ok {
				left.Add(1)
			}
		}
	})
	if t.Failed() || *seed != 0 {
		return
	}
	done := *cases - int(left.Load())
	if changed.Load() == 0 || done < *cases/2 {
		t.Fatalf("%d of %d clusters were probed, with %d changed connections: the test tests too little", done, *cases,
			changed.Load())
	}
	fmt.Printf("reach-matrix: %d clusters, %d probes, 0 differences\n", done, probed.Load())
	fmt.Printf("reach-diff: %d clusters, %d changed probes, 0 differences\n", done, changed.Load())
}

func probe(t *testing.T, seed uint64) (probed, changed int, ok bool) {
	r := rand.New(rand.NewPCG(seed, 11))
	before := policy.State{Objects: replicate(r, policytest.State(r).Objects)}
	after := policy.State{Objects: change(r, before.Objects)}
	was, ok := newNodes(before)
	now, ok2 := newNodes(after)
	if !ok || !ok2 {
		return 0, 0, false
	}
	diff := reach.Compare(before, after, nil)
	matrix := reach.New(after, nil)
	alone := newTable(matrix, matrix.Rows())
	tables := struct{ before, after, opened, closed *table }{
		newTable(diff.Before, diff.Before.Rows()), newTable(diff.After, diff.After.Rows()),
		newTable(diff.Before, diff.Opened), newTable(diff.Before, diff.Closed),
	}
	for _, p := range packets(r, before, after) {
		if !tables.before.has(p.Src) || !tables.before.has(p.Dst) {
			continue // an address of the pods' networks that no pod has
		}
		probed++
		a, b := was.allow(p), now.allow(p)
		if a != b {
			changed++
		}
		for _, c := range []struct {
			name      string
			got, want bool
		}{
			{"before", tables.before.allows(t, p), a},
			{"after", tables.after.allows(t, p), b},
			{"after, alone", alone.allows(t, p), b},
			{"opened", tables.opened.allows(t, p), b && !a},
			{"closed", tables.closed.allows(t, p), a && !b},
		} {
			if c.got != c.want {
				t.Errorf("seed %d, %s: %+v: %v, but the nodes' rules say %v\n%s\nafter:\n%s", seed, c.name, p, c.got, c.want,
					policytest.YAML(before), policytest.YAML(after))
				return probed, changed, true
			}
		}
	}
	return probed, changed, true
}

func replicate(r *rand.Rand, o policy.Objects) policy.Objects {
	for i := range r.IntN(8) {
		p := o.Pods[r.IntN(len(o.Pods))]
		p.Name = fmt.Sprint("r", i)
		p.Addresses = slices.Clone(p.Addresses)
		for j, a := range p.Addresses {
			bytes := a.AsSlice()
			bytes[len(bytes)-1] = byte(100 + i)
			p.Addresses[j], _ = netip.AddrFromSlice(bytes)
		}
		if r.IntN(4) == 0 && len(p.Ports) > 0 {
			p.Ports = slices.Clone(p.Ports)
			p.Ports[0].Number++
		}
		o.Pods = append(o.Pods, p)
	}
	return o
}

func change(r *rand.Rand, o policy.Objects) policy.Objects {
	other := policytest.Change(r, policy.State{Objects: o})
	o.Policies = other.Policies
	o.Namespaces = slices.Clone(o.Namespaces)
	for i, n := range other.Namespaces {
		o.Namespaces[i].Labels = n.Labels
	}
	o.Pods = slices.Clone(o.Pods)
	for i := range o.Pods {
		for _, p := range other.Pods {
			if p.Name == o.Pods[i].Name {
				o.Pods[i].Labels, o.Pods[i].Ports = p.Labels, p.Ports
			}
		}
		if r.IntN(8) == 0 {
			o.Pods[i].Labels = o.Pods[r.IntN(len(o.Pods))].Labels
		}
	}
	return o
}

type nodes struct {
	of    map[netip.Addr]string // the name of the pod's node, by the pod's address
	links map[netip.Addr]ruleset.Link
	by    map[string]*ruleset.Simulator
	has   map[string]policy.State
}

func newNodes(s policy.State) (*nodes, bool) {
	n := &nodes{
		of: map[netip.Addr]string{}, links: map[netip.Addr]ruleset.Link{}, by: map[string]*ruleset.Simulator{},
		has: map[string]policy.State{},
	}
	evaluator := verdict.New(s)
	names := []string{"here", "there"}
	if len(s.Nodes) == 0 {
		names = []string{""}
	}
	for _, name := range names {
		n.has[name] = policy.State{Objects: s.Objects, Node: name}
	}
	for _, a := range evaluator.Known() {
		pods := evaluator.At(a).Pods()
		if len(pods) != 1 {
			return nil, false // on a real node, no two pods have the same address
		}
		name := pods[0].NodeName
		if len(s.Nodes) == 0 {
			name = ""
		}
		state := n.has[name]
		e := policy.Endpoint{
			ID: "e" + a.String(), Enforcement: conf.Strict, Addresses: []policy.Address{{Addr: a, Subnet: subnet(a)}},
			Pod: policy.PodRef{Namespace: pods[0].Namespace, Name: pods[0].Name, UID: pods[0].UID},
		}
		state.Endpoints = append(state.Endpoints, e)
		n.has[name], n.of[a], n.links[a] = state, name, policy.LinkOf(e)
	}
	for name, state := range n.has {
		local := verdict.New(state)
		for _, a := range evaluator.Known() {
			if !reflect.DeepEqual(local.At(a).Pods(), evaluator.At(a).Pods()) {
				return nil, false
			}
		}
		sim, err := ruleset.NewSimulator(policy.Compile(state))
		if err != nil {
			panic(err)
		}
		n.by[name] = sim
	}
	return n, true
}

func subnet(a netip.Addr) netip.Prefix { return netip.PrefixFrom(a, a.BitLen()) }

func (n *nodes) allow(p ruleset.Packet) bool {
	link := func(a netip.Addr, node string) string {
		if of, isPod := n.of[a]; isPod && of == node {
			return n.links[a].In
		}
		return "eth0"
	}
	for _, a := range []netip.Addr{p.Src, p.Dst} {
		name, isPod := n.of[a]
		if p.In, p.Out = link(p.Src, name), link(p.Dst, name); isPod && !n.by[name].Allows(p) {
			return false
		}
	}
	return true
}

func packets(r *rand.Rand, states ...policy.State) (all []ruleset.Packet) {
	known := map[netip.Addr]bool{}
	var addresses []netip.Addr
	add := func(a netip.Addr, pod bool) {
		if _, twice := known[a]; !twice && a.IsValid() && a != policytest.Of[0].Node && a != policytest.Of[1].Node {
			known[a] = pod
			addresses = append(addresses, a)
		}
	}
	ports := map[ruleset.Protocol]map[uint16]bool{"1": {0: true}}
	for _, p := range []ruleset.Protocol{ruleset.TCP, ruleset.UDP, ruleset.SCTP} {
		ports[p] = map[uint16]bool{1: true, 65535: true}
	}
	for _, s := range states {
		for _, a := range verdict.New(s).Known() {
			add(a, true)
		}
	}
	for _, s := range states {
		for _, p := range policytest.Probes(r, s, 3) {
			add(p.Src, false)
			if ports[p.Proto] != nil && p.Port > 0 {
				ports[p.Proto][p.Port] = true
			}
		}
	}
	for _, src := range addresses {
		for _, dst := range addresses {
			if src == dst || src.BitLen() != dst.BitLen() || !known[src] && !known[dst] {
				continue
			}
			for proto, numbers := range ports {
				for port := range numbers {
					if proto == "1" && dst.Is6() {
						proto = "58"
					}
					all = append(all, ruleset.Packet{Src: src, Dst: dst, Proto: proto, Port: port})
				}
			}
		}
	}
	return all
}

type table struct {
	*reach.Matrix
	of   map[netip.Addr]int
	rows map[[2]int][]reach.Row
}

func newTable(m *reach.Matrix, rows []reach.Row) *table {
	t := &table{Matrix: m, of: map[netip.Addr]int{}, rows: map[[2]int][]reach.Row{}}
	for i, p := range m.Parties {
		for _, addresses := range p.Addresses {
			for _, a := range addresses {
				t.of[a] = i
			}
		}
	}
	for _, row := range rows {
		for _, i := range row.From {
			for _, j := range row.To {
				t.rows[[2]int{i, j}] = append(t.rows[[2]int{i, j}], row)
			}
		}
	}
	return t
}

func (t *table) party(a netip.Addr) int {
	if i, ok := t.of[a]; ok {
		return i
	}
	return slices.IndexFunc(t.Parties, func(p reach.Party) bool {
		return slices.ContainsFunc(p.Networks, func(n netip.Prefix) bool { return n.Contains(a) })
	})
}

func (t *table) has(a netip.Addr) bool { return t.party(a) >= 0 }

func (t *table) allows(test *testing.T, p ruleset.Packet) bool {
	found := 0
	i, j := t.party(p.Src), t.party(p.Dst)
	for _, row := range t.rows[[2]int{i, j}] {
		if (row.Family == "" || row.Family == conf.FamilyOf(p.Src).String()) && row.Ports.Contains(p.Proto, p.Port) {
			found++
		}
	}
	if found > 1 {
		test.Errorf("%+v is in %d rows", p, found)
	}
	return found > 0
}
