package explain

import (
	"fmt"
	"slices"
	"strings"

	"k8s.io/apimachinery/pkg/labels"
	"k8s.io/apimachinery/pkg/util/intstr"

	"github.com/weir-net/weir/conf"
	"github.com/weir-net/weir/policy"
	"github.com/weir-net/weir/policy/ruleset"
)

func (x *explainer) targets(to Ref, port Port) ([]target, error) {
	if to.Kind == EndService {
		return x.serviceTargets(to, port)
	}
	places, err := x.places(to)
	if err != nil {
		return nil, err
	}
	ports, err := x.ports(to, port)
	if err != nil {
		return nil, err
	}
	var all []target
	for _, place := range places {
		for _, p := range ports {
			all = append(all, target{Place: place, proto: p.Proto, port: p.Number})
		}
	}
	return all, nil
}

func (x *explainer) ports(to Ref, port Port) ([]policy.NamedPort, error) {
	if port.Number != 0 || (port.Name == "" && port.Proto == ruleset.ICMP) {
		return []policy.NamedPort{{Proto: port.Proto, Number: port.Number}}, nil
	}
	var named []policy.NamedPort
	var known []string
	for _, p := range x.pods(to.Namespace, to.Name) {
		for _, n := range p.Ports {
			known = append(known, fmt.Sprintf("%s (%d/%s)", n.Name, n.Number, strings.ToUpper(string(n.Proto))))
			if port.Name == "" || (n.Name == port.Name && n.Proto == port.Proto) {
				named = append(named, n)
			}
		}
	}
	switch {
	case len(named) > 0:
		return named, nil
	case port.Name == "":
		form := to.String()
		if to.Kind == EndAddress && to.Address.Is6() {
			form = "[" + form + "]"
		}
		return nil, inputError("which port of %s? Write %s:PORT, %s:PORT/udp or %s:/icmp", to, form, form, form)
	case len(known) > 0:
		return nil, inputError("%s has no %s port %s; it has %s", to, strings.ToUpper(string(port.Proto)), port.Name,
			strings.Join(known, ", "))
	}
	return nil, inputError("%s has no named ports: write the number of the port instead of %s", to, port.Name)
}

func (x *explainer) serviceTargets(to Ref, port Port) ([]target, error) {
	s := x.service(to)
	var ports []policy.ServicePort
	var known []string
	for _, p := range s.Ports {
		form := fmt.Sprintf("%d/%s", p.Port, strings.ToUpper(string(p.Proto)))
		if p.Name != "" {
			form = p.Name + " (" + form + ")"
		}
		known = append(known, form)
		none := port.Number == 0 && port.Name == ""
		if none || (p.Proto == port.Proto && (p.Port == port.Number || (p.Name != "" && p.Name == port.Name))) {
			ports = append(ports, p)
		}
	}
	switch {
	case s.Kind == "ExternalName":
		return nil, inputError("%s is only a name for a host outside of the cluster: ask about the host's address", to)
	case len(s.Ports) == 0:
		return nil, inputError("%s has no ports", to)
	case len(ports) == 0:
		return nil, inputError("%s has no port %s; it has %s", to, portForm(port), strings.Join(known, ", "))
	}
	var all []target
	for _, p := range ports {
		ready := x.endpoints(s, p)
		if len(ready) == 0 {
			x.Notes = append(x.Notes, x.noEndpoints(s, p))
		}
		if more := len(ready) - maxPaths; more > 0 {
			x.Notes = append(x.Notes, fmt.Sprintf("%s has %d more endpoints, which are left out", to, more))
			ready = ready[:maxPaths]
		}
		all = append(all, ready...)
	}
	return all, nil
}

func portForm(p Port) string {
	number := p.Name
	if p.Number != 0 {
		number = fmt.Sprint(p.Number)
	}
	return number + "/" + strings.ToUpper(string(p.Proto))
}

func (x *explainer) endpoints(s *policy.Service, p policy.ServicePort) (all []target) {
	through := fmt.Sprintf("svc/%s port %d", s, p.Port)
	add := func(place Place, number uint16) {
		t := target{Place: place, proto: p.Proto, port: number, through: through}
		if number != p.Port {
			t.notes = append(t.notes, fmt.Sprintf("policies see port %d of the pod, not port %d of the Service", number, p.Port))
		}
		all = append(all, t)
	}
	if s.Endpoints != nil {
		for _, e := range s.Endpoints {
			i := slices.IndexFunc(e.Ports, func(n policy.NamedPort) bool { return n.Name == p.Name && n.Proto == p.Proto })
			if e.Ready && i >= 0 {
				add(x.placeOf(e.Address), e.Ports[i].Number)
			}
		}
		return all
	}
	for _, o := range x.selected(s) {
		number, ok := targetNumber(o, p)
		if !ok || o.Finished {
			continue
		}
		places, err := x.places(Ref{Kind: EndPod, Namespace: o.Namespace, Name: o.Name})
		if err != nil {
			continue
		}
		for _, place := range places {
			add(place, number)
		}
	}
	return all
}

func (x *explainer) selected(s *policy.Service) (all []*policy.Pod) {
	if len(s.Selector) == 0 {
		return nil
	}
	selector := labels.SelectorFromSet(s.Selector)
	for i := range x.Pods {
		if o := &x.Pods[i]; o.Namespace == s.Namespace && selector.Matches(labels.Set(o.Labels)) {
			all = append(all, o)
		}
	}
	return all
}

func targetNumber(o *policy.Pod, p policy.ServicePort) (uint16, bool) {
	if p.Target.Type == intstr.Int {
		return uint16(p.Target.IntVal), p.Target.IntVal >= 1 && p.Target.IntVal <= 65535
	}
	i := slices.IndexFunc(o.Ports, func(n policy.NamedPort) bool {
		return n.Name == p.Target.StrVal && n.Proto == p.Proto
	})
	if i < 0 {
		return 0, false
	}
	return o.Ports[i].Number, true
}

func (x *explainer) noEndpoints(s *policy.Service, p policy.ServicePort) string {
	where := fmt.Sprintf("svc/%s port %d has no ready endpoint, so kube-proxy refuses connections to it, whatever the "+
		"policies are: ", s, p.Port)
	pods := x.selected(s)
	switch {
	case len(s.Selector) == 0:
		return where + "it has no selector, and no EndpointSlice"
	case len(pods) == 0:
		return where + fmt.Sprintf("no pod in namespace %s has the labels %s", s.Namespace,
			labels.SelectorFromSet(s.Selector))
	case p.Target.Type == intstr.String &&
		!slices.ContainsFunc(pods, func(o *policy.Pod) bool { _, ok := targetNumber(o, p); return ok }):
		return where + fmt.Sprintf("its pods have no %s port named %s", strings.ToUpper(string(p.Proto)), p.Target.StrVal)
	}
	if s.Endpoints == nil {
		return where + "none of its pods has a known address"
	}
	return where + fmt.Sprintf("none of its pods is ready: kubectl -n %s get endpointslices -l %s=%s", s.Namespace,
		"kubernetes.io/service-name", s.Name)
}

func (x *explainer) forwarders(to Ref, from Place) []Place {
	s := x.service(to)
	if s.Local || (s.Kind != "NodePort" && s.Kind != "LoadBalancer") || len(x.Nodes) < 2 {
		return nil
	}
	var all []Place
	seen := map[conf.Family]bool{}
	for _, cidr := range x.podCIDRs(x.Nodes[0]) {
		if f := conf.FamilyOf(cidr.Addr()); !seen[f] && (from.isWorld || f == conf.FamilyOf(from.Address)) {
			seen[f] = true
			all = append(all, Place{
				Address: cidr.Addr(),
				What:    "stands for the node that receives the packet, if it isn't the pod's own node", isNode: true,
			})
		}
	}
	return all
}
