package reach

import (
	"cmp"
	"slices"

	"github.com/weir-net/weir/conf"
	"github.com/weir-net/weir/policy/ruleset"
)

// Rules returns the rules of all policies that isolate a party, ordered by the policies' names.
func (m *Matrix) Rules() (all []Rule) {
	k, parties := m.classifier, m.Parties
	subjects := map[[2]string][]int{} // by policy and direction
	for i, p := range parties {
		for _, name := range p.Ingress {
			key := [2]string{name, string(ruleset.Ingress)}
			subjects[key] = append(subjects[key], i)
		}
		for _, name := range p.Egress {
			key := [2]string{name, string(ruleset.Egress)}
			subjects[key] = append(subjects[key], i)
		}
	}
	with := map[[2]string]bool{}
	for n, t := range k.list {
		key := [2]string{t.Policy, string(t.Direction())}
		with[key] = true
		r := Rule{Policy: t.Policy, Field: t.Field(), Subjects: subjects[key]}
		ports := slices.Clone(k.ports[n])
		destinations := r.Subjects
		for i := range parties {
			if k.means(n, i) {
				r.Peers = append(r.Peers, i)
			}
		}
		if t.Direction() == ruleset.Egress {
			destinations = r.Peers
		}
		for _, i := range destinations {
			for _, end := range k.ends[i][k.state] {
				if t.ByName() && end.known {
					ports.or(k.portsOf(t, end.End))
				}
			}
		}
		r.Ports = k.space.ports(k.space.number(ports))
		all = append(all, r)
	}
	for key, list := range subjects {
		if !with[key] {
			all = append(all, Rule{Policy: key[0], Field: key[1], Subjects: list})
		}
	}
	slices.SortFunc(all, func(a, b Rule) int {
		return cmp.Or(cmp.Compare(a.Policy, b.Policy), cmp.Compare(len(a.Field), len(b.Field)), cmp.Compare(a.Field, b.Field))
	})
	return all
}

func (k *classifier) means(rule, party int) bool {
	for f := range conf.Families {
		if c := k.classOfParty[f][party]; c >= 0 && k.classes[f][c].peer.has(rule) {
			return true
		}
	}
	return false
}
