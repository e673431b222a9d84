package attachment

import (
	"errors"
	"fmt"
	"slices"

	"github.com/containernetworking/plugins/pkg/netlinksafe"
	"golang.org/x/sys/unix"

	"github.com/weir-net/weir/bridge"
	"github.com/weir-net/weir/conf"
	"github.com/weir-net/weir/endpoint"
	"github.com/weir-net/weir/ipam"
	"github.com/weir-net/weir/netfilter/conntrack"
)

// If weir is chained behind another plugin, that plugin has made the interface, and the pod's link is already up. Until
// the agent has enrolled the pod, only the set of all pods denies the pod's connections.

// Chained describes an interface that another plugin has made.
type Chained struct {
	Addresses []endpoint.Address
	MAC       string // "" if the MAC isn't known
}

func (m *making) chainedSteps() []func() error {
	return []func() error{
		m.assign,            // write the record, and assign the other plugin's addresses to the attachment
		m.denyUntilEnrolled, // put the addresses into the set of all pods
		m.deleteConnections, // delete the addresses' connections: they began without policy
		m.startEnrol,        // ask the agent to enrol the pod
		m.awaitEnrol,        // wait for the agent's answer
	}
}

// prepareChained finds the pod's link and keeps the link's packets from bypassing policy, unless enforcement is off.
// The error is bridge.ErrBypassesForward or a *StepError.
func (m *making) prepareChained(c *Chained) error {
	m.record.Addresses, m.record.MAC = c.Addresses, c.MAC
	if m.record.Enforcement == conf.Off {
		return nil
	}
	links, err := netlinksafe.NewHandle(unix.NETLINK_ROUTE)
	if err != nil {
		return &StepError{"open netlink", err}
	}
	defer links.Close()
	if err := m.findLink(links); err != nil {
		return linkStepError("find the pod's link", err)
	}
	return linkStepError("keep the pod's packets from bypassing policy", m.preventBypass(links))
}

func linkStepError(step string, err error) error {
	if errors.Is(err, bridge.ErrBypassesForward) {
		return err
	}
	return failed(step, err)
}

// findLink finds the pod's link on the node, and changes nothing. It returns bridge.ErrBypassesForward if the link's
// packets can't pass the FORWARD hook.
func (m *making) findLink(links netlinksafe.Handle) error {
	peer, err := bridge.FindPeer(links, m.netns, m.record.IfName)
	m.record.HostIf, m.record.HostIndex, m.record.BridgeIf = peer.Name, peer.Index, peer.Bridge
	return err
}

// preventBypass makes the packets of another plugin's bridge pass the FORWARD hook, if the pod's link is a port of
// such a bridge. It returns bridge.ErrBypassesForward if the bridge's packets can't pass that hook. If the node itself
// needs no IPv6 on the link, preventBypass switches IPv6 off there.
//
// preventBypass comes before the record, so a pod that bypasses policy gets no record. It isn't undone, because other
// pods of the bridge need the bridge's options. The switch for IPv6 goes away with the link.
func (m *making) preventBypass(links netlinksafe.Handle) error {
	e := m.record
	if e.BridgeIf != "" {
		if err := bridge.EnableBridgeNetfilter(links, e.BridgeIf); err != nil {
			return err
		}
	}
	if bridge.NeedsNoIPv6(e) {
		return bridge.DisableIPv6(e.HostIf)
	}
	return nil
}

// assign takes the addresses out of all sets, writes the record, and assigns the addresses to the attachment. Sets may
// still have the addresses: weir may have missed the DEL of an earlier attachment, or an agent may have put an address
// of an ended pod into a set again before the agent was killed. Once the record is written, the agent puts the
// addresses into the set of all pods. So assign takes the addresses out before it writes the record. The error may be
// *ipam.AssignedError.
func (m *making) assign() error {
	const step = "assign the pod's addresses"
	unlock, err := endpoint.Lock()
	if err != nil {
		return &StepError{step, err}
	}
	defer unlock()
	addrs := addrsOf(m.record.Addresses)
	for _, addr := range addrs {
		if err := ipam.CheckExternal(m.record.ID(), addr); err != nil {
			return assignError(step, err)
		}
	}
	if err := m.Sets.Purge(addrs...); err != nil {
		return failed("take the pod's addresses out of the sets of their last pod", err)
	}
	if m.lock, err = m.record.Begin(); err != nil {
		return &StepError{step, err}
	}
	for _, addr := range addrs {
		if err := ipam.AssignExternal(m.record.ID(), addr); err != nil {
			return assignError(step, err)
		}
	}
	return nil
}

func (m *making) deleteConnections() error {
	return failed("delete the connections of the pod's addresses", conntrack.Delete(addrsOf(m.record.Addresses)...))
}

// checkDenied returns nil if rules deny the pod's connections until an agent enrols the pod. It returns a *NoRuleError
// if there are no such rules, as before the node's first agent, or if the rules can't be read.
func (m *making) checkDenied(noAgent error) error {
	for _, addr := range m.record.Addresses {
		if used, err := m.Sets.InUse(addr.Addr); err != nil || !used {
			return &NoRuleError{Set: m.Sets.Name(addr.Addr), Err: errors.Join(noAgent, err)}
		}
	}
	return nil
}

// stayClosed is for a pod that starts without an agent. It returns nil if no packets of the pod pass until an agent
// enrols the pod. The set of all pods doesn't have the pod's link-local address. So if the pod is on another plugin's
// bridge, stayClosed adds the pod's port to the table for link-local addresses.
func (m *making) stayClosed(noAgent error) error {
	if err := m.checkDenied(noAgent); err != nil || m.record.BridgeIf == "" {
		return err
	}
	return failed("deny the pod's link-local address", bridge.AddLinkLocalPorts([]uint32{uint32(m.record.HostIndex)}))
}

func checkChained(e *endpoint.Endpoint, prevResult []endpoint.Address) error {
	var errs []error
	same := func(a, b endpoint.Address) bool { return a.Addr == b.Addr }
	if !slices.EqualFunc(e.Addresses, prevResult, same) {
		errs = append(errs, fmt.Errorf(
			"prevResult has the addresses %v, but the pod was added with %v", prevResult, e.Addresses))
	}
	if e.BridgeIf != "" {
		if on, err := bridge.NetfilterEnabled(e.BridgeIf); err != nil || !on {
			errs = append(errs, errors.Join(fmt.Errorf(
				"bridge %s passes packets between pods on without iptables (nf_call_iptables)", e.BridgeIf), err))
		}
		errs = append(errs, bridge.CheckLinkLocal(*e))
	}
	if bridge.NeedsNoIPv6(*e) {
		errs = append(errs, bridge.CheckNoIPv6(e.HostIf))
	}
	return errors.Join(errs...)
}
