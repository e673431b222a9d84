package agent

import (
	"context"
	"net/netip"
	"slices"

	"github.com/weir-net/weir/agent/drops"
	"github.com/weir-net/weir/agentapi"
	"github.com/weir-net/weir/policy"
	"github.com/weir-net/weir/policy/ruleset"
	"github.com/weir-net/weir/policy/verdict"
)

// auditEvaluator finds would-drops: connections that pass, and that audited policies would drop. The kernel can't find
// them: a node's rules cover only the node's own pods, and enforced policies at the other end may drop the connection.
type auditEvaluator struct {
	cache    verdict.Cache
	networks podNetworks
	found    map[int]wouldDrop
}

type wouldDrop struct {
	policies []string // the audited policies that would isolate the pod
	// local is the pod that the policies would isolate, and peer is the pod at the other end. Each of them is nil if no
	// pod has the end's address, or if several pods have the address. Pods of the host network don't count.
	local, peer *policy.Pod
}

// only is a filter for lines (drops.Line: packets that are counted together). The rules of audited policies also log
// packets that these policies would not drop. The filter removes a line with the reason ByAudit if the line is about
// such packets. It also removes a line with this reason that the agent can't evaluate, and counts the line's packets as
// unevaluated. All other lines stay.
func (e *auditEvaluator) only(ctx context.Context, a *agent, v *dropView, lines []drops.Line) []drops.Line {
	e.found = nil
	isAudit := func(l drops.Line) bool { return l.Prefix != nil && l.Reason == agentapi.ByAudit }
	if !slices.ContainsFunc(lines, isAudit) {
		return lines
	}
	e.found = map[int]wouldDrop{}
	audits := slices.DeleteFunc(slices.Clone(lines), func(l drops.Line) bool { return !isAudit(l) })
	state, known := a.stateAround(ctx, addressesOf(audits))
	var evaluator *verdict.Evaluator
	if known {
		evaluator = e.cache.New(state)
		e.networks.load(v.of)
	}
	var rest []drops.Line
	for _, l := range lines {
		if !isAudit(l) {
			rest = append(rest, l)
			continue
		}
		if !known || l.Kind != agentapi.DropShown || e.lacksPod(evaluator, v, l) {
			a.metrics.audits.leaveOut(l.Count)
			continue
		}
		if w, ok := evaluateAudited(evaluator, state, l); ok {
			e.found[len(rest)] = w
			rest = append(rest, l)
		}
	}
	return rest
}

// lacksPod reports whether one of the line's addresses is in the pods' networks, but belongs to no known pod or node.
// The pod with the address may have ended. weirctl proposes rules from the reported would-drops. Such a rule must not
// name the address, because another pod may get the address.
func (e *auditEvaluator) lacksPod(by *verdict.Evaluator, v *dropView, l drops.Line) bool {
	return slices.ContainsFunc([]netip.Addr{l.Flow.Source(), l.Flow.Destination()}, func(a netip.Addr) bool {
		return a.IsValid() && e.networks.contains(a) && v.nodes[a] == "" && len(by.At(a).Pods()) == 0
	})
}

func addressesOf(lines []drops.Line) (addresses []netip.Addr) {
	seen := map[netip.Addr]bool{}
	for _, l := range lines {
		for _, a := range [...]netip.Addr{l.Flow.Source(), l.Flow.Destination()} {
			if a.IsValid() && !seen[a] {
				seen[a] = true
				addresses = append(addresses, a)
			}
		}
	}
	return addresses
}

// evaluateAudited returns the audited policies that would drop the line's packet, and the pods at the packet's ends.
// ok is false if no audited policy would drop the packet.
func evaluateAudited(by *verdict.Evaluator, state policy.State, l drops.Line) (w wouldDrop, ok bool) {
	v := by.Evaluate(verdict.Packet{
		Src: l.Flow.Source(), Dst: l.Flow.Destination(), Proto: ruleset.Protocol(protocolName(l.Flow.Proto)),
		Port: l.Flow.DstPort,
	})
	if !slices.Contains(v.WouldDrop(), l.Direction) {
		return w, false
	}
	side, local, peer := v.Egress, v.Packet.Src, v.Packet.Dst
	if l.Direction == ruleset.Ingress {
		side, local, peer = v.Ingress, peer, local
	}
	for _, s := range append([]verdict.Side{side}, side.Either...) {
		for _, p := range s.Audited {
			if !slices.Contains(w.policies, p.Name) {
				w.policies = append(w.policies, p.Name)
			}
		}
	}
	slices.Sort(w.policies)
	w.local, w.peer = podAt(state, local), podAt(state, peer)
	return w, true
}

// podAt returns the pod that has the address. If no pod or several pods have the address, podAt returns nil. Pods of
// the host network don't count.
func podAt(s policy.State, a netip.Addr) *policy.Pod {
	var found *policy.Pod
	for i := range s.Pods {
		p := &s.Pods[i]
		if p.HostNetwork || !slices.Contains(p.Addresses, a) {
			continue
		}
		if found != nil {
			return nil
		}
		found = p
	}
	return found
}
