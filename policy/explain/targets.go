package explain

import (
	"cmp"
	"fmt"
	"net/netip"
	"slices"
	"strings"

	"k8s.io/apimachinery/pkg/labels"
	"k8s.io/apimachinery/pkg/util/intstr"

	"github.com/weir-net/weir/conf"
	"github.com/weir-net/weir/policy"
	"github.com/weir-net/weir/policy/ruleset"
)

func (x *explainer) targets(to Ref, port Port, in entrance) ([]target, error) {
	if to.Kind == EndService {
		return x.serviceTargets(to, port, in)
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
		if in.address.IsValid() && conf.FamilyOf(in.address) != conf.FamilyOf(place.Address) {
			continue // a hostPort of a node's IPv4 address leads only to the pod's IPv4 address; the same for IPv6
		}
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
	namespace, name := to.Namespace, to.Name
	if to.Kind == EndAddress {
		namespace, name, _ = strings.Cut(x.placeOf(to.Address).Pod, "/")
	}
	for _, p := range x.pods(namespace, name) {
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

func (x *explainer) serviceTargets(to Ref, port Port, in entrance) ([]target, error) {
	s := x.service(to)
	icmp := port.Proto == ruleset.ICMP
	ports, err := portsOf(s, to, port)
	switch {
	case s.Kind == "ExternalName":
		return nil, inputError("%s is only a name for a host outside of the cluster: ask about the host's address", to)
	case s.Headless && (icmp || port.Number != 0): // a headless Service leads to every port of its pods
		ports = []policy.ServicePort{{Proto: port.Proto, Port: port.Number}}
	case s.Headless && len(s.Ports) == 0:
		return nil, inputError("%s is headless and has no ports: write the port of its pods, %s:PORT", to, to)
	case len(s.Ports) == 0:
		return nil, inputError("%s has no ports", to)
	case icmp:
		return nil, inputError("%s: kube-proxy passes on only the ports of a Service, and no ICMP: name one of its pods", to)
	case err != nil:
		return nil, err
	}
	var all []target
	for _, p := range ports {
		ready := x.endpoints(s, p, port.Name != "")
		if len(ready) == 0 {
			x.note("%s", x.noEndpoints(s, p))
		}
		ready = x.best(s, p, x.onReceiver(s, in, x.inFamilies(s, in, ready)))
		if more := len(ready) - maxPaths; more > 0 {
			x.note("%s has %d more endpoints, which are left out", to, more)
			ready = ready[:maxPaths]
		}
		all = append(all, ready...)
	}
	return all, nil
}

// best returns the endpoints that are ready. If none is ready, it returns the endpoints that are ending and still
// serve.
func (x *explainer) best(s *policy.Service, p policy.ServicePort, all []target) []target {
	ready := slices.DeleteFunc(slices.Clone(all), func(t target) bool { return t.ending })
	if len(ready) > 0 || len(all) == 0 {
		return ready
	}
	x.note("svc/%s port %d has no ready endpoint that fits, so kube-proxy uses those that are ending and still serve", s,
		p.Port)
	return all
}

// portsOf returns the Service's ports that the query names, or all ports if it names none.
func portsOf(s *policy.Service, to Ref, port Port) (ports []policy.ServicePort, err error) {
	var known []string
	for _, p := range s.Ports {
		form := fmt.Sprintf("%d/%s", p.Port, strings.ToUpper(string(p.Proto)))
		if p.Name != "" {
			form = p.Name + " (" + form + ")"
		}
		known = append(known, form)
		none := port.Number == 0 && port.Name == ""
		if none || port.isOf(p) {
			ports = append(ports, p)
		}
	}
	if len(ports) == 0 {
		err = inputError("%s has no port %s; it has %s", to, portForm(port), strings.Join(known, ", "))
	}
	return ports, err
}

func (p Port) isOf(s policy.ServicePort) bool {
	return s.Proto == p.Proto && (s.Port == p.Number || s.Name != "" && s.Name == p.Name)
}

func portForm(p Port) string {
	number := p.Name
	if p.Number != 0 {
		number = fmt.Sprint(p.Number)
	}
	return number + "/" + strings.ToUpper(string(p.Proto))
}

// behind is an endpoint of a Service, with the endpoint's node. Packets to the Service can go to the endpoint.
type behind struct {
	Place
	on     string
	ending bool
	number func(policy.ServicePort) (uint16, bool)
}

func (x *explainer) behind(s *policy.Service) (all []behind) {
	for _, e := range s.Endpoints {
		if !e.Ready && (!e.Ending || s.Headless) {
			continue
		}
		place := x.placeOf(e.Address)
		all = append(all, behind{place, cmp.Or(e.Node, place.Node), e.Ending, func(p policy.ServicePort) (uint16, bool) {
			i := slices.IndexFunc(e.Ports, func(n policy.NamedPort) bool { return n.Name == p.Name && n.Proto == p.Proto })
			if i < 0 {
				return 0, false
			}
			return e.Ports[i].Number, true
		}})
	}
	if s.Endpoints != nil {
		return all
	}
	for _, o := range x.selected(s) {
		if o.Finished || o.Unready && !s.Unready {
			continue
		}
		places, err := x.places(Ref{Kind: EndPod, Namespace: o.Namespace, Name: o.Name})
		if err != nil {
			continue
		}
		for _, place := range places {
			number := func(p policy.ServicePort) (uint16, bool) { return targetNumber(o, p) }
			all = append(all, behind{Place: place, on: place.Node, number: number})
		}
	}
	return all
}

// endpoints returns the targets of a Service's port. A headless Service is only a name in DNS: it gives a client the
// pods' addresses. If the client asks for a port by name (SRV record), it also gets the number of the pod's port.
// Otherwise the client must know the port.
func (x *explainer) endpoints(s *policy.Service, p policy.ServicePort, byName bool) (all []target) {
	seen := map[netip.Addr]bool{}
	for _, b := range x.behind(s) {
		number, ok := b.number(p)
		t := target{Place: b.Place, on: b.on, ending: b.ending, proto: p.Proto, port: number}
		t.through = fmt.Sprintf("svc/%s port %d", s, p.Port)
		switch {
		case s.Headless:
			if seen[b.Address] || byName && !ok {
				continue
			}
			seen[b.Address] = true
			if t.through = fmt.Sprintf("svc/%s (headless)", s); !byName {
				t.port, t.notes = p.Port, untranslated(s, p, b)
			}
		case !ok:
			continue
		case number != p.Port:
			t.notes = append(t.notes, fmt.Sprintf("policies see port %d of the pod, not port %d of the Service", number, p.Port))
		}
		all = append(all, t)
	}
	return all
}

func untranslated(s *policy.Service, p policy.ServicePort, b behind) []string {
	for _, stated := range s.Ports {
		if number, ok := b.number(stated); ok && stated.Port == p.Port && stated.Proto == p.Proto && number != p.Port {
			return []string{fmt.Sprintf("the Service is headless: its name has the pods' addresses, and nothing translates "+
				"port %d to the targetPort %d", p.Port, number)}
		}
	}
	return nil
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
	if s.Headless {
		where = fmt.Sprintf("svc/%s has no ready endpoint, so its name has no address, whatever the policies are: ", s)
	}
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
	if s.Endpoints == nil && slices.ContainsFunc(pods, func(o *policy.Pod) bool { return !o.Unready }) {
		return where + "none of its pods has a known address"
	}
	return where + fmt.Sprintf("none of its pods is ready: kubectl -n %s get endpointslices -l %s=%s", s.Namespace,
		"kubernetes.io/service-name", s.Name)
}
