package reach

import (
	"net/netip"
	"slices"

	"k8s.io/apimachinery/pkg/labels"
	"k8s.io/apimachinery/pkg/util/intstr"

	"github.com/weir-net/weir/policy"
	"github.com/weir-net/weir/policy/ruleset"
)

// ServicePort is a port of a Service, and the pods' ports to which it leads. For a headless Service without ports, only
// the field Service is set: the Service's name in DNS has the addresses of its pods, so every port of the pods can be
// reached.
type ServicePort struct {
	Service string           `json:"service"` // namespace/name
	Proto   ruleset.Protocol `json:"protocol,omitempty"`
	Port    uint16           `json:"port,omitempty"`
	Targets []uint16         `json:"targets,omitempty"`
}

// LeadsTo reports whether the Service leads to one of the ports. A headless Service without ports leads to all ports.
func (s ServicePort) LeadsTo(ports Ports) bool {
	if s.Port == 0 {
		return true
	}
	return slices.ContainsFunc(s.Targets, func(target uint16) bool { return ports.Contains(s.Proto, target) })
}

func (u *universe) servicesOf(units []unit) (all []ServicePort) {
	for i := range u.services {
		s := &u.services[i]
		if s.Headless && len(s.Ports) == 0 && leadsTo(s, units) {
			all = append(all, ServicePort{Service: s.String()})
		}
		for _, port := range s.Ports {
			var targets []uint16
			for _, one := range units {
				targets = append(targets, targetsOf(s, port, one)...)
			}
			if s.Headless && leadsTo(s, units) {
				targets = []uint16{port.Port} // the port of a headless Service isn't translated
			}
			slices.Sort(targets)
			if targets = slices.Compact(targets); len(targets) > 0 {
				all = append(all, ServicePort{s.String(), port.Proto, port.Port, targets})
			}
		}
	}
	return all
}

// leadsTo reports whether the headless Service's name in DNS leads to an address of one of the units.
func leadsTo(s *policy.Service, units []unit) bool {
	return slices.ContainsFunc(units, func(one unit) bool {
		if s.Endpoints == nil {
			return isSelected(s, one)
		}
		return slices.ContainsFunc(s.Endpoints, func(e policy.ServiceEndpoint) bool {
			return slices.Contains(one.addresses[:], e.Address)
		})
	})
}

func isSelected(s *policy.Service, one unit) bool {
	return len(s.Selector) > 0 && s.Namespace == one.pod.Namespace &&
		labels.SelectorFromSet(s.Selector).Matches(labels.Set(one.pod.Labels))
}

func targetsOf(s *policy.Service, port policy.ServicePort, one unit) (all []uint16) {
	if s.Endpoints != nil {
		for _, e := range s.Endpoints {
			if !slices.ContainsFunc(one.addresses[:], func(a netip.Addr) bool { return a == e.Address }) {
				continue
			}
			for _, p := range e.Ports {
				if p.Name == port.Name && p.Proto == port.Proto {
					all = append(all, p.Number)
				}
			}
		}
		return all
	}
	if !isSelected(s, one) {
		return nil
	}
	if port.Target.Type == intstr.Int {
		return []uint16{uint16(port.Target.IntVal)}
	}
	for _, n := range one.pod.Ports {
		if n.Name == port.Target.StrVal && n.Proto == port.Proto {
			all = append(all, n.Number)
		}
	}
	return all
}
