package policy

import (
	"cmp"
	"net/netip"
	"slices"

	"k8s.io/apimachinery/pkg/labels"

	"github.com/weir-net/weir/conf"
	"github.com/weir-net/weir/endpoint"
)

// cluster is the state, joined: who has which addresses, and which endpoint is which pod.
type cluster struct {
	pods      []member
	endpoints []local
}

// member is a pod with the addresses that are really its own.
type member struct {
	Pod
	namespace Namespace
	addresses []netip.Addr
}

// local is an endpoint with its pod, if the source knows it.
type local struct {
	endpoint.Endpoint
	known bool
	pod   Pod
}

// selectedBy says whether the policy isolates the endpoint's pod.
func (l local) selectedBy(iso isolation) bool {
	return l.Enforcement != conf.Off && iso.selects(l.pod)
}

func (iso isolation) selects(p Pod) bool {
	return p.Namespace == iso.namespace && iso.pods.Matches(labels.Set(p.Labels))
}

func index(state State) cluster {
	namespaces := map[string]Namespace{}
	for _, n := range state.Namespaces {
		namespaces[n.Name] = n
	}
	type name struct{ namespace, name string }
	pods := map[name]Pod{}
	for _, p := range state.Pods {
		pods[name{p.Namespace, p.Name}] = p
	}
	var c cluster
	taken := map[netip.Addr]bool{}
	addresses := map[name][]netip.Addr{}
	for _, e := range slices.SortedFunc(slices.Values(state.Endpoints), func(a, b endpoint.Endpoint) int { return cmp.Compare(a.ID(), b.ID()) }) {
		k := name{e.Pod.Namespace, e.Pod.Name}
		pod, ok := pods[k]
		l := local{Endpoint: e, pod: pod, known: (ok && SameUID(pod.UID, e.Pod.UID)) || e.Enforcement == conf.Off}
		c.endpoints = append(c.endpoints, l)
		for _, a := range e.Addresses {
			taken[a.Addr] = true
			if l.known {
				addresses[k] = append(addresses[k], a.Addr)
			}
		}
	}
	for _, p := range state.Pods {
		m := member{Pod: p, namespace: namespaces[p.Namespace], addresses: addresses[name{p.Namespace, p.Name}]}
		if m.addresses == nil && !p.Finished {
			for _, a := range p.Addresses {
				// The address of a pod that is being torn down may have an endpoint of another pod's by now.
				if !taken[a] {
					m.addresses = append(m.addresses, a)
				}
			}
		}
		if !p.HostNetwork {
			c.pods = append(c.pods, m)
		}
	}
	return c
}

// SameUID says whether an endpoint's pod is the one that the source knows; where either side has no UID, the name
// decides.
func SameUID(source, endpoint string) bool {
	return source == "" || endpoint == "" || source == endpoint
}

// selected are the addresses of the pods that the selector means.
func (c cluster) selected(s selector) []Entry {
	var entries []Entry
	for _, p := range c.pods {
		if !s.matches(p.namespace, p.Pod) {
			continue
		}
		for _, a := range p.addresses {
			if a.Is4() {
				entries = append(entries, Entry{hostPrefix(a), p.Namespace + "/" + p.Name})
			}
		}
	}
	return entries
}
