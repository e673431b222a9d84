package client

import (
	"context"
	"fmt"
	"io"
	"net/url"
	"slices"
	"strings"
	"time"

	networkingv1 "k8s.io/api/networking/v1"
	"sigs.k8s.io/yaml"

	"github.com/weir-net/weir/agentapi"
	"github.com/weir-net/weir/internal/excerpt"
	"github.com/weir-net/weir/policy/propose"
	"github.com/weir-net/weir/policy/ruleset"
)

// AuditPath returns the path of the agent's API for a report on one audited policy. If the name is empty, the report
// is on all audited policies.
func AuditPath(name string) string {
	if name == "" {
		return agentapi.AuditPath
	}
	return agentapi.AuditPath + "?" + url.Values{"policy": {name}}.Encode()
}

// Audit asks this node's agent which connections an audited policy would have dropped. If the name is empty, it asks
// about all audited policies. The error wraps agentapi.ErrNoAgent if there is no agent.
//
// Equivalent to: curl --unix-socket /run/weir/agent.sock http://agent/v1/audit?policy=NAMESPACE/NAME (without
// ?policy=… for an empty name)
func Audit(ctx context.Context, name string) (r agentapi.AuditReport, err error) {
	return r, Get(ctx, AuditPath(name), &r)
}

type AuditOfNodes struct {
	agentapi.AuditReport
	// Nodes is how many nodes have reported.
	Nodes int `json:"nodes"`
	// Troubles name nodes with incomplete reports, and the reasons.
	Troubles []string `json:"troubles,omitempty"`
	// Rules has rules that, added to the policy, would allow the would-drops: the connections that the policy would
	// have dropped if it had been enforced. There is no rule for would-drops without ports, such as ICMP, because a
	// rule with ports can't allow them. Rules is nil in a report on all policies.
	Rules *AuditRules `json:"rules,omitempty"`
	kinds map[string]int
}

// Add adds the report of one node, without the connections that were last seen before the given time.
func (a *AuditOfNodes) Add(r agentapi.AuditReport, since time.Time) {
	a.Nodes++
	if a.kinds == nil {
		a.kinds, a.Node, a.Audited, a.Dropped = map[string]int{}, r.Node, []string{}, []agentapi.AuditedTraffic{}
	} else {
		a.Node = ""
	}
	if a.Since.IsZero() || r.Since.After(a.Since) {
		a.Since = r.Since
	}
	a.More, a.Unevaluated = a.More+r.More, a.Unevaluated+r.Unevaluated
	if r.Trouble != "" {
		a.Troubles = append(a.Troubles, strings.TrimPrefix(r.Node+": ", ": ")+r.Trouble)
	}
	a.Audited = slices.Compact(slices.Sorted(slices.Values(append(a.Audited, r.Audited...))))
	for _, t := range r.Dropped {
		if t.Last.Before(since) {
			continue
		}
		key := fmt.Sprintf("%q", []string{
			t.Direction, strings.Join(t.Policies, ","), t.Pod.Kind(), t.Peer.Kind(), t.Protocol, fmt.Sprint(t.Port),
		})
		i, known := a.kinds[key]
		if !known {
			a.kinds[key] = len(a.Dropped)
			a.Dropped = append(a.Dropped, t)
			continue
		}
		sum := &a.Dropped[i]
		if sum.Count += t.Count; t.First.Before(sum.First) {
			sum.First = t.First
		}
		if t.Last.After(sum.Last) {
			sum.Last = t.Last
		}
	}
}

// AuditRules has rules that can be added to an audited policy. The rules would allow the policy's would-drops: the
// connections that the policy would have dropped if it had been enforced.
type AuditRules struct {
	Ingress []networkingv1.NetworkPolicyIngressRule `json:"ingress,omitempty"`
	Egress  []networkingv1.NetworkPolicyEgressRule  `json:"egress,omitempty"`
	// Broad is true if one of the rules selects all pods of a namespace, because the pod of a connection has no labels.
	Broad bool `json:"broad,omitempty"`
	// Without has the protocols of those would-drops that have no ports, such as ICMP. Only a rule without ports
	// can allow these would-drops.
	Without []string `json:"protocolsWithoutPorts,omitempty"`
}

func (a *AuditOfNodes) Knows(name string) bool { return slices.Contains(a.Audited, name) }

// PrintAudit prints the connections that the named audited policy would have dropped, and rules that would allow
// them. If the name is empty, it lists the audited policies. As JSON, it prints the whole report in both cases.
func PrintAudit(out io.Writer, f Format, a *AuditOfNodes, name string) error {
	slices.SortFunc(a.Dropped, agentapi.CompareAudited)
	if name != "" && len(a.Dropped) > 0 {
		a.Rules = rulesFor(a.Dropped, name)
	}
	switch {
	case f == JSON:
		return PrintJSON(out, a)
	case name == "":
		return printTable(out, func(line printLine) { auditSummary(line, a) })
	}
	if err := printTable(out, func(line printLine) { auditTraffic(line, a, name) }); err != nil {
		return err
	}
	if a.Rules == nil {
		return nil
	}
	text, err := rulesText(a.Rules, name)
	if err == nil {
		_, err = io.WriteString(out, text)
	}
	return err
}

func auditSummary(line printLine, a *AuditOfNodes) {
	if len(a.Audited) == 0 {
		line("No node that has answered knows an audited policy.")
		return
	}
	line("POLICY\tWOULD DROP\tKINDS\tLAST")
	for _, name := range a.Audited {
		var count uint64
		var last time.Time
		kinds := 0
		for _, t := range a.Dropped {
			if !slices.Contains(t.Policies, name) {
				continue
			}
			count, kinds = count+t.Count, kinds+1
			if t.Last.After(last) {
				last = t.Last
			}
		}
		line("%s\t%d connections\t%d\t%s", agentapi.OneLine(name), count, kinds, clock(last))
	}
	auditLimits(line, a)
}

func clock(t time.Time) string {
	if t.IsZero() {
		return "-"
	}
	return t.Local().Format("2006-01-02 15:04:05")
}

func auditLimits(line printLine, a *AuditOfNodes) {
	line("\nCounted since %s.", clock(a.Since))
	if a.More > 0 {
		line("%d more connections are not listed: there are too many different ones.", a.More)
	}
	if a.Unevaluated > 0 {
		line("%d connections could not be evaluated: too many came at once, a pod had ended, or the agent was busy.\n"+
			"Some of them may be would-drops.", a.Unevaluated)
	}
	for _, t := range a.Troubles {
		line("No packets are read: %s", agentapi.OneLine(t))
	}
}

func auditTraffic(line printLine, a *AuditOfNodes, name string) {
	if len(a.Dropped) == 0 {
		if !a.Knows(name) {
			line("No node that has answered knows %s as an audited policy.", agentapi.OneLine(name))
			return
		}
		line("%s is audited, and would have dropped nothing that was seen.", agentapi.OneLine(name))
		auditLimits(line, a)
		return
	}
	line("DIRECTION\tPOD\tPEER\tPORT\tCOUNT\tFIRST\tLAST")
	for _, t := range a.Dropped {
		port := agentapi.OneLine(t.Protocol)
		if t.Port != 0 {
			port += fmt.Sprintf(" %d", t.Port)
		}
		line("%s\t%s\t%s\t%s\t%d\t%s\t%s", agentapi.OneLine(t.Direction), agentapi.OneLine(t.Pod.String()),
			agentapi.OneLine(t.Peer.String()), port, t.Count, clock(t.First), clock(t.Last))
	}
	auditLimits(line, a)
}

func rulesFor(all []agentapi.AuditedTraffic, name string) *AuditRules {
	namespace, _, _ := strings.Cut(name, "/")
	var traffic []propose.Traffic
	var r AuditRules
	for _, t := range all {
		peer := propose.Peer{Address: t.Peer.Address}
		if t.Peer.Name != "" {
			peer = propose.Peer{Namespace: t.Peer.Namespace, Labels: t.Peer.Labels}
			r.Broad = r.Broad || len(t.Peer.Labels) == 0
		}
		traffic = append(traffic, propose.Traffic{
			Direction: ruleset.Direction(t.Direction), Namespace: namespace, Peer: peer,
			Protocol: ruleset.Protocol(t.Protocol), Port: t.Port,
		})
	}
	var left []propose.Traffic
	r.Ingress, r.Egress, left = propose.Rules(traffic)
	for _, t := range left {
		r.Without = append(r.Without, string(t.Protocol))
	}
	slices.Sort(r.Without)
	r.Without = slices.Compact(r.Without)
	return &r
}

func rulesText(r *AuditRules, name string) (string, error) {
	spec := map[string]any{}
	if len(r.Ingress) > 0 {
		spec["ingress"] = r.Ingress
	}
	if len(r.Egress) > 0 {
		spec["egress"] = r.Egress
	}
	var b strings.Builder
	if len(spec) > 0 {
		text, err := yaml.Marshal(map[string]any{"spec": spec})
		if err != nil {
			return "", err
		}
		fmt.Fprintf(&b, "\n# These rules, added to %s, allow all of that. Remove those that you don't want.\n%s",
			agentapi.OneLine(name), excerpt.Printable(string(text)))
	}
	if r.Broad {
		b.WriteString("# A pod without labels can't be told from others: its rule selects all pods of its namespace.\n")
	}
	if len(r.Without) > 0 {
		fmt.Fprintf(&b, "# No port of a policy can be of %s: only a rule without ports allows that, and it allows all "+
			"ports.\n", agentapi.OneLine(excerpt.List(r.Without, ", ")))
	}
	return b.String(), nil
}
