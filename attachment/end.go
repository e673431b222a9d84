package attachment

import (
	"errors"
	"io/fs"
	"net"
	"net/netip"

	"github.com/weir-net/weir/bridge"
	"github.com/weir-net/weir/endpoint"
	"github.com/weir-net/weir/ipam"
	"github.com/weir-net/weir/netfilter/conntrack"
)

// ending records which steps of an attachment's end are done.
type ending struct {
	id        string
	record    *endpoint.Endpoint
	sender    bridge.Sender
	busy      bool // true if this process has locked the record (endpoint.LockBusy)
	begun     bool // true if the method begin has marked the record as ending
	forbidden bool // true if the guard has no entry of the port
	unplugged bool // true if the link and the neighbour entries are deleted
	salvaged  bool // true if the record is broken: it isn't known whether weir or another plugin made the link
}

// End removes the attachment with this ID. It returns nil if there is no record. If the record is broken, End removes
// all parts that it can find by the ID. The error is a *StepError.
func (n Node) End(id string) error { return failed("delete", n.end(id)) }

func (n Node) end(id string) error {
	// While this process has the lock, Reap leaves the attachment alone.
	busy := endpoint.LockBusy(id)
	defer func() { _ = busy.Close() }()
	x := &ending{id: id, busy: busy.Locked()}
	err := n.begin(x)
	if errors.Is(err, fs.ErrNotExist) {
		return nil // an earlier DEL has removed the record; begin has removed the link
	}
	if err != nil {
		return err
	}
	if x.begun {
		busy.Wait()
	}
	unlock, err := endpoint.Lock()
	if err != nil {
		return err
	}
	later, err := n.endWaiting(x)
	unlock()
	later()
	return err
}

// endUnfinished removes an attachment that Make could not finish. The record may not be on disk yet.
func (n Node) endUnfinished(e *endpoint.Endpoint) error {
	busy := endpoint.LockBusy(e.ID())
	defer func() { _ = busy.Close() }()
	x := &ending{id: e.ID(), busy: busy.Locked()}
	if err := n.begin(x); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	unlock, err := endpoint.Lock()
	if err != nil {
		return err
	}
	defer unlock()
	x.resume(e)
	return n.detach(x)
}

// begin does the slowest steps, which don't need the node's lock. It marks the record as ending, so that the agent puts
// the addresses into no more sets. Then it deletes the link. If another plugin made the link, begin sets the link down
// instead. If the record is missing or broken, begin deletes only weir's link. If the record is missing, begin then
// returns fs.ErrNotExist.
func (n Node) begin(x *ending) error {
	e, err := endpoint.MarkEnding(x.id)
	missing, broken := errors.Is(err, fs.ErrNotExist), errors.Is(err, endpoint.ErrBroken)
	switch {
	case missing || broken:
		if failed := bridge.RemovePort(bridge.PortName(x.id), nil); failed != nil || broken {
			return failed
		}
		return err
	case err != nil:
		return err
	}
	x.setRecord(e)
	x.begun = true
	if e.Chained { // the other plugin has to delete the link
		x.forbidden = true
		return x.shut()
	}
	return n.unplug(x)
}

// unplug deletes the link. If no other attachment is ending, unplug also takes the sender out of the guard, and the
// addresses out of the sets. Otherwise detachAll does this later, for all ending attachments together. unplug also
// deletes the addresses' neighbour entries. If another process may release the addresses meanwhile, unplug leaves the
// sets and the neighbour entries alone.
//
// The addresses may leave the sets before the link is deleted: on weir0, the rules drop a connection's first packet if
// its source or destination is in no set.
func (n Node) unplug(x *ending) (err error) {
	own := x.record.Addresses
	for _, a := range x.record.Addresses {
		if owner, err := ipam.AssignedTo(a.Addr); err != nil || owner != x.id || !x.busy {
			own = nil
		}
	}
	if x.forbidden = !endpoint.OthersEnding(x.id); x.forbidden {
		defer n.Sets.PurgeEarly(addrsOf(own)...)()
		err = bridge.Unplug(x.sender, own)
	} else {
		err = bridge.RemovePort(x.sender.HostIf, own)
	}
	x.unplugged = err == nil && len(own) > 0
	return err
}

func (x *ending) resume(e *endpoint.Endpoint) {
	if x.begun && x.record.Created.Equal(e.Created) {
		x.record = e
		return
	}
	x.begun, x.forbidden, x.unplugged = false, false, false
	x.setRecord(e)
}

func (x *ending) setRecord(e *endpoint.Endpoint) {
	x.record = e
	x.sender = bridge.Sender{HostIf: bridge.PortName(x.id), Addresses: e.Addresses}
	if mac, err := net.ParseMAC(e.MAC); err == nil {
		x.sender.MAC = mac
	}
}

// endLocked does the steps that the method begin hasn't done. It returns the record, or nil if there is none. The
// caller must have the node's lock.
func (n Node) endLocked(x *ending) (*endpoint.Endpoint, error) {
	e, err := endpoint.MarkEnding(x.id)
	if x.salvaged = errors.Is(err, endpoint.ErrBroken); x.salvaged {
		e, err = salvage(x.id)
	}
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	x.resume(e)
	return e, n.detach(x)
}

func salvage(id string) (*endpoint.Endpoint, error) {
	container, ifName := endpoint.PartsOfID(id)
	e := &endpoint.Endpoint{ContainerID: container, IfName: ifName, HostIf: bridge.PortName(id)}
	owners, err := ipam.Assignments()
	if err != nil {
		return nil, err
	}
	for addr, owner := range owners {
		if owner == id {
			e.Addresses = append(e.Addresses, endpoint.Address{Addr: addr})
		}
	}
	return e, nil
}

// detach removes everything that the attachment has, the record last. It releases the addresses only when nothing but
// the record refers to them. The caller must have the node's lock.
func (n Node) detach(x *ending) error {
	addresses, err := stillAssigned(x.record)
	if err != nil {
		return err
	}
	if !x.forbidden {
		if err := x.forbid(); err != nil {
			return err
		}
	}
	if err := x.shut(); err != nil {
		return err
	}
	if err := n.Sets.Purge(addrsOf(addresses)...); err != nil {
		return err
	}
	if !x.unplugged {
		if err := bridge.RemovePort(x.sender.HostIf, addresses); err != nil {
			return err
		}
	}
	if err := conntrack.Delete(addrsOf(addresses)...); err != nil {
		return err
	}
	for _, a := range addresses {
		if err := ipam.Release(x.id, a.Addr); err != nil {
			return err
		}
	}
	return endpoint.Remove(x.id)
}

// stillAssigned returns the record's addresses, except those that are assigned to another attachment. An earlier DEL
// may have released an address of the record, and ADD may have assigned that address to a new attachment.
func stillAssigned(e *endpoint.Endpoint) ([]endpoint.Address, error) {
	var own []endpoint.Address
	for _, a := range e.Addresses {
		owner, err := ipam.AssignedTo(a.Addr)
		if err != nil {
			return nil, err
		}
		if owner == "" || owner == e.ID() {
			own = append(own, a)
		}
	}
	return own, nil
}

func (x *ending) forbid() error {
	if x.sender.MAC == nil {
		return bridge.ForbidPort(x.sender.HostIf)
	}
	return bridge.ForbidSender(x.sender)
}

// shut sets the link of a chained attachment down. Once the pod's addresses are in no set, no rule checks the link's
// packets. The pod may still be running: GC ends each attachment that the runtime doesn't list, and DEL may remove one
// of the pod's interfaces. If begin has set the link down already, shut takes little time.
//
// If the record is broken, shut finds the link by the attachment's addresses. It does nothing if one of the addresses
// has a neighbour entry on weir0, because the link is then weir's own.
func (x *ending) shut() error {
	e := x.record
	if x.salvaged {
		own, err := bridge.HasNeighbour(e.Addresses)
		if own || err != nil {
			return err
		}
		return bridge.ShutPeersOf(e.Addresses)
	}
	if !e.Chained || e.HostIf == "" {
		return nil
	}
	own, err := stillAssigned(e)
	if err != nil {
		return err
	}
	return bridge.ShutPeer(e.HostIf, e.HostIndex, e.Netns, own)
}

func addrsOf(addresses []endpoint.Address) []netip.Addr {
	all := make([]netip.Addr, 0, len(addresses))
	for _, a := range addresses {
		all = append(all, a.Addr)
	}
	return all
}
