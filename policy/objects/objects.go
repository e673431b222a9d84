// Package objects takes from Kubernetes' own types what policy needs of them. Every source goes through it, so that a
// pod means the same wherever it was read.
package objects

import (
	"errors"
	"fmt"
	"maps"
	"net/netip"

	corev1 "k8s.io/api/core/v1"

	"github.com/weir-net/weir/policy"
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

// Pod of policy; the error names the field that can't be read.
func Pod(pod *corev1.Pod) (policy.Pod, error) {
	p := policy.Pod{
		Namespace: pod.Namespace, Name: pod.Name, UID: string(pod.UID), Labels: pod.Labels, HostNetwork: pod.Spec.HostNetwork,
		Finished: pod.Status.Phase == corev1.PodSucceeded || pod.Status.Phase == corev1.PodFailed,
	}
	if uid := pod.Annotations[mirror]; uid != "" {
		p.UID = uid
	}
	ips := pod.Status.PodIPs
	if len(ips) == 0 && pod.Status.PodIP != "" {
		ips = []corev1.PodIP{{IP: pod.Status.PodIP}}
	}
	var errs []error
	for i, ip := range ips {
		addr, err := netip.ParseAddr(ip.IP)
		if err != nil {
			errs = append(errs, fmt.Errorf("status.podIPs[%d].ip: %q is no IP address", i, ip.IP))
			continue
		}
		p.Addresses = append(p.Addresses, addr.Unmap())
	}
	return p, errors.Join(errs...)
}

// Node of policy; the error names the field that can't be read.
func Node(node *corev1.Node) (policy.Node, error) {
	n := policy.Node{Name: node.Name}
	var errs []error
	for i, a := range node.Status.Addresses {
		if a.Type != corev1.NodeInternalIP {
			continue
		}
		addr, err := netip.ParseAddr(a.Address)
		if err != nil {
			errs = append(errs, fmt.Errorf("status.addresses[%d].address: %q is no IP address", i, a.Address))
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
		if err != nil {
			errs = append(errs, fmt.Errorf("spec.podCIDRs[%d]: %q is no CIDR", i, c))
			continue
		}
		n.PodCIDRs = append(n.PodCIDRs, p.Masked())
	}
	return n, errors.Join(errs...)
}
