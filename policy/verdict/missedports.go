package verdict

import (
	"fmt"
	"slices"
	"strings"

	corev1 "k8s.io/api/core/v1"
	networkingv1 "k8s.io/api/networking/v1"
	"k8s.io/apimachinery/pkg/util/intstr"

	"github.com/weir-net/weir/policy"
	"github.com/weir-net/weir/policy/ruleset"
)

func missedPort(field string, port networkingv1.NetworkPolicyPort, p Packet, dst end) []Miss {
	if matchPort(port)(p.Proto, p.Port, dst) {
		return nil
	}
	protocol, known := protocolOf(port)
	m := Miss{Field: field, Kind: MissUnreadable, Change: "correct " + field}
	number := func() string {
		if port.EndPort != nil {
			return fmt.Sprintf("%d-%d", port.Port.IntVal, *port.EndPort)
		}
		return port.Port.String()
	}
	switch {
	case !known:
		m.Why = fmt.Sprintf("%q is no protocol of a port, so it matches nothing", protocol)
		return []Miss{m}
	case port.EndPort != nil && (port.Port == nil || port.Port.Type == intstr.String):
		m.Why = "an endPort needs a port with a number, so it matches nothing"
		return []Miss{m}
	}
	if p.Port == 0 {
		m.Field, m.Wants, m.Kind = field+".protocol", string(protocol), MissProtocol
		m.Why = fmt.Sprintf("the connection is %s, and a rule with ports allows only TCP, UDP and SCTP", nameOf(p.Proto))
		m.Change = "add a rule with the same peers and without ports"
		return []Miss{m}
	}
	var all []Miss
	if !strings.EqualFold(string(p.Proto), string(protocol)) {
		why := fmt.Sprintf("the connection is %s, and %s allows %s", nameOf(p.Proto), field, protocol)
		if port.Protocol == nil {
			why += ", because a port without a protocol means TCP"
		}
		all = append(all, Miss{
			Field: field + ".protocol", Wants: string(protocol), Kind: MissProtocol, Why: why,
			Change: addPort(p),
		})
	}
	switch {
	case port.Port == nil:
	case port.Port.Type == intstr.String:
		if named := missedName(field, port.Port.StrVal, protocol, p, dst); named.Why != "" {
			all = append(all, named)
		}
	case int32(p.Port) < port.Port.IntVal || (port.EndPort == nil && int32(p.Port) != port.Port.IntVal) ||
		(port.EndPort != nil && int32(p.Port) > *port.EndPort):
		all = append(all, Miss{
			Field: field + ".port", Wants: number(), Kind: MissPort,
			Why:    fmt.Sprintf("the connection goes to port %d, and %s allows %s", p.Port, field, number()),
			Change: addPort(p),
		})
	}
	if len(all) > 1 {
		all[1].Change = all[0].Change // a change of the named port alone would leave the protocol wrong
	}
	if len(all) == 0 { // the policy's range includes a number that isn't a port, such as 0 or 65536
		m.Why = fmt.Sprintf("%s is no port, so it matches nothing", number())
		return []Miss{m}
	}
	return all
}

// addPort returns the change that makes a rule's ports match the packet. A port without a protocol means TCP.
func addPort(p Packet) string {
	if p.Proto == ruleset.TCP {
		return fmt.Sprintf("add port %d to the rule", p.Port)
	}
	return fmt.Sprintf("add port %d with protocol: %s to the rule", p.Port, nameOf(p.Proto))
}

func nameOf(p ruleset.Protocol) string {
	if p == ruleset.ICMPv6 {
		return "ICMPv6"
	}
	return strings.ToUpper(string(p))
}

// missedName returns why a named port doesn't match. If the port matches, Why is empty.
func missedName(field, name string, protocol corev1.Protocol, p Packet, dst end) Miss {
	m := Miss{Field: field + ".port", Wants: name, Kind: MissNamedPort}
	if len(dst.pods) == 0 {
		m.Why = fmt.Sprintf("%s is the address of no pod, and only pods have named ports", dst.addr)
		m.Change = addPort(p)
		return m
	}
	for _, o := range dst.pods {
		i := slices.IndexFunc(o.Ports, func(n policy.NamedPort) bool {
			return n.Name == name && strings.EqualFold(string(n.Proto), string(protocol))
		})
		m.Object = "Pod " + o.Namespace + "/" + o.Name
		switch {
		case i < 0:
			m.Why = fmt.Sprintf("pod %s/%s has no %s port named %s", o.Namespace, o.Name, protocol, name)
			m.Change = fmt.Sprintf("name the container's port %d %s, or %s", p.Port, name, addPort(p))
			return m
		case o.Ports[i].Number != p.Port:
			m.Why = fmt.Sprintf("the connection goes to port %d, and port %s of pod %s/%s is %d",
				p.Port, name, o.Namespace, o.Name, o.Ports[i].Number)
			m.Change = addPort(p)
			return m
		}
	}
	m.Object = ""
	return m
}
