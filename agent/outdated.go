package agent

import (
	"fmt"
	"net/netip"
	"slices"

	"github.com/weir-net/weir/conf"
	"github.com/weir-net/weir/endpoint"
	"github.com/weir-net/weir/policy/ruleset"
)

// outdated returns why an attachment doesn't fit this node, or "" if it fits. An attachment that doesn't fit was made
// with an old network configuration, and another node may have its address.
func (a *agent) outdated(e endpoint.Endpoint) string {
	if !primary(e) {
		return ""
	}
	if why := a.foreign(e); why != "" {
		return why
	}
	if a.Node.Conflist == "" || a.conflist.mtu == 0 { // this agent hasn't written a configuration to compare with
		return ""
	}
	for _, p := range a.cluster.podCIDRs(a.Node.Name) {
		of := func(addr endpoint.Address) bool { return conf.FamilyOf(addr.Addr) == conf.FamilyOf(p.Addr()) }
		if !slices.ContainsFunc(e.Addresses, of) {
			return fmt.Sprintf("the pod has no address within this node's podCIDR %s", p)
		}
	}
	switch {
	case e.MTU != nil && *e.MTU != a.conflist.mtu:
		return fmt.Sprintf("the pod's link has MTU %d, and this node's pods have %d (0: none was given)", *e.MTU,
			a.conflist.mtu)
	case e.Enforcement != conf.Strict:
		return fmt.Sprintf("enforcement is %q, and %q on this node", e.Enforcement, conf.Strict)
	}
	return ""
}

// foreign returns why another node may have the attachment's address, or "" if no other node should have it.
func (a *agent) foreign(e endpoint.Endpoint) string {
	if primary(e) && a.homeless() {
		return fmt.Sprintf("this node, %s, has no podCIDR that counts", a.Node.Name)
	}
	return a.misplaced(e)
}

// homeless reports whether the node has no podCIDR for its pods, although the agent writes the runtime's configuration.
// If the Node was deleted and has registered again, an old configuration may be left.
func (a *agent) homeless() bool {
	return a.Node.Conflist != "" && a.Node.Name != "" && len(a.cluster.podCIDRs(a.Node.Name)) == 0
}

func (a *agent) misplaced(e endpoint.Endpoint) string {
	cidrs := a.cluster.podCIDRs(a.Node.Name)
	if len(cidrs) == 0 || !primary(e) {
		return ""
	}
	for _, addr := range e.Addresses {
		if !slices.ContainsFunc(cidrs, func(p netip.Prefix) bool { return p.Contains(addr.Addr) }) {
			return fmt.Sprintf("the pod's address %s is outside of this node's podCIDRs %s", addr.Addr, cidrs)
		}
	}
	return ""
}

// primary reports whether weir made the interface, and the interface connects the pod to the cluster's network. A pod's
// other interfaces may have any address.
func primary(e endpoint.Endpoint) bool {
	return !e.Chained && (e.IfName == "eth0" || e.Network == conf.Network)
}

func (a *agent) whyOutdated(what string) string {
	if a.Node.Conflist == "" {
		return what + ": the network configuration is out of date; correct its ranges"
	}
	if a.homeless() {
		return fmt.Sprintf("%s: the network configuration %s is out of date, and weir replaces it once the Node has one",
			what, a.Node.Conflist)
	}
	if err := a.faults.now[partNodes]; err != nil {
		return fmt.Sprintf("%s: the network configuration %s is out of date, and can't be replaced: %v",
			what, a.Node.Conflist, err)
	}
	return fmt.Sprintf("%s: the runtime uses a network configuration that is out of date. The present one is in %s. "+
		"If this error comes again, restart the runtime, and look for another configuration in that directory",
		what, a.Node.Conflist)
}

// misplacedPods reports running pods with addresses from before a change of podCIDRs. The problems have the same
// order in each round, because a list in another order would be reported again.
func (a *agent) misplacedPods() []ruleset.Problem {
	var problems []ruleset.Problem
	for id, e := range a.records.endpoints {
		why := a.misplaced(e)
		if why == "" || a.enrolments.waits(id) {
			continue
		}
		problems = append(problems, ruleset.Problem{
			Object: "Pod " + e.Pod.String(), Field: "status.podIPs",
			Message: why + ": other nodes have no route to it; " +
				"delete the pod, and its replacement gets an address within them",
		})
	}
	slices.SortFunc(problems, compareProblems)
	return problems
}
