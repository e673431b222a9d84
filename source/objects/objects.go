// Package objects converts Kubernetes' types to those of package policy. All sources use it, so that a pod means the
// same wherever it was read. A field that can't be read is reported as a problem of the object, and left out.
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

// mirrorAnnotation, on the API object of a static pod, has the UID that the runtime knows.
const mirrorAnnotation = corev1.MirrorPodAnnotationKey

// Namespace converts a namespace. It sets the label kubernetes.io/metadata.name to the namespace's name, as the API
// server does, because policies select by this label.
func Namespace(ns *corev1.Namespace) policy.Namespace {
	labels := maps.Clone(ns.Labels)
	if labels == nil {
		labels = map[string]string{}
	}
	labels[corev1.LabelMetadataName] = ns.Name
	return policy.Namespace{Name: ns.Name, Labels: labels}
}

// reader collects the problems of the fields that it reads.
type reader struct {
	object   string
	problems []ruleset.Problem
}

func (r *reader) report(field, format string, args ...any) {
	message := fmt.Sprintf(format, args...)
	r.problems = append(r.problems, ruleset.Problem{Object: r.object, Field: field, Message: message})
}

// address reads an address of a pod. It reports and refuses what is no address, an address with a zone, and 0.0.0.0 and
// ::, which no pod has and no ipset accepts.
func (r *reader) address(field, s string) (netip.Addr, bool) {
	addr, err := netip.ParseAddr(s)
	if err != nil || addr.IsUnspecified() || addr.Zone() != "" {
		r.report(field, "%q is no IP address", s)
		return netip.Addr{}, false
	}
	return addr.Unmap(), true
}

// Error returns the problems as one error; nil if there are none.
func Error(problems []ruleset.Problem) error {
	var errs []error
	for _, p := range problems {
		errs = append(errs, errors.New(p.Field+": "+p.Message))
	}
	return errors.Join(errs...)
}

// Pod converts a pod, and returns the problems of fields that can't be read.
func Pod(pod *corev1.Pod) (policy.Pod, []ruleset.Problem) {
	p := policy.Pod{
		Namespace: pod.Namespace, Name: pod.Name, UID: string(pod.UID), Labels: pod.Labels,
		NodeName: pod.Spec.NodeName, HostNetwork: pod.Spec.HostNetwork,
		Finished: pod.Status.Phase == corev1.PodSucceeded || pod.Status.Phase == corev1.PodFailed,
	}
	if uid := pod.Annotations[mirrorAnnotation]; uid != "" {
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

// PortContainers returns the containers that can have named ports: ordinary ones, then init containers that keep
// running beside them (sidecars). Their order matters, as for Services (k8s.io/kubernetes/pkg/api/v1/pod, FindPort): of
// two ports with the same name and protocol the first counts.
func PortContainers(spec corev1.PodSpec) []corev1.Container {
	all := slices.Clone(spec.Containers)
	for _, c := range spec.InitContainers {
		if c.RestartPolicy != nil && *c.RestartPolicy == corev1.ContainerRestartPolicyAlways {
			all = append(all, c)
		}
	}
	return all
}

// namedPorts returns the pod's named ports. Of ports with the same name and protocol, the first counts. A port whose
// number isn't from 1 to 65535 is reported and left out.
func (r *reader) namedPorts(spec corev1.PodSpec) []policy.NamedPort {
	var named []policy.NamedPort
	for _, c := range PortContainers(spec) {
		for i, port := range c.Ports {
			if port.Name == "" {
				continue
			}
			proto := ruleset.Protocol(strings.ToLower(string(port.Protocol)))
			n := policy.NamedPort{Name: port.Name, Proto: proto, Number: uint16(port.ContainerPort)}
			if n.Proto == "" { // ContainerPort.protocol: "Defaults to TCP"
				n.Proto = ruleset.TCP
			}
			if port.ContainerPort < 1 || port.ContainerPort > 65535 {
				r.report(fmt.Sprintf("spec.containers[%s].ports[%d].containerPort", c.Name, i),
					"%d is not from 1 to 65535", port.ContainerPort)
				continue
			}
			if !slices.ContainsFunc(named, func(o policy.NamedPort) bool { return o.Name == n.Name && o.Proto == n.Proto }) {
				named = append(named, n)
			}
		}
	}
	return named
}

// Node converts a node, with its internal addresses, and returns the problems of fields that can't be read.
// policy.Settle decides which of the addresses and networks count.
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
