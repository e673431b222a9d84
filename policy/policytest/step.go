package policytest

import (
	"maps"
	"math/rand/v2"
	"net/netip"
	"slices"

	networkingv1 "k8s.io/api/networking/v1"

	"github.com/weir-net/weir/conf"
	"github.com/weir-net/weir/policy"
	"github.com/weir-net/weir/policy/ruleset"
)

// Step returns the state after a random event. Objects or attachments change, or the kernel begins or ceases to refuse
// parts of the ruleset. Some events change several things at once. The kernel refuses only sets of the ruleset that the
// function "compile" returns, and entries of these sets.
func Step(r *rand.Rand, old policy.State, compile func(policy.State) ruleset.Ruleset) policy.State {
	s := old
	s.Namespaces, s.Pods = slices.Clone(old.Namespaces), slices.Clone(old.Pods)
	s.Policies, s.Endpoints = slices.Clone(old.Policies), slices.Clone(old.Endpoints)
	families := stack(r)
	if r.IntN(3) == 0 {
		corner(r, &s)
		return unique(s)
	}
	switch r.IntN(16) {
	case 0, 1: // several changes at once
		return Change(r, s)
	case 2:
		drop(r, &s.Pods)
	case 3:
		drop(r, &s.Endpoints)
	case 4:
		drop(r, &s.Policies)
	case 5:
		if drop(r, &s.Namespaces); len(s.Namespaces) == 0 || r.IntN(2) == 0 {
			s.Namespaces = slices.DeleteFunc(s.Namespaces, func(n policy.Namespace) bool { return n.Name == namespaces[2] })
			s.Namespaces = append(s.Namespaces, policy.Namespace{Name: namespaces[2], Labels: labels(r), Unknown: unknown(r)})
		}
	case 6, 7:
		changePod(r, &s, func(p *policy.Pod) { p.Labels = labels(r) })
	case 8:
		changePod(r, &s, func(p *policy.Pod) { moveAddress(r, p, families) })
	case 9:
		changePod(r, &s, func(p *policy.Pod) {
			switch r.IntN(5) {
			case 0:
				p.Ports = named(r)
			case 1:
				p.Finished = !p.Finished
			case 2:
				p.UID = pick(r, []string{"", "one", "two"})
			case 3:
				p.Unknown = unknown(r)
			case 4: // two manifests of one pod have different labels
				twin := *p
				twin.Labels = labels(r)
				s.Pods = append(s.Pods, twin)
			}
		})
	case 10: // a pod is added, and a random pod loses its addresses
		addPod(r, &s, 20+r.IntN(4), families)
		changePod(r, &s, func(p *policy.Pod) { p.Addresses = nil })
	case 11:
		attach(r, &s)
	case 12:
		if s.Nodes = nodes(r, families); r.IntN(4) == 0 {
			s.Nodes = nil
		}
	case 13:
		s.Workloads = workloads(r)
	case 14:
		s.Refused = refusals(r, s, compile)
	case 15:
		s.Policies = append(s.Policies, Policy(r, 10+r.IntN(10)))
	}
	return unique(s)
}

func unique(s policy.State) policy.State {
	seen := map[string]bool{}
	again := func(key string) bool {
		defer func() { seen[key] = true }()
		return seen[key]
	}
	s.Policies = slices.DeleteFunc(s.Policies, func(p *networkingv1.NetworkPolicy) bool {
		return again("policy " + p.Namespace + "/" + p.Name)
	})
	s.Endpoints = slices.DeleteFunc(s.Endpoints, func(e policy.Endpoint) bool { return again("endpoint " + e.ID) })
	s.Namespaces = slices.DeleteFunc(s.Namespaces, func(n policy.Namespace) bool { return again("namespace " + n.Name) })
	return s
}

func drop[T any](r *rand.Rand, list *[]T) {
	if len(*list) > 0 {
		i := r.IntN(len(*list))
		*list = slices.Delete(*list, i, i+1)
	}
}

func changePod(r *rand.Rand, s *policy.State, change func(*policy.Pod)) {
	if len(s.Pods) > 0 {
		i := r.IntN(len(s.Pods))
		p := s.Pods[i]
		change(&p)
		s.Pods[i] = p
	}
}

func moveAddress(r *rand.Rand, p *policy.Pod, families []conf.Family) {
	p.Addresses = nil
	for _, f := range families {
		network := pick(r, []netip.Prefix{Of[f].Subnet, Of[f].Elsewhere})
		for range 1 + r.IntN(2) {
			p.Addresses = append(p.Addresses, at(network, 2+r.IntN(10)))
		}
	}
}

func attach(r *rand.Rand, s *policy.State) {
	f := pick(r, conf.Families[:])
	pod := policy.PodRef{Namespace: pick(r, namespaces), Name: "w-bcdfg", UID: pick(r, []string{"", "one"})}
	if len(s.Pods) > 0 && r.IntN(3) > 0 {
		p := pick(r, s.Pods)
		pod = policy.PodRef{Namespace: p.Namespace, Name: p.Name, UID: p.UID}
	}
	network := pick(r, []netip.Prefix{Of[f].Subnet, Of[f].Subnet, Of[f].Elsewhere})
	s.Endpoints = append(s.Endpoints, policy.Endpoint{
		ID: pod.Name + pick(r, []string{":eth0", ":net1"}), Enforcement: conf.Strict, Pod: pod,
		Addresses: []policy.Address{{Addr: at(network, 2+r.IntN(10)), Subnet: network}},
	})
}

func workloads(r *rand.Rand) (all []policy.Workload) {
	for range r.IntN(3) {
		all = append(all, policy.Workload{
			Kind: "DaemonSet", Namespace: pick(r, namespaces), Name: "w",
			Pod: policy.Pod{Labels: labels(r), Ports: named(r)},
		})
	}
	return all
}

func refusals(r *rand.Rand, s policy.State, compile func(policy.State) ruleset.Ruleset) ruleset.Refused {
	if r.IntN(2) == 0 {
		return nil
	}
	refused := maps.Clone(s.Refused)
	if refused == nil {
		refused = ruleset.Refused{}
	}
	for _, set := range compile(s).Sets {
		if !set.Opens || r.IntN(3) > 0 {
			continue
		}
		refusal := ruleset.Refusal{Family: set.Family, Set: set.Name}
		for e := range set.Entries.All() {
			if r.IntN(2) == 0 {
				refusal.Element = e.Element
			}
		}
		refused[refusal] = "the set " + set.Name + ": no"
	}
	return refused
}
