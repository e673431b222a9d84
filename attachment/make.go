package attachment

import (
	"context"
	"errors"
	"io"
	"net"
	"net/netip"
	"time"

	"github.com/vishvananda/netns"

	"github.com/weir-net/weir/agentapi"
	"github.com/weir-net/weir/bridge"
	"github.com/weir-net/weir/conf"
	"github.com/weir-net/weir/endpoint"
	"github.com/weir-net/weir/ipam"
)

// enrolTimeout bounds the wait for the agent's answer. The agent answers only when its source knows the pod, or after
// its own time limit. kubelet waits minutes for a sandbox.
const enrolTimeout = 30 * time.Second

// Request describes the attachment that ADD requests.
type Request struct {
	ContainerID, IfName string // ContainerID and IfName together are the attachment's ID
	Network             string
	Netns               string // path of the pod's network namespace
	Pod                 endpoint.Pod
	Enforcement         conf.Enforcement
	// Link is the interface that weir makes. It is used if Chained is nil.
	Link Link
	// Chained is the interface that another plugin has made; nil if weir makes it.
	Chained *Chained
}

// Link describes an interface that weir makes.
type Link struct {
	Ranges []conf.Range
	// Addresses are the requested addresses, at most one of each family. In a family without a requested address, the
	// attachment gets a free address of its ranges.
	Addresses []netip.Addr
	MAC       net.HardwareAddr // nil: derived from an address
	MTU       int              // 0: the MTU of the link with the node's default route
	Routes    []conf.Route
}

// Made is what the result of ADD needs to say of the attachment.
type Made struct {
	Record    endpoint.Endpoint
	BridgeMAC net.HardwareAddr // empty for a chained attachment
	Routes    []conf.Route     // in the pod; empty for a chained attachment
}

type making struct {
	Node
	requested Link
	record    endpoint.Endpoint
	netns     netns.NsHandle
	mac       net.HardwareAddr
	bridge    *bridge.Bridge
	routes    []conf.Route
	enrolment *enrolment // nil if no answer of the agent is awaited
	enrolled  bool       // the agent has enrolled the pod, or enforcement is off
	lock      io.Closer  // a lock on the record: while it is held, other processes know that Make is running
}

// enrolment is a request that the agent has not answered yet.
type enrolment struct {
	wait   func() (agentapi.EnrolAnswer, error)
	cancel context.CancelFunc
}

// Make makes an attachment, by the steps that the method steps lists, and then calls report. If a step or report fails,
// Make undoes all steps.
//
// Errors are *ExistsError, *NetnsError, *LinkError, *EnrolError, *NoRuleError, bridge.ErrBypassesForward, ipam's
// *ExhaustedError and *AssignedError, and report's own. A *StepError is any other failure of the kernel or the disk. A
// *LeftoverError wraps one of these, and says that a step could not be undone.
func (n Node) Make(r Request, report func(Made) error) (err error) {
	m, err := n.prepare(r)
	if err != nil {
		return err
	}
	defer m.close()
	defer func() {
		if err != nil {
			err = m.undo(err)
		}
	}()
	for _, step := range m.steps() {
		if err := step(); err != nil {
			return err
		}
	}
	made := Made{Record: m.record, Routes: m.routes}
	if m.bridge != nil {
		made.BridgeMAC = m.bridge.MAC
	}
	return report(made)
}

// steps returns the steps of Make, in their order. No packet passes the link before setLinkUp, so the agent can enrol
// the pod while Make is still making the bridge and the link.
func (m *making) steps() []func() error {
	if m.record.Chained {
		return m.chainedSteps()
	}
	return []func() error{
		m.reserve,           // assign requested or free addresses, and write the record
		m.allowSender,       // allow the port, in the guard, to send with its own MAC and addresses
		m.denyUntilEnrolled, // put the addresses into the set of all pods
		m.startEnrol,        // ask the agent to enrol the pod
		m.ensureBridge,      // make weir0, unless it is ready
		m.createLink,        // make the veth pair, its end on the node down, and configure the pod's end
		m.awaitEnrol,        // wait for the agent's answer
		m.setLinkUp,         // from here packets pass
	}
}

// prepare makes the checks that need none of the steps. It changes nothing on the node, with one exception: it makes a
// chained attachment's bridge pass packets through iptables (findChained). The caller closes what prepare returns.
func (n Node) prepare(r Request) (*making, error) {
	id := endpoint.ID(r.ContainerID, r.IfName)
	if endpoint.Exists(id) {
		return nil, &ExistsError{ID: id}
	}
	fd, err := openNetns(r.Netns)
	if err != nil {
		return nil, err
	}
	m := &making{
		Node: n, netns: fd, requested: r.Link, mac: r.Link.MAC,
		record: endpoint.Endpoint{
			ContainerID: r.ContainerID, IfName: r.IfName, Network: r.Network, Netns: r.Netns, Pod: r.Pod,
			Chained: r.Chained != nil, Enforcement: r.Enforcement, Created: time.Now().UTC(),
		},
	}
	if r.Chained == nil {
		m.record.HostIf, m.record.MTU = bridge.PortName(id), &m.requested.MTU
		return m, nil
	}
	if err := m.findChained(r.Chained); err != nil {
		return nil, errors.Join(err, fd.Close())
	}
	return m, nil
}

func (m *making) close() {
	if m.lock != nil {
		_ = m.lock.Close()
	}
	_ = m.netns.Close()
}

// undo undoes all steps, as DEL would, and returns the cause, in a *LeftoverError if a step could not be undone.
func (m *making) undo(cause error) error {
	if m.enrolment != nil {
		m.enrolment.cancel()
		_, _ = m.enrolment.wait() // the answer has no effect any more
	}
	if err := m.endUnfinished(&m.record); err != nil {
		return &LeftoverError{Cause: cause, Err: err}
	}
	return cause
}

// reserve assigns the requested address of each family, or a free one, and writes the record, under the node's lock.
func (m *making) reserve() error {
	const step = "reserve addresses"
	unlock, err := endpoint.Lock()
	if err != nil {
		return &StepError{step, err}
	}
	defer unlock()
	e := &m.record
	want := ipam.Request{Ranges: m.requested.Ranges, Addresses: m.requested.Addresses}
	return assignError(step, ipam.Assign(e.ID(), want, func(addrs []endpoint.Address) (err error) {
		e.Addresses = addrs
		if m.mac == nil {
			m.mac = bridge.PodMAC(addrs)
		}
		e.MAC = m.mac.String()
		m.lock, err = e.Begin()
		return err
	}))
}

func (m *making) port() bridge.Port {
	e := m.record
	return bridge.Port{
		HostIf: e.HostIf, IfName: e.IfName, Netns: m.netns, MAC: m.mac, Addresses: e.Addresses, Routes: m.requested.Routes,
		Alias: "weir: " + e.Pod.String() + " " + e.IfName,
	}
}

// allowSender allows the port, in the guard, to send with the attachment's MAC and addresses. Without this permission
// the guard drops all that the pod sends.
func (m *making) allowSender() error {
	return failed("guard the pod's port", bridge.AllowSender(m.port().Sender()))
}

// denyUntilEnrolled puts the addresses into the sets of all pods, unless enforcement is off. From then on the kernel
// drops each new connection of the pod, until the agent has put the addresses into their classes.
func (m *making) denyUntilEnrolled() error {
	if m.record.Enforcement == conf.Off {
		return nil
	}
	return failed("deny the pod's connections", m.Sets.Deny(m.record.Pod.String(), addrsOf(m.record.Addresses)...))
}

// startEnrol asks the agent to put the addresses into their classes, unless enforcement is off. It doesn't wait for
// the answer.
func (m *making) startEnrol() error {
	if m.record.Enforcement == conf.Off {
		return nil
	}
	ctx, cancel := context.WithTimeout(context.Background(), enrolTimeout)
	m.enrolment = &enrolment{wait: agentapi.Enrol(ctx, m.record.ID()), cancel: cancel}
	return nil
}

// ensureBridge makes the bridge, under the node's lock, unless it is ready.
func (m *making) ensureBridge() error {
	mtu, gateways := m.requested.MTU, bridge.Gateways(m.record.Addresses)
	if m.bridge = bridge.FindReady(mtu, gateways); m.bridge != nil {
		return nil
	}
	unlock, err := endpoint.Lock()
	if err == nil {
		defer unlock()
		m.bridge, err = bridge.Ensure(mtu, gateways)
	}
	return failed("make the bridge", err)
}

// createLink makes the veth pair, with its end on the node down, and configures the pod's end. Its error is *LinkError.
func (m *making) createLink() error {
	p := m.port()
	var err error
	if m.routes, err = m.bridge.AddPort(p); err != nil {
		return &LinkError{IfName: p.IfName, MAC: p.MAC, Err: err}
	}
	return nil
}

// awaitEnrol waits for the agent's answer. With enforcement "closed" it also succeeds if no agent enrols the pod now:
// the link stays down, or a chained pod's connections stay denied, until an agent has enrolled the pod. Even then it
// fails if the configuration is outdated, or if no rule denies a chained pod's connections.
func (m *making) awaitEnrol() error {
	if m.enrolment == nil {
		m.enrolled = true
		return nil
	}
	e := m.enrolment
	m.enrolment = nil
	defer e.cancel()
	_, err := e.wait()
	switch {
	case err == nil:
		m.enrolled = true
		return nil
	case m.record.Enforcement != conf.Closed || errors.Is(err, agentapi.ErrOutdated):
		// With strict enforcement no pod starts without the agent. With any, an outdated configuration stays outdated, so
		// waiting for an agent doesn't help.
		return &EnrolError{Err: err}
	case m.record.Chained:
		return m.checkDenied(err)
	}
	return nil
}

// setLinkUp sets the link up if the pod is enrolled. From then on packets pass.
func (m *making) setLinkUp() error {
	if !m.enrolled {
		return nil
	}
	return failed("set the pod's link up", bridge.SetLinkUp(m.record.HostIf))
}
