package iptables

import (
	"fmt"
	"strconv"
	"strings"

	"github.com/weir-net/weir/conf"
	"github.com/weir-net/weir/netfilter/probe"
	"github.com/weir-net/weir/policy/ruleset"
)

// maxMultiport limits the ports of one multiport match. A range counts as two ports (XT_MULTI_PORTS in xt_multiport).
// This limit must not be less than policy.PortsPerList.
const maxMultiport = 15

// lowerRule returns the rule in the form of iptables-save, without "-A CHAIN". If iptables can't express it as one
// rule, lowerRule returns several rules.
func lowerRule(r ruleset.Rule, f conf.Family) []string {
	if r.Track == ruleset.First { // one rule can't match both unconfirmed and untracked packets
		unconfirmed, untracked := r, r
		unconfirmed.Track, untracked.Track = unconfirmedTrack, untrackedTrack
		return append(lowerRule(unconfirmed, f), lowerRule(untracked, f)...)
	}
	if len(r.Ports) < 2 {
		return []string{ruleText(r, f)}
	}
	chunks := multiport(r.Ports)
	lines := make([]string, len(chunks))
	for i, ports := range chunks {
		r.Ports = ports
		lines[i] = ruleText(r, f)
	}
	return lines
}

func multiport(ranges []ruleset.PortRange) [][]ruleset.PortRange {
	var chunks [][]ruleset.PortRange
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

type rule struct{ strings.Builder }

func (t *rule) add(words ...string) {
	if t.Len() > 0 {
		t.WriteByte(' ')
	}
	for _, w := range words {
		t.WriteString(w)
	}
}

// ruleText returns the text of a rule. It avoids the package fmt, which would take several times as long.
func ruleText(r ruleset.Rule, f conf.Family) string {
	var t rule
	t.Grow(128)
	if r.Src.IsValid() {
		t.add("-s ", r.Src.String())
	}
	if r.Dst.IsValid() {
		t.add("-d ", r.Dst.String())
	}
	// For iptables, the name eth+ would mean all names that begin with eth. policy.LinkOf returns no name with a plus
	// sign.
	if r.In != "" {
		t.add("-i ", r.In)
	}
	if r.Out != "" {
		t.add("-o ", r.Out)
	}
	if r.Proto != "" {
		t.add("-p ", string(r.Proto))
	}
	if r.Track != "" {
		t.add(tracks[r.Track])
	}
	if words := discovery[r.Shape]; words != "" {
		t.add(words)
	}
	if r.InPort != "" {
		t.add("-m physdev --physdev-in ", r.InPort)
	}
	if program := programs[f][r.Shape]; program != "" {
		t.add(`-m bpf --bytecode "`, program, `"`)
	}
	// The kernel compares the conditions in this order. Ports come before sets, because to compare a port takes a fifth
	// of the time of a look-up in a set.
	switch len(r.Ports) {
	case 0:
	case 1:
		t.add("-m ", string(r.Proto), " --dport ", portText(r.Ports[0]))
	default:
		list := make([]string, len(r.Ports))
		for i, p := range r.Ports {
			list[i] = portText(p)
		}
		t.add("-m multiport --dports ", strings.Join(list, ","))
	}
	for _, m := range r.Sets {
		t.add(matchText(m), " ", m.Name, " ", flags[m.By])
	}
	if r.Comment != "" {
		// The quotes are always right: iptables-save prints them around comments with spaces, and all of weir's comments
		// have spaces. xt_comment keeps 255 bytes, as many as conf.Comment returns.
		t.add(`-m comment --comment "`, conf.Comment(r.Comment), `"`)
	}
	t.target(r)
	return t.String()
}

func (t *rule) target(r ruleset.Rule) {
	switch r.Action {
	case ruleset.Jump:
		t.add("-j ", r.To)
	case ruleset.GoTo:
		t.add("-g ", r.To)
	case ruleset.Log:
		t.add(`-j NFLOG --nflog-prefix "`, r.To, `" --nflog-group `, strconv.Itoa(conf.LogGroup))
	case ruleset.Masquerade:
		t.add("-j MASQUERADE --random-fully")
	default:
		t.add("-j ", strings.ToUpper(string(r.Action)))
	}
}

var tracks = map[ruleset.Track]string{
	ruleset.Established:  fmt.Sprintf(`-m conntrack --ctstate ESTABLISHED -m connlabel ! --label "%d"`, conf.CutLabel),
	ruleset.Cut:          fmt.Sprintf(`-m connlabel --label "%d"`, conf.CutLabel),
	ruleset.Related:      "-m conntrack --ctstate RELATED",
	ruleset.Untranslated: "-m conntrack ! --ctstate DNAT",
	ruleset.Midstream:    "-m tcp ! --tcp-flags FIN,SYN,RST,ACK SYN -m conntrack ! --ctstate UNTRACKED",
	unconfirmedTrack:     "-m conntrack ! --ctstatus CONFIRMED",
	untrackedTrack:       "-m conntrack --ctstate UNTRACKED",
	probe.Unestablished:  "-m conntrack --ctstate INVALID,NEW,UNTRACKED",
}

// A rule with ruleset.First becomes two rules: one for packets of connections that the kernel hasn't confirmed yet, and
// one for untracked packets. The kernel confirms a connection when its first packet leaves the last hook.
const (
	unconfirmedTrack ruleset.Track = "unconfirmed"
	untrackedTrack                 = probe.Untracked
)

var discovery = map[ruleset.Shape]string{
	ruleset.Solicitation:  "-m icmp6 --icmpv6-type 135 -m hl --hl-eq 255",
	ruleset.Advertisement: "-m icmp6 --icmpv6-type 136 -m hl --hl-eq 255",
}

var flags = map[ruleset.Part]string{
	ruleset.Source: "src", ruleset.Destination: "dst", ruleset.DestinationPort: "dst",
	ruleset.SourcePair: "src,dst", ruleset.DestinationPair: "dst,dst", ruleset.SourceLink: "src,src",
}

func matchText(m ruleset.SetMatch) string {
	if m.Not {
		return "-m set ! --match-set"
	}
	return "-m set --match-set"
}

func portText(p ruleset.PortRange) string {
	if p.First == p.Last {
		return strconv.Itoa(int(p.First))
	}
	return strconv.Itoa(int(p.First)) + ":" + strconv.Itoa(int(p.Last))
}

func kindText(k ruleset.Kind) string {
	var t rule
	if k.ByPort() {
		t.add("-p ", string(k.Rule.Proto))
	}
	for _, m := range k.Rule.Sets {
		t.add(matchText(m), " ", flags[m.By])
	}
	switch len(k.Rule.Ports) {
	case 0:
	case 1:
		t.add("-m ", string(k.Rule.Proto), " --dport")
	default:
		t.add("-m multiport --dports")
	}
	return t.String()
}
