package policy

import (
	"fmt"
	"slices"
	"strings"

	corev1 "k8s.io/api/core/v1"
	networkingv1 "k8s.io/api/networking/v1"
	"k8s.io/apimachinery/pkg/util/intstr"
	"k8s.io/apimachinery/pkg/util/validation"

	"github.com/weir-net/weir/conf"
	"github.com/weir-net/weir/policy/ruleset"
)

type ports struct {
	proto   ruleset.Protocol
	ranges  []ruleset.PortRange
	name    string
	numbers []ruleset.PortRange // the numbers in the port set; nil if the field ranges has the numbers
	fields  []string            // fields of the policy that state these ports
	set     string              // name of the set of numbers, or ""
}

const maxFields = 10

func (p ports) reportFields() []string {
	if len(p.fields) == 0 || len(p.fields) > maxFields {
		return []string{"ports"}
	}
	return p.fields
}

// parsePorts divides the ports of a rule into groups: one for the numbers of each protocol, and one for each named
// port. An empty list allows all ports. A port that can't be parsed is reported, and allows nothing.
func parsePorts(list []networkingv1.NetworkPolicyPort, report func(field, format string, args ...any)) []ports {
	if len(list) == 0 {
		return []ports{{}}
	}
	byProto, fields := map[ruleset.Protocol][]ruleset.PortRange{}, map[ruleset.Protocol][]string{}
	var named []ports
	for i, p := range list {
		proto, err := parseProtocol(p.Protocol)
		if err != nil {
			report(fmt.Sprintf("ports[%d].protocol", i), "%v", err)
			continue
		}
		r, name, field, err := parsePort(p)
		switch {
		case err != nil:
			report(fmt.Sprintf("ports[%d].%s", i, field), "%v", err)
		case name != "":
			named = append(named, ports{proto: proto, name: name, fields: []string{fmt.Sprintf("ports[%d]", i)}})
		default:
			byProto[proto] = append(byProto[proto], r)
			if len(fields[proto]) <= maxFields {
				fields[proto] = append(fields[proto], fmt.Sprintf("ports[%d]", i))
			}
		}
	}
	var grouped []ports
	for _, proto := range []ruleset.Protocol{ruleset.TCP, ruleset.UDP, ruleset.SCTP} {
		ranges := merge(byProto[proto])
		switch {
		case len(ranges) == 0:
		case ranges[0] == everyPort:
			grouped = append(grouped, ports{proto: proto, fields: fields[proto]})
		default:
			group := ports{proto: proto, ranges: ranges, fields: fields[proto]}
			if group.lists() > maxPortLists {
				group.ranges, group.numbers = nil, ranges
				group.set = conf.NumberSets + ruleset.Hash(key(listed(ranges)))
			}
			grouped = append(grouped, group)
		}
	}
	return append(grouped, named...)
}

// everyPort stands for a port without the field "port". It begins with 0, so that no range in a policy is equal to it:
// a port in a policy is never 0.
var everyPort = ruleset.PortRange{First: 0, Last: 65535}

func parseProtocol(p *corev1.Protocol) (ruleset.Protocol, error) {
	if p == nil { // the API's default is TCP
		return ruleset.TCP, nil
	}
	switch *p {
	case corev1.ProtocolTCP, corev1.ProtocolUDP, corev1.ProtocolSCTP:
		return ruleset.Protocol(strings.ToLower(string(*p))), nil
	}
	return "", fmt.Errorf("%q is neither TCP, UDP nor SCTP", *p)
}

func parsePort(p networkingv1.NetworkPolicyPort) (r ruleset.PortRange, name, field string, err error) {
	switch {
	case p.Port == nil && p.EndPort != nil:
		return r, "", "endPort", fmt.Errorf("%d is given without port", *p.EndPort)
	case p.Port == nil:
		return everyPort, "", "", nil
	case p.Port.Type == intstr.String && p.EndPort != nil:
		return r, "", "endPort", fmt.Errorf("%d is given with a port that is a name", *p.EndPort)
	case p.Port.Type == intstr.String:
		if msgs := validation.IsValidPortName(p.Port.StrVal); len(msgs) > 0 {
			return r, "", "port", fmt.Errorf("%q is no name of a port: %s", p.Port.StrVal, strings.Join(msgs, "; "))
		}
		return r, p.Port.StrVal, "", nil
	case p.Port.IntVal < 1 || p.Port.IntVal > 65535:
		return r, "", "port", fmt.Errorf("%d is not from 1 to 65535", p.Port.IntVal)
	case p.EndPort == nil:
		return ruleset.PortRange{First: uint16(p.Port.IntVal), Last: uint16(p.Port.IntVal)}, "", "", nil
	case *p.EndPort < p.Port.IntVal || *p.EndPort > 65535:
		return r, "", "endPort", fmt.Errorf("%d is not from port %d to 65535", *p.EndPort, p.Port.IntVal)
	}
	return ruleset.PortRange{First: uint16(p.Port.IntVal), Last: uint16(*p.EndPort)}, "", "", nil
}

func merge(ranges []ruleset.PortRange) []ruleset.PortRange {
	slices.SortFunc(ranges, func(a, b ruleset.PortRange) int { return int(a.First) - int(b.First) })
	var merged []ruleset.PortRange
	for _, r := range ranges {
		if n := len(merged); n > 0 && int(r.First) <= int(merged[n-1].Last)+1 {
			merged[n-1].Last = max(merged[n-1].Last, r.Last)
			continue
		}
		merged = append(merged, r)
	}
	return merged
}

func count(ranges []ruleset.PortRange) (n int) {
	for _, r := range ranges {
		n += int(r.Last-r.First) + 1
	}
	return n
}

func numbers(ranges []ruleset.PortRange) []ruleset.Entry {
	var all []ruleset.Entry
	for _, r := range ranges {
		for n := int(r.First); n <= int(r.Last); n++ {
			all = append(all, ruleset.Entry{Element: ruleset.Element{Port: uint16(n)}})
		}
	}
	return all
}

func listed(ranges []ruleset.PortRange) string {
	return strings.ReplaceAll(fmt.Sprint(ranges), "-", ":")
}
