package reach

import (
	"fmt"
	"slices"
	"strings"
)

// String returns the party's name, and the number of its pods if it has several.
func (p Party) String() string {
	if n := p.Count(); n > 1 {
		return fmt.Sprintf("%s (%d pods)", p.Name, n)
	}
	return p.Name
}

// Count returns the number of the party's pods. Pods has a pod once for each of its attachments, but Count counts the
// pod once.
func (p Party) Count() int { return len(slices.Compact(slices.Sorted(slices.Values(p.Pods)))) }

// Words returns short names for the parties, such as "everyone", "all pods in shop" or "the world". The parameter
// "other" has the parties at the other ends of the connections.
func (m *Matrix) Words(parties, other []int) []string {
	in := map[int]bool{}
	for _, i := range parties {
		in[i] = true
	}
	// If "other" is one party with one pod, "itself" is this party. Otherwise "itself" is -1. The party may be missing in
	// "parties", because the matrix leaves out connections from a pod to itself.
	itself := -1
	if len(other) == 1 && len(m.Parties[other[0]].Pods) == 1 {
		itself = other[0]
	}
	all, inNamespace, inWorld := m.split()
	complete := func(list []int) bool {
		return len(list) > 0 && !slices.ContainsFunc(list, func(i int) bool {
			return !in[i] && (i != itself || len(list) < 3) // a list of 3 or more is complete even without itself
		})
	}
	var words []string
	named := func(list []int) {
		for _, i := range list {
			if in[i] {
				words = append(words, m.Parties[i].String())
			}
		}
	}
	everywhere, everyPod := complete(inWorld), complete(all)
	switch missing := m.missing(all, in, itself); {
	case everywhere && everyPod:
		return []string{"everyone"}
	case everyPod && len(all) > 1:
		words = append(words, "all pods")
	case len(missing) <= maxMissing && len(all)-len(missing) > 2*maxMissing:
		words = append(words, "all pods (except "+strings.Join(missing, ", ")+")")
	default:
		for _, list := range inNamespace {
			if complete(list) && len(list) > 1 {
				words = append(words, "all pods in "+m.Parties[list[0]].Namespace)
			} else {
				named(list)
			}
		}
	}
	if everywhere {
		return append(words, "the world")
	}
	named(inWorld)
	return words
}

const maxMissing = 2

func (m *Matrix) missing(all []int, in map[int]bool, itself int) (names []string) {
	for _, i := range all {
		if !in[i] && i != itself {
			if names = append(names, m.Parties[i].String()); len(names) > maxMissing {
				break
			}
		}
	}
	return names
}

func (m *Matrix) split() (pods []int, inNamespace [][]int, world []int) {
	for i, p := range m.Parties {
		switch {
		case p.Kind == World:
			world = append(world, i)
			continue
		case len(pods) == 0 || m.Parties[pods[len(pods)-1]].Namespace != p.Namespace:
			inNamespace = append(inNamespace, nil)
		}
		pods = append(pods, i)
		last := len(inNamespace) - 1
		inNamespace[last] = append(inNamespace[last], i)
	}
	return pods, inNamespace, world
}
