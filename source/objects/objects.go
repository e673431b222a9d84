// Package objects takes from Kubernetes' own types what policy needs of them. Every source goes through it, so that a
// pod means the same wherever it was read.
package objects

import (
	"errors"
	"fmt"
	"maps"
	"net/netip"
	"slices"
	"strings"

	corev1 "k8s.io/api/core/v1"

	"github.com/weir-net/weir/policy"
	"github.com/weir-net/weir/policy/ruleset"
)

// mirror is the annotation in which a static pod's API object carries the UID that its runtime knows it by.
const mirror = corev1.MirrorPodAnnotationKey

// Namespace of policy. The label with its name, which the API server sets and policies select by, is always there.
func Namespace(ns *corev1.Namespace) policy.Namespace {
	labels := maps.Clone(ns.Labels)
	if labels == nil {
		labels = map[string]string{}
	}
	labels[corev1.LabelMetadataName] = ns.Name
	return policy.Namespace{Name: ns.Name, Labels: labels}
}

// reader notes what of an object can't be read.
type reader struct {
	object   string
	problems []ruleset.Problem
}

func (r *reader) report(field, format string, args ...any) {
	r.problems = append(r.problems, ruleset.Problem{Object: r.object, Field: field, Message: fmt.Sprintf(format, args...)})
}

// address reads an address of a pod or node. 0.0.0.0 is nobody's, and no ipset takes it.
func (r *reader) address(field, s string) (netip.Addr, bool) {
	addr, err := netip.ParseAddr(s)
	if err != nil || addr.IsUnspecified() || addr.Zone() != "" {
		r.report(field, "%q is no IP address", s)
		return netip.Addr{}, false
	}
	return addr.Unmap(), true
}

// Error is the problems as one error, nil if there are none.
func Error(problems []ruleset.Problem) error {
	var errs []error
	for _, p := range problems {
		errs = append(errs, errors.New(p.Field+": "+p.Message))
	}
	return errors.Join(errs...)
}

// Pod of policy, without what of it can't be read.
func Pod(pod *corev1.Pod) (policy.Pod, []ruleset.Problem) {
	p := policy.Pod{
		Namespace: pod.Namespace, Name: pod.Name, UID: string(pod.UID), Labels: pod.Labels,
		NodeName: pod.Spec.NodeName, HostNetwork: pod.Spec.HostNetwork,
		Finished: pod.Status.Phase == corev1.PodSucceeded || pod.Status.Phase == corev1.PodFailed,
	}
	if uid := pod.Annotations[mirror]; uid != "" {
		p.UID = uid
	}
	ips := pod.Status.PodIPs
	if len(ips) == 0 && pod.Status.PodIP != "" {
		ips = []corev1.PodIP{{IP: pod.Status.PodIP}}
	}
	r := reader{object: "Pod " + pod.Namespace + "/" + pod.Name}
	p.Ports = r.namedPorts(pod.Spec)
	for i, ip := range ips {
		if addr, ok := r.address(fmt.Sprintf("status.podIPs[%d].ip", i), ip.IP); ok {
			p.Addresses = append(p.Addresses, addr)
		}
	}
	return p, r.problems
}

// PortContainers are the containers whose ports can be meant by name: the ordinary ones, then the init containers that go
// on running beside them (sidecars). The order matters, as for Services (k8s.io/kubernetes/pkg/api/v1/pod, FindPort):
// of two ports with the same name and protocol the first counts.
func PortContainers(spec corev1.PodSpec) []corev1.Container {
	all := slices.Clone(spec.Containers)
	for _, c := range spec.InitContainers {
		if c.RestartPolicy != nil && *c.RestartPolicy == corev1.ContainerRestartPolicyAlways {
			all = append(all, c)
		}
	}
	return all
}

func (r *reader) namedPorts(spec corev1.PodSpec) []policy.NamedPort {
	var named []policy.NamedPort
	for _, c := range PortContainers(spec) {
		for i, port := range c.Ports {
			if port.Name == "" {
				continue
			}
			n := policy.NamedPort{Name: port.Name, Proto: ruleset.Protocol(strings.ToLower(string(port.Protocol))), Number: uint16(port.ContainerPort)}
			if n.Proto == "" { // ContainerPort.protocol: "Defaults to TCP"
				n.Proto = ruleset.TCP
			}
			if port.ContainerPort < 1 || port.ContainerPort > 65535 {
				r.report(fmt.Sprintf("spec.containers[%s].ports[%d].containerPort", c.Name, i), "%d is not from 1 to 65535", port.ContainerPort)
				continue
			}
			if !slices.ContainsFunc(named, func(o policy.NamedPort) bool { return o.Name == n.Name && o.Proto == n.Proto }) {
				named = append(named, n)
			}
		}
	}
	return named
}

// Node of policy, without what of it can't be read. Which of its addresses and networks count is for policy.Settle.
func Node(node *corev1.Node) (policy.Node, []ruleset.Problem) {
	n := policy.Node{Name: node.Name, Created: node.CreationTimestamp.UTC()}
	r := reader{object: "Node " + node.Name}
	for i, a := range node.Status.Addresses {
		if a.Type != corev1.NodeInternalIP {
			continue
		}
		addr, err := netip.ParseAddr(a.Address)
		if err != nil || addr.Zone() != "" {
			r.report(fmt.Sprintf("status.addresses[%d].address", i), "%q is no IP address", a.Address)
			continue
		}
		n.Addresses = append(n.Addresses, addr.Unmap())
	}
	cidrs := node.Spec.PodCIDRs
	if len(cidrs) == 0 && node.Spec.PodCIDR != "" {
		cidrs = []string{node.Spec.PodCIDR}
	}
	for i, c := range cidrs {
		p, err := netip.ParsePrefix(c)
		if err != nil || p.Addr().Is4In6() {
			r.report(fmt.Sprintf("spec.podCIDRs[%d]", i), "%q is no CIDR of pods", c)
			continue
		}
		n.PodCIDRs = append(n.PodCIDRs, p.Masked())
	}
	return n, r.problems
}
