package client

import (
	"cmp"
	"fmt"
	"maps"
	"slices"
	"strings"

	"github.com/weir-net/weir/policy"
	"github.com/weir-net/weir/policy/enforced"
)

// goal says for which pods weirctl wait waits: for one pod, or if pod is nil, for all pods of a policy's namespace.
type goal struct {
	namespace string
	pod       *expectedPod
}

// question returns the question for the node. If g.pod runs on another node, the question is only about this pod's
// addresses in the node's sets of peers: the sets of the addresses that the policies' rules select.
func (g goal) question(x *expected, node string) enforced.Question {
	q := enforced.Question{At: x.at, Namespaces: []string{g.namespace}}
	if g.pod == nil {
		return q
	}
	if q.Namespaces = []string{g.pod.Namespace}; node != g.pod.NodeName {
		q.Namespaces, q.Peers = nil, g.pod.Addresses
	}
	return q
}

func (g goal) concerned(x *expected) (nodes []string) {
	for node, pods := range x.byNode {
		var concerns bool
		if g.pod == nil {
			concerns = slices.ContainsFunc(pods, func(p expectedPod) bool { return p.Namespace == g.namespace })
		} else {
			concerns = node == g.pod.NodeName ||
				slices.ContainsFunc(pods, func(p expectedPod) bool { return x.policed[p.Namespace] })
		}
		if concerns {
			nodes = append(nodes, node)
		}
	}
	slices.Sort(nodes)
	return nodes
}

// unseen lists the kinds of objects that the agent hasn't seen up to the newest change. For each kind it gives the
// resource version that the agent has seen, and the newest one.
func unseen(seen, newest enforced.Position) string {
	var kinds []string
	for _, k := range []struct {
		name         string
		seen, newest uint64
	}{
		{"pods", seen.Pods, newest.Pods},
		{"namespaces", seen.Namespaces, newest.Namespaces},
		{"nodes", seen.Nodes, newest.Nodes},
		{"networkpolicies", seen.Policies, newest.Policies},
	} {
		if k.seen < k.newest {
			kinds = append(kinds, fmt.Sprintf("%s up to version %d of %d", k.name, k.seen, k.newest))
		}
	}
	return strings.Join(kinds, ", ")
}

func (g goal) lacks(x *expected, node string, q enforced.Question, a enforced.Answer) string {
	switch {
	case len(a.Faults) > 0:
		return strings.Join(a.Faults, "; ")
	case !a.At.Includes(x.at):
		return "the agent has not seen the newest objects yet: " + unseen(a.At, x.at)
	}
	pods := x.byNode[node]
	if g.pod != nil {
		if q.Peers != nil {
			return differInPeers(a.ShortForm, x.on(node, a.Endpoints, q))
		}
		pods = []expectedPod{*g.pod}
	}
	for _, p := range pods {
		if q.Namespaces[0] != p.Namespace || p.deleting || len(p.Addresses) == 0 {
			continue
		}
		if !slices.ContainsFunc(a.Endpoints, p.is) {
			return fmt.Sprintf("the node has no attachment of the pod %s/%s (UID %s)", p.Namespace, p.Name, p.UID)
		}
	}
	want := x.on(node, a.Endpoints, q)
	by := map[string]policy.Endpoint{}
	for _, e := range a.Endpoints {
		by[e.ID] = e
	}
	for i, w := range want.Pods {
		known := slices.ContainsFunc(pods, func(p expectedPod) bool { return p.is(by[w.ID]) })
		if !known { // the pod came after the objects were read, or is gone
			continue
		}
		if i >= len(a.ShortForm.Pods) || a.ShortForm.Pods[i].ID != w.ID || a.ShortForm.Pods[i].Address != w.Address {
			return "the agent's answer has other pods than its attachments: it is of another version"
		}
		if why := differs(a, want, i); why != "" {
			return why
		}
	}
	return ""
}

func differs(a enforced.Answer, want enforced.ShortForm, i int) string {
	w, h := want.Pods[i], a.ShortForm.Pods[i]
	for _, direction := range []struct{ name, want, have string }{
		{"ingress", w.Ingress, h.Ingress}, {"egress", w.Egress, h.Egress},
	} {
		if direction.have == "" {
			if direction.want == "" {
				continue // the pod must be closed in this direction, and it is
			}
			return fmt.Sprintf("the pod %s is in no %s class, so it is closed", w.Pod, direction.name)
		}
		wanted, have := want.Classes[direction.want], a.ShortForm.Classes[direction.have]
		if wanted.Equal(have) {
			continue
		}
		return fmt.Sprintf("%s of the pod %s: %s", direction.name, w.Pod, classDiffers(have, wanted, a))
	}
	return ""
}

func classDiffers(have, want enforced.Class, a enforced.Answer) string {
	list := func(c enforced.Class) string {
		if len(c.Audited) > 0 {
			return "audited policies: " + strings.Join(c.Audited, ", ")
		}
		return cmp.Or(strings.Join(c.Policies, ", "), "no policy")
	}
	switch {
	case !slices.Equal(have.Policies, want.Policies), !slices.Equal(have.Audited, want.Audited):
		return fmt.Sprintf("it is under %s, and should be under %s", list(have), list(want))
	case have.Chain != want.Chain && len(a.Problems) > 0:
		return fmt.Sprintf("a policy can't be enforced as written: %s", a.Problems[0])
	case have.Chain != want.Chain:
		return fmt.Sprintf("%s has other rules (%s) than its object now means (%s); the node runs %s", list(have),
			have.Chain, want.Chain, a.Version)
	}
	return setsDiffer(have.Sets, want.Sets)
}

func setsDiffer(have, want []enforced.Set) string {
	for _, w := range want {
		i := slices.IndexFunc(have, func(h enforced.Set) bool { return h.Name == w.Name })
		if i < 0 {
			return fmt.Sprintf("the set %s is missing", w.Name)
		}
		if have[i] != w {
			return fmt.Sprintf("the set %s has %d entries, and should have %d with other contents", w.Name, have[i].Entries,
				w.Entries)
		}
	}
	return ""
}

func differInPeers(have, want enforced.ShortForm) string {
	sets := func(of enforced.ShortForm) map[string]enforced.Set {
		all := map[string]enforced.Set{}
		for _, c := range of.Classes {
			for _, s := range c.Sets {
				if s.Entries > 0 {
					all[s.Name] = s
				}
			}
		}
		return all
	}
	h, w := sets(have), sets(want)
	for _, name := range slices.Sorted(maps.Keys(w)) {
		if h[name] != w[name] {
			return fmt.Sprintf("the set %s doesn't have the pod's addresses yet", name)
		}
	}
	for _, name := range slices.Sorted(maps.Keys(h)) {
		if _, wanted := w[name]; !wanted {
			return fmt.Sprintf("the set %s still has the pod's addresses", name)
		}
	}
	return ""
}
