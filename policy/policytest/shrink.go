package policytest

import (
	"fmt"
	"slices"
	"strings"

	corev1 "k8s.io/api/core/v1"
	networkingv1 "k8s.io/api/networking/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"sigs.k8s.io/yaml"

	"github.com/weir-net/weir/policy"
)

// Shrink returns a smaller state for which the parameter "fails" still returns true. If any one part of the returned
// state were also removed, "fails" would return false.
func Shrink(s policy.State, fails func(policy.State) bool) policy.State {
	for {
		i := slices.IndexFunc(smaller(s), fails)
		if i < 0 {
			return s
		}
		s = smaller(s)[i]
	}
}

func smaller(s policy.State) []policy.State {
	var all []policy.State
	with := func(change func(*policy.State)) {
		c := s
		change(&c)
		all = append(all, c)
	}
	for _, list := range without(s.Policies) {
		with(func(c *policy.State) { c.Policies = list })
	}
	for i, np := range s.Policies {
		for _, less := range smallerPolicies(np) {
			with(func(c *policy.State) {
				c.Policies = slices.Clone(s.Policies)
				c.Policies[i] = less
			})
		}
	}
	for _, list := range without(s.Endpoints) {
		with(func(c *policy.State) { c.Endpoints = list })
	}
	for i, e := range s.Endpoints {
		for _, list := range fewer(e.Addresses) {
			with(func(c *policy.State) {
				c.Endpoints = slices.Clone(s.Endpoints)
				c.Endpoints[i].Addresses = list
			})
		}
	}
	for i, p := range s.Pods {
		for _, list := range fewer(p.Addresses) {
			with(func(c *policy.State) {
				c.Pods = slices.Clone(s.Pods)
				c.Pods[i].Addresses = list
			})
		}
	}
	for _, list := range without(s.Pods) {
		with(func(c *policy.State) { c.Pods = list })
	}
	for i, p := range s.Pods {
		bare, unnamed := p, p
		bare.Labels, unnamed.Ports = nil, nil
		for _, less := range []policy.Pod{bare, unnamed} {
			if len(less.Labels)+len(less.Ports) < len(p.Labels)+len(p.Ports) {
				with(func(c *policy.State) {
					c.Pods = slices.Clone(s.Pods)
					c.Pods[i] = less
				})
			}
		}
	}
	if s.Nodes != nil || s.Node != "" {
		with(func(c *policy.State) { c.Nodes, c.Node = nil, "" })
	}
	for _, list := range without(s.Nodes) {
		with(func(c *policy.State) { c.Nodes = list })
	}
	for _, list := range without(s.Namespaces) {
		with(func(c *policy.State) { c.Namespaces = list })
	}
	return all
}

func smallerPolicies(np *networkingv1.NetworkPolicy) []*networkingv1.NetworkPolicy {
	var all []*networkingv1.NetworkPolicy
	with := func(change func(*networkingv1.NetworkPolicy)) {
		c := np.DeepCopy()
		change(c)
		all = append(all, c)
	}
	for _, list := range without(np.Spec.Ingress) {
		with(func(c *networkingv1.NetworkPolicy) { c.Spec.Ingress = list })
	}
	for _, list := range without(np.Spec.Egress) {
		with(func(c *networkingv1.NetworkPolicy) { c.Spec.Egress = list })
	}
	// The last peer or port of a rule stays, because a rule without peers or ports allows everything.
	for i, r := range np.Spec.Ingress {
		for _, list := range fewer(r.From) {
			with(func(c *networkingv1.NetworkPolicy) { c.Spec.Ingress[i].From = list })
		}
		for _, list := range fewer(r.Ports) {
			with(func(c *networkingv1.NetworkPolicy) { c.Spec.Ingress[i].Ports = list })
		}
	}
	for i, r := range np.Spec.Egress {
		for _, list := range fewer(r.To) {
			with(func(c *networkingv1.NetworkPolicy) { c.Spec.Egress[i].To = list })
		}
		for _, list := range fewer(r.Ports) {
			with(func(c *networkingv1.NetworkPolicy) { c.Spec.Egress[i].Ports = list })
		}
	}
	return all
}

func without[T any](list []T) [][]T {
	var all [][]T
	for i := range list {
		all = append(all, slices.Concat(list[:i], list[i+1:]))
	}
	return all
}

func fewer[T any](list []T) [][]T {
	if len(list) < 2 {
		return nil
	}
	return without(list)
}

// YAML returns the state as manifests, with endpoints as comments.
func YAML(s policy.State) string {
	var docs []string
	add := func(o any) {
		b, err := yaml.Marshal(o)
		if err != nil {
			panic(err)
		}
		docs = append(docs, string(b))
	}
	for _, n := range s.Namespaces {
		add(corev1.Namespace{
			TypeMeta:   metav1.TypeMeta{APIVersion: "v1", Kind: "Namespace"},
			ObjectMeta: metav1.ObjectMeta{Name: n.Name, Labels: n.Labels},
		})
	}
	for _, n := range s.Nodes {
		node := corev1.Node{
			TypeMeta:   metav1.TypeMeta{APIVersion: "v1", Kind: "Node"},
			ObjectMeta: metav1.ObjectMeta{Name: n.Name},
		}
		for _, p := range n.PodCIDRs {
			node.Spec.PodCIDRs = append(node.Spec.PodCIDRs, p.String())
		}
		add(node)
	}
	for _, p := range s.Pods {
		pod := corev1.Pod{
			TypeMeta:   metav1.TypeMeta{APIVersion: "v1", Kind: "Pod"},
			ObjectMeta: metav1.ObjectMeta{Namespace: p.Namespace, Name: p.Name, UID: types.UID(p.UID), Labels: p.Labels},
			Spec: corev1.PodSpec{
				NodeName:    p.NodeName,
				HostNetwork: p.HostNetwork,
				Containers:  []corev1.Container{{Name: "c"}},
			},
		}
		for _, n := range p.Ports {
			pod.Spec.Containers[0].Ports = append(pod.Spec.Containers[0].Ports, corev1.ContainerPort{
				Name: n.Name, ContainerPort: int32(n.Number), Protocol: corev1.Protocol(strings.ToUpper(string(n.Proto))),
			})
		}
		for _, a := range p.Addresses {
			pod.Status.PodIPs = append(pod.Status.PodIPs, corev1.PodIP{IP: a.String()})
		}
		if p.Finished {
			pod.Status.Phase = corev1.PodSucceeded
		}
		add(pod)
	}
	for _, np := range s.Policies {
		np = np.DeepCopy()
		np.TypeMeta = metav1.TypeMeta{APIVersion: "networking.k8s.io/v1", Kind: "NetworkPolicy"}
		add(np)
	}
	text := strings.Join(docs, "---\n") + fmt.Sprintf("# this node is %q\n", s.Node)
	for _, e := range s.Endpoints {
		text += fmt.Sprintf("# endpoint %s of pod %s %q, enforcement %s: %v\n", e.ID, e.Pod, e.Pod.UID, e.Enforcement,
			e.Addresses)
	}
	return text
}
