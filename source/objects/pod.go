package objects

import (
	"fmt"
	"iter"
	"maps"
	"net/netip"
	"slices"

	corev1 "k8s.io/api/core/v1"

	"github.com/weir-net/weir/policy"
	"github.com/weir-net/weir/policy/ruleset"
)

// Pod converts a pod, and returns the problems of fields that can't be read.
func Pod(pod *corev1.Pod) (policy.Pod, []ruleset.Problem) {
	p := policy.Pod{
		Namespace: pod.Namespace, Name: pod.Name, UID: uid(pod), Labels: pod.Labels,
		NodeName: pod.Spec.NodeName, HostNetwork: pod.Spec.HostNetwork, Finished: finished(pod),
	}
	r := reader{object: "Pod " + pod.Namespace + "/" + pod.Name}
	p.Ports = r.namedPorts(&pod.Spec)
	for h := range hostPorts(&pod.Spec) {
		p.HostPorts = append(p.HostPorts, h)
	}
	for i, ip := range ips(&pod.Status) {
		if addr, ok := address(ip); ok {
			p.Addresses = append(p.Addresses, addr)
		} else {
			r.report(fmt.Sprintf("status.podIPs[%d].ip", i), "%q is no IP address", ip)
		}
	}
	return p, r.problems
}

// IsPod reports whether Pod would return exactly p for this pod, without problems. It allocates no memory: sources call
// it for each event, and most events change nothing that policy needs.
func IsPod(p *policy.Pod, pod *corev1.Pod) bool {
	if p.Namespace != pod.Namespace || p.Name != pod.Name || p.UID != uid(pod) || p.NodeName != pod.Spec.NodeName ||
		p.HostNetwork != pod.Spec.HostNetwork || p.Finished != finished(pod) || p.Unknown != nil ||
		!maps.Equal(p.Labels, pod.Labels) {
		return false
	}
	hosts := p.HostPorts
	for h := range hostPorts(&pod.Spec) {
		if len(hosts) == 0 || hosts[0] != h {
			return false
		}
		hosts = hosts[1:]
	}
	addresses := p.Addresses
	for _, ip := range ips(&pod.Status) {
		addr, ok := address(ip)
		if !ok || len(addresses) == 0 || addresses[0] != addr {
			return false
		}
		addresses = addresses[1:]
	}
	return len(hosts)+len(addresses) == 0 && isPorts(p.Ports, &pod.Spec)
}

func hostPorts(spec *corev1.PodSpec) iter.Seq[policy.HostPort] {
	return func(yield func(policy.HostPort) bool) {
		for c := range portContainers(spec) {
			for i := range c.Ports {
				port := &c.Ports[i]
				if spec.HostNetwork || port.HostPort < 1 || port.HostPort > 65535 || !valid(port) {
					continue
				}
				at, ok := address(port.HostIP)
				if !ok && port.HostIP != "" && port.HostIP != "0.0.0.0" && port.HostIP != "::" {
					continue
				}
				h := policy.HostPort{
					Proto: namedPort(port).Proto, Address: at, Port: uint16(port.HostPort), Target: uint16(port.ContainerPort),
				}
				if !yield(h) {
					return
				}
			}
		}
	}
}

func isPorts(ports []policy.NamedPort, spec *corev1.PodSpec) bool {
	seen := 0
	for c := range portContainers(spec) {
		for i := range c.Ports {
			port := &c.Ports[i]
			if port.Name == "" {
				continue
			}
			n := namedPort(port)
			switch {
			case !valid(port):
				return false
			case slices.ContainsFunc(ports[:seen], namesake(n)):
			case seen == len(ports) || ports[seen] != n:
				return false
			default:
				seen++
			}
		}
	}
	return seen == len(ports)
}

// uid returns the UID by which the runtime knows the pod. For a static pod, the API object has this UID in an
// annotation.
func uid(pod *corev1.Pod) string {
	if uid := pod.Annotations[corev1.MirrorPodAnnotationKey]; uid != "" {
		return uid
	}
	return string(pod.UID)
}

func finished(pod *corev1.Pod) bool {
	return pod.Status.Phase == corev1.PodSucceeded || pod.Status.Phase == corev1.PodFailed
}

// Unready reports whether Services send no traffic to the pod: it is being deleted, is pending, or has the condition
// Ready with another status than True. A pod without a status, as in a manifest, counts as ready.
func Unready(pod *corev1.Pod) bool {
	notReady := func(c corev1.PodCondition) bool { return c.Type == corev1.PodReady && c.Status != corev1.ConditionTrue }
	return pod.DeletionTimestamp != nil || pod.Status.Phase == corev1.PodPending ||
		slices.ContainsFunc(pod.Status.Conditions, notReady)
}

func ips(s *corev1.PodStatus) iter.Seq2[int, string] {
	return func(yield func(int, string) bool) {
		if len(s.PodIPs) == 0 && s.PodIP != "" {
			yield(0, s.PodIP)
			return
		}
		for i := range s.PodIPs {
			if !yield(i, s.PodIPs[i].IP) {
				return
			}
		}
	}
}

// address parses an address of a pod. It refuses an address with a zone, and the addresses 0.0.0.0 and ::, because the
// kernel's sets can't contain them.
func address(s string) (netip.Addr, bool) {
	addr, err := netip.ParseAddr(s)
	if err != nil || addr.IsUnspecified() || addr.Zone() != "" {
		return netip.Addr{}, false
	}
	return addr.Unmap(), true
}

// portContainers yields the containers that can have named ports: first the ordinary containers, then sidecars.
// Services use the same order (FindPort in k8s.io/kubernetes/pkg/api/v1/pod).
func portContainers(spec *corev1.PodSpec) iter.Seq[*corev1.Container] {
	return func(yield func(*corev1.Container) bool) {
		for i := range spec.Containers {
			if !yield(&spec.Containers[i]) {
				return
			}
		}
		for i := range spec.InitContainers {
			c := &spec.InitContainers[i]
			if c.RestartPolicy != nil && *c.RestartPolicy == corev1.ContainerRestartPolicyAlways && !yield(c) {
				return
			}
		}
	}
}

// namedPorts returns the pod's named ports. Of several ports with the same name and protocol, it returns only the
// first.
func (r *reader) namedPorts(spec *corev1.PodSpec) []policy.NamedPort {
	var named []policy.NamedPort
	for c := range portContainers(spec) {
		for i := range c.Ports {
			port := &c.Ports[i]
			if port.Name == "" {
				continue
			}
			if !valid(port) {
				r.report(fmt.Sprintf("spec.containers[%s].ports[%d].containerPort", c.Name, i),
					"%d is not from 1 to 65535", port.ContainerPort)
				continue
			}
			n := namedPort(port)
			if !slices.ContainsFunc(named, namesake(n)) {
				named = append(named, n)
			}
		}
	}
	return named
}

func namesake(n policy.NamedPort) func(policy.NamedPort) bool {
	return func(o policy.NamedPort) bool { return o.Name == n.Name && o.Proto == n.Proto }
}

func valid(port *corev1.ContainerPort) bool {
	return port.ContainerPort >= 1 && port.ContainerPort <= 65535
}

func namedPort(port *corev1.ContainerPort) policy.NamedPort {
	return policy.NamedPort{Name: port.Name, Number: uint16(port.ContainerPort), Proto: protocol(port.Protocol)}
}
