package policy

import (
	"fmt"
	"slices"
	"strings"

	corev1 "k8s.io/api/core/v1"
	networkingv1 "k8s.io/api/networking/v1"
	"k8s.io/apimachinery/pkg/util/intstr"
)

// ports is what one rule matches of the layer above IP: a protocol and its destination ports; none given means all.
type ports struct {
	proto  Protocol
	ranges []PortRange
}

// parsePorts reads a rule's ports and groups them as iptables can match them in one rule each. An empty list means any
// protocol and port: one element without either. What can't be parsed is reported and opens nothing.
func parsePorts(list []networkingv1.NetworkPolicyPort, report func(field, format string, args ...any)) []ports {
	if len(list) == 0 {
		return []ports{{}}
	}
	byProto := map[Protocol][]PortRange{}
	for i, p := range list {
		proto, err := parseProtocol(p.Protocol)
		if err != nil {
			report(fmt.Sprintf("ports[%d].protocol", i), "%v", err)
			continue
		}
		r, field, err := parsePort(p)
		if err != nil {
			report(fmt.Sprintf("ports[%d].%s", i, field), "%v", err)
			continue
		}
		byProto[proto] = append(byProto[proto], r)
	}
	var grouped []ports
	for _, proto := range []Protocol{TCP, UDP, SCTP} {
		ranges := merge(byProto[proto])
		switch {
		case len(ranges) == 0:
		case ranges[0] == everyPort:
			grouped = append(grouped, ports{proto: proto})
		default:
			for _, chunk := range multiport(ranges) {
				grouped = append(grouped, ports{proto, chunk})
			}
		}
	}
	return grouped
}

// everyPort includes 0, which no API object can name: it stands for a port that is absent.
var everyPort = PortRange{0, 65535}

func parseProtocol(p *corev1.Protocol) (Protocol, error) {
	if p == nil { // NetworkPolicyPort: "If not specified, this field defaults to TCP."
		return TCP, nil
	}
	switch proto := Protocol(strings.ToLower(string(*p))); proto {
	case TCP, UDP, SCTP:
		return proto, nil
	}
	return "", fmt.Errorf("%q is neither TCP, UDP nor SCTP", *p)
}

func parsePort(p networkingv1.NetworkPolicyPort) (r PortRange, field string, err error) {
	switch {
	case p.Port == nil && p.EndPort != nil:
		return r, "endPort", fmt.Errorf("%d is given without port", *p.EndPort)
	case p.Port == nil:
		return everyPort, "", nil
	case p.Port.Type == intstr.String:
		return r, "port", fmt.Errorf("%q: named ports are not enforced by this version; the rule lets nothing through to it", p.Port.StrVal)
	case p.Port.IntVal < 1 || p.Port.IntVal > 65535:
		return r, "port", fmt.Errorf("%d is not from 1 to 65535", p.Port.IntVal)
	case p.EndPort == nil:
		return PortRange{uint16(p.Port.IntVal), uint16(p.Port.IntVal)}, "", nil
	case *p.EndPort < p.Port.IntVal || *p.EndPort > 65535:
		return r, "endPort", fmt.Errorf("%d is not from port %d to 65535", *p.EndPort, p.Port.IntVal)
	}
	return PortRange{uint16(p.Port.IntVal), uint16(*p.EndPort)}, "", nil
}

// merge orders the ranges and joins those that touch.
func merge(ranges []PortRange) []PortRange {
	slices.SortFunc(ranges, func(a, b PortRange) int { return int(a.First) - int(b.First) })
	var merged []PortRange
	for _, r := range ranges {
		if n := len(merged); n > 0 && int(r.First) <= int(merged[n-1].Last)+1 {
			merged[n-1].Last = max(merged[n-1].Last, r.Last)
			continue
		}
		merged = append(merged, r)
	}
	return merged
}

// multiport cuts the ranges into pieces that one multiport match takes.
func multiport(ranges []PortRange) [][]PortRange {
	var chunks [][]PortRange
	room := 0
	for _, r := range ranges {
		need := 1
		if r.First != r.Last {
			need = 2
		}
		if room < need {
			chunks, room = append(chunks, nil), maxMultiport
		}
		last := len(chunks) - 1
		chunks[last] = append(chunks[last], r)
		room -= need
	}
	return chunks
}
