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

// enrolTimeout limits the wait for the agent's answer. kubelet lets an ADD take several minutes.
const enrolTimeout = 30 * time.Second

// Request describes the attachment to make. weir makes its interface (Link), or another plugin has made it (Chained).
type Request struct {
	ContainerID, IfName string // ContainerID and IfName together are the attachment's ID
	Network             string
	Netns               string // path of the pod's network namespace
	Pod                 endpoint.Pod
	Enforcement         conf.Enforcement
	// Link is used if Chained is nil.
	Link Link
	// Chained is nil if weir makes the interface.
	Chained *Chained
}

// Link describes an interface that weir makes.
type Link struct {
	Ranges []conf.Range
	// Addresses are the requested addresses, at most one of each family. In a family of Ranges without a requested
	// address, the attachment gets a free address.
	Addresses []netip.Addr
	MAC       net.HardwareAddr // nil means that the MAC is derived from an address
	MTU       int              // 0 means the MTU of weir0
	Routes    []conf.Route
}

// Made is the part of an attachment that the result of ADD needs.
type Made struct {
	Record    endpoint.Endpoint
	BridgeMAC net.HardwareAddr // empty for a chained attachment
	Routes    []conf.Route     // routes in the pod; empty for a chained attachment
}

type making struct {
	Node
	requested Link
	record    endpoint.Endpoint
	netns     netns.NsHandle
	mac       net.HardwareAddr
	bridge    *bridge.Bridge
	pair      bridge.Pair
	call      *enrolCall // nil if no answer of the agent is awaited
	enrolled  bool       // the agent has enrolled the pod, or enforcement is off
	lock      io.Closer  // a lock on the record: while it is locked, other processes know that Make is running
}

type enrolCall struct {
	wait   func() (agentapi.EnrolAnswer, error)
	cancel context.CancelFunc
}

// Make makes an attachment, and then calls the function report. If a step or report fails, Make undoes all steps except
// preventBypass, which sets options of another plugin's bridge and of the pod's link.
//
// Errors are *ExistsError, *NetnsError, *LinkError, *EnrolError, *NoRuleError, bridge.ErrBypassesForward, ipam's
// *ExhaustedError and *AssignedError, and the errors of the function report. A *StepError is any other failure of the
// kernel or the disk. A *LeftoverError wraps one of these if a step could not be undone.
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
	made := Made{Record: m.record, Routes: m.pair.Routes}
	if m.bridge != nil {
		made.BridgeMAC = m.bridge.MAC
	}
	return report(made)
}

// steps returns the steps, in the order in which Make does them. No packet passes a link of weir's before startLink, so
// the agent can enrol the pod while createLink runs.
func (m *making) steps() []func() error {
	if m.record.Chained {
		return m.chainedSteps()
	}
	return []func() error{
		m.reserve,           // choose requested or free addresses, write the record, and assign the addresses
		m.denyUntilEnrolled, // put the addresses into the set of all pods
		m.startEnrol,        // ask the agent to enrol the pod
		m.ensureBridge,      // make weir0, unless it is ready
		m.createLink,        // make the veth pair with the node's end down, and configure the pod's end
		m.allowSender,       // allow the port, in the guard, to send with its own MAC and addresses
		m.awaitEnrol,        // wait for the agent's answer
		m.startLink,         // set the link up if the pod is enrolled, and wait until packets pass
	}
}

// prepare checks the request. For a chained attachment, it finds the pod's link and calls preventBypass. The caller
// must close the result.
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
	if err := m.prepareChained(r.Chained); err != nil {
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

// undo undoes all steps, as DEL would. It returns the cause, in a *LeftoverError if a step could not be undone.
func (m *making) undo(cause error) error {
	if m.call != nil {
		m.call.cancel()
		_, _ = m.call.wait() // the attachment is undone whatever the answer is
	}
	if err := m.endUnfinished(&m.record); err != nil {
		return &LeftoverError{Cause: cause, Err: err}
	}
	return cause
}

// reserve chooses an address of each family that has a range, writes the record, and assigns the addresses. Meanwhile
// it has the node's lock.
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

func (m *making) allowSender() error {
	return failed("guard the pod's port", bridge.AllowSender(m.port().Sender()))
}

func (m *making) denyUntilEnrolled() error {
	if m.record.Enforcement == conf.Off {
		return nil
	}
	return failed("deny the pod's connections", m.Sets.Deny(m.record.Pod.String(), addrsOf(m.record.Addresses)...))
}

func (m *making) startEnrol() error {
	if m.record.Enforcement == conf.Off {
		return nil
	}
	ctx, cancel := context.WithTimeout(context.Background(), enrolTimeout)
	m.call = &enrolCall{wait: agentapi.Enrol(ctx, m.record.ID()), cancel: cancel}
	return nil
}

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

// createLink makes the veth pair and configures the pod's end. The node's end stays down. The error is a *LinkError.
func (m *making) createLink() error {
	p := m.port()
	var err error
	if m.pair, err = m.bridge.AddPort(p); err != nil {
		return &LinkError{IfName: p.IfName, MAC: p.MAC, Err: err}
	}
	return nil
}

// awaitEnrol waits for the agent's answer. With enforcement "closed" the pod may start although the agent hasn't
// enrolled it. The pod stays closed until an agent enrols it.
func (m *making) awaitEnrol() error {
	if m.call == nil {
		m.enrolled = true
		return nil
	}
	e := m.call
	m.call = nil
	defer e.cancel()
	_, err := e.wait()
	switch {
	case err == nil:
		m.enrolled = true
		return nil
	case m.record.Enforcement != conf.Closed || errors.Is(err, agentapi.ErrOutdated):
		// Only with enforcement "closed" may a pod start without an agent. ErrOutdated fails ADD all the same: the agent
		// would refuse the pod's configuration again.
		return &EnrolError{Err: err}
	case m.record.Chained:
		return m.stayClosed(err)
	}
	return nil
}

func (m *making) startLink() error {
	if !m.enrolled {
		return nil
	}
	return failed("set the pod's link up", m.pair.Start())
}
