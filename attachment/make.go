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

// enrolTimeout bounds the wait for the agent, which itself waits for the pod to become known. kubelet gives a sandbox
// minutes.
const enrolTimeout = 30 * time.Second

// Request is the attachment that ADD asks for.
type Request struct {
	ContainerID, IfName string // together its ID
	Network             string
	Netns               string // path of the pod's network namespace
	Pod                 endpoint.Pod
	Enforcement         conf.Enforcement
	// Link is the interface that weir makes; it counts where Chained is nil.
	Link Link
	// Chained is the interface that another plugin has made.
	Chained *Chained
}

// Link is an interface to be made.
type Link struct {
	Ranges []conf.Range
	// Addresses that the pod asks for, one of a family at most; a family without one gets a free address of the
	// ranges.
	Addresses []netip.Addr
	MAC       net.HardwareAddr // nil: one that is derived from an address
	MTU       int              // 0: that of the link with the node's default route
	Routes    []conf.Route
}

// Made is an attachment that Make has made.
type Made struct {
	Record endpoint.Endpoint
	// BridgeMAC and Routes, those that the pod has got, are empty for a chained attachment.
	BridgeMAC net.HardwareAddr
	Routes    []conf.Route
}

// making is an attachment on its way.
type making struct {
	Node
	asked     Link
	record    endpoint.Endpoint
	netns     netns.NsHandle
	mac       net.HardwareAddr
	bridge    *bridge.Bridge
	routes    []conf.Route
	enrolment *enrolment // that awaits the agent's answer
	enrolled  bool       // the agent has answered, or no policy is to be enforced on the pod
	lock      io.Closer  // on the record: it tells other processes that this attachment is on its way
}

// enrolment is a request to the agent that is not answered yet.
type enrolment struct {
	wait   func() (agentapi.EnrolAnswer, error)
	cancel context.CancelFunc
}

// Make makes an attachment: it writes the record first and sets the link up last, when the agent has answered that
// the kernel enforces the pod's policies. It then calls report. If a step or report fails, Make takes everything
// back.
//
// Errors are *ExistsError, *NetnsError, *LinkError, *EnrolError, *NoRuleError, bridge.ErrBypassesForward, and of ipam
// *ExhaustedError and *AssignedError; any other failure of the kernel or the disk is a *StepError. A *LeftoverError
// has one of them, and says that not everything was taken back.
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

// steps lists what Make does, in the order in which it happens. Nothing passes the link before setLinkUp, so the
// agent works on the enrolment while the bridge and the link are made.
func (m *making) steps() []func() error {
	if m.record.Chained {
		return m.chainedSteps()
	}
	return []func() error{
		m.reserve,
		m.allowSender,
		m.denyUntilEnrolled,
		m.startEnrol,
		m.ensureBridge,
		m.createLink,
		m.awaitEnrol,
		m.setLinkUp,
	}
}

// prepare checks what can be checked before anything is made.
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
		Node: n, netns: fd, asked: r.Link, mac: r.Link.MAC,
		record: endpoint.Endpoint{
			ContainerID: r.ContainerID, IfName: r.IfName, Network: r.Network, Netns: r.Netns, Pod: r.Pod,
			Chained: r.Chained != nil, Enforcement: r.Enforcement, Created: time.Now().UTC(),
		},
	}
	if r.Chained == nil {
		m.record.HostIf, m.record.MTU = bridge.PortName(id), &m.asked.MTU
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

// undo takes back what was made, as DEL would.
func (m *making) undo(cause error) error {
	if m.enrolment != nil {
		m.enrolment.cancel()
		_, _ = m.enrolment.wait() // the answer doesn't matter any more
	}
	if err := m.takeBack(&m.record); err != nil {
		return &LeftoverError{Cause: cause, Err: err}
	}
	return cause
}

// reserve assigns a free address of each family and writes the record, under the node's lock.
func (m *making) reserve() error {
	const step = "reserve addresses"
	unlock, err := endpoint.Lock()
	if err != nil {
		return &StepError{step, err}
	}
	defer unlock()
	e := &m.record
	want := ipam.Request{Ranges: m.asked.Ranges, Addresses: m.asked.Addresses}
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
		HostIf: e.HostIf, IfName: e.IfName, Netns: m.netns, MAC: m.mac, Addresses: e.Addresses, Routes: m.asked.Routes,
		Alias: "weir: " + e.Pod.String() + " " + e.IfName,
	}
}

// allowSender has the guard let the port send under its own name.
func (m *making) allowSender() error {
	return failed("guard the pod's port", bridge.AllowSender(m.port().Sender()))
}

// denyUntilEnrolled puts the addresses into the sets of all pods: from here the kernel drops each new connection of
// the pod, until the agent puts them into a class.
func (m *making) denyUntilEnrolled() error {
	if m.record.Enforcement == conf.Off {
		return nil
	}
	return failed("deny the pod's connections", m.Sets.Deny(m.record.Pod.String(), addrsOf(m.record.Addresses)...))
}

// startEnrol asks the agent to put the addresses into their classes, and doesn't wait for the answer.
func (m *making) startEnrol() error {
	if m.record.Enforcement == conf.Off {
		return nil
	}
	ctx, cancel := context.WithTimeout(context.Background(), enrolTimeout)
	m.enrolment = &enrolment{wait: agentapi.Enrol(ctx, m.record.ID()), cancel: cancel}
	return nil
}

// ensureBridge makes the bridge if it is not as it should be, under the node's lock.
func (m *making) ensureBridge() error {
	mtu, gateways := m.asked.MTU, bridge.Gateways(m.record.Addresses)
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

// createLink makes the veth pair, its end on the node down.
func (m *making) createLink() error {
	p := m.port()
	var err error
	if m.routes, err = m.bridge.AddPort(p); err != nil {
		return &LinkError{IfName: p.IfName, MAC: p.MAC, Err: err}
	}
	return nil
}

// awaitEnrol waits for the agent's answer. With enforcement "closed" the attachment is made without an answer too:
// the link stays down, or a chained pod denied, and the agent enrols the pod when it is there.
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
		// An outdated configuration stays outdated when an agent comes.
		return &EnrolError{Err: err}
	case m.record.Chained:
		return m.checkDenied(err)
	}
	return nil
}

// setLinkUp sets the link up if the pod is enrolled: from here packets pass.
func (m *making) setLinkUp() error {
	if !m.enrolled {
		return nil
	}
	return failed("set the pod's link up", bridge.SetLinkUp(m.record.HostIf))
}
