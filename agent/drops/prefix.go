package drops

import (
	"strings"

	"github.com/weir-net/weir/agentapi"
	"github.com/weir-net/weir/conf"
	"github.com/weir-net/weir/policy/ruleset"
)

// Prefix says what the log prefix of a packet means: which rule logged the packet, and why.
type Prefix struct {
	// Chain is the rule's chain. It is empty if the log prefix names no chain.
	Chain     string
	Direction ruleset.Direction
	Reason    string
	// ByLink means that only the link on which the packet came in identifies the sender, because the source address
	// may be forged. Forged means that nothing identifies the sender.
	ByLink, Forged bool
}

// The map chains has the meanings of chains' names, and the map texts has the meanings of whole log prefixes. With the
// reasons ByCut, ByMidstream and ByWrongLink, package agent finds the direction by the packet's addresses. With the
// reasons ByNoPod and ByTunnel, the direction stays empty.
var (
	chains = map[string]Prefix{
		conf.IngressChain:   {Direction: ruleset.Ingress, Reason: agentapi.ByClosed},
		conf.EgressChain:    {Direction: ruleset.Egress, Reason: agentapi.ByClosed},
		conf.CutChain:       {Reason: agentapi.ByCut},
		conf.MidstreamChain: {Reason: agentapi.ByMidstream},
		conf.NoPodChain:     {Reason: agentapi.ByNoPod},
		conf.LoopbackChain:  {Direction: ruleset.Egress, Reason: agentapi.ByLoopback},
		conf.ErrorsChain:    {Direction: ruleset.Egress, Reason: agentapi.ByICMPError},
		conf.ForgedChain:    {Direction: ruleset.Egress, Reason: agentapi.ByGuard, ByLink: true},
	}
	texts = map[string]Prefix{
		conf.GuardLogPrefix:     {Direction: ruleset.Egress, Reason: agentapi.ByGuard, ByLink: true},
		conf.ReservedLogPrefix:  {Direction: ruleset.Egress, Reason: agentapi.ByReserved, ByLink: true},
		conf.LoopbackLogPrefix:  {Direction: ruleset.Egress, Reason: agentapi.ByLoopback, ByLink: true},
		conf.FragmentsLogPrefix: {Direction: ruleset.Egress, Reason: agentapi.ByFragments, ByLink: true},
		conf.DiscoveryLogPrefix: {Direction: ruleset.Egress, Reason: agentapi.ByDiscovery, ByLink: true},
		conf.PastLogPrefix:      {Direction: ruleset.Egress, Reason: agentapi.ByPast, ByLink: true},
		conf.TunnelLogPrefix:    {Reason: agentapi.ByTunnel, Forged: true},
		conf.WayLogPrefix:       {Reason: agentapi.ByWrongLink, Forged: true},

		conf.LinkLocalLogPrefix:   {Direction: ruleset.Egress, Reason: agentapi.ByLinkLocal, ByLink: true},
		conf.LinkLocalInLogPrefix: {Direction: ruleset.Ingress, Reason: agentapi.ByLinkLocal},
	}
)

func prefixOf(text string) *Prefix {
	if p, known := texts[text]; known {
		return &p
	}
	if chain, audit := strings.CutPrefix(text, conf.AuditLogPrefix); audit {
		p := &Prefix{Chain: chain, Direction: ruleset.Egress, Reason: agentapi.ByAudit}
		if conf.KindOfChain(chain) == conf.ChainOfIngress {
			p.Direction = ruleset.Ingress
		}
		return p
	}
	chain, ours := strings.CutPrefix(text, conf.LogPrefix)
	p, known := chains[chain]
	switch kind := conf.KindOfChain(chain); {
	case !ours:
		return &Prefix{Reason: agentapi.ByOther}
	case known:
	case kind == conf.ChainOfIngress:
		p = Prefix{Direction: ruleset.Ingress, Reason: agentapi.ByPolicy}
	case kind == conf.ChainOfEgress:
		p = Prefix{Direction: ruleset.Egress, Reason: agentapi.ByPolicy}
	default:
		p = Prefix{Reason: agentapi.ByOther}
	}
	p.Chain = chain
	return &p
}
