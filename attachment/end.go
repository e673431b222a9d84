package attachment

import (
	"errors"
	"io"
	"io/fs"
	"net"
	"net/netip"
	"strings"

	"github.com/weir-net/weir/bridge"
	"github.com/weir-net/weir/endpoint"
	"github.com/weir-net/weir/ipam"
	"github.com/weir-net/weir/netfilter/conntrack"
)

// ending is an attachment that is being taken away. It is handed from one part of the way to the next.
type ending struct {
	id string
	// record is the endpoint record; nil if there is none, or if it is broken.
	record *endpoint.Endpoint
	// sender is what the guard lets the attachment's port send. Its port is the link that weir made for the
	// attachment, whatever the record names. Its MAC is nil where the record tells none.
	sender bridge.Sender
	// begun says that the port of this record's attachment sends nothing any more, or is another plugin's.
	begun bool
}

// End takes the attachment with that ID away, as its record says. It returns nil if there is no record. If the record
// is broken, End takes away what the ID alone tells, and the addresses that are assigned to the attachment. The error
// is a *StepError.
func (n Node) End(id string) error { return failed("delete", n.end(id)) }

func (n Node) end(id string) error {
	// Reap ends the attachments whose deletion has stopped halfway: the lock says that this one goes on.
	defer func(lock io.Closer) { _ = lock.Close() }(endpoint.MarkBusy(id))
	x := &ending{id: id}
	err := x.begin()
	if errors.Is(err, fs.ErrNotExist) {
		return nil // the record is written first and removed last: without one at most the link was left
	}
	if err != nil {
		return err
	}
	unlock, err := endpoint.Lock()
	if err != nil {
		return err
	}
	defer unlock()
	_, err = n.endLocked(x)
	return err
}

// takeBack is End for an attachment whose making has failed. It goes by what ADD knows of the attachment, whether or
// not ADD has come as far as writing the record.
func (n Node) takeBack(e *endpoint.Endpoint) error {
	defer func(lock io.Closer) { _ = lock.Close() }(endpoint.MarkBusy(e.ID()))
	x := &ending{id: e.ID()}
	if err := x.begin(); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	unlock, err := endpoint.Lock()
	if err != nil {
		return err
	}
	defer unlock()
	x.goOnWith(e)
	return n.detach(x)
}

// begin does what needs no lock, as it takes the kernel longer than all the rest: it marks the record as ending, so
// that the agent puts the addresses into no set any more, forbids the port to send, and deletes the link, whose name
// follows from the ID. It returns fs.ErrNotExist if there is no record.
func (x *ending) begin() error {
	e, err := endpoint.MarkEnding(x.id)
	switch {
	case err == nil:
		x.setRecord(e)
		x.begun = true
		if e.Chained { // only the other plugin can end its port
			return nil
		}
		return bridge.Unplug(x.sender)
	case !errors.Is(err, fs.ErrNotExist) && !errors.Is(err, endpoint.ErrBroken):
		return err
	}
	if err := bridge.RemoveLink(bridge.PortName(x.id)); err != nil {
		return err
	}
	if errors.Is(err, fs.ErrNotExist) {
		return err
	}
	return nil
}

// goOnWith sets the record that was read under the lock. Before that, another process may have ended the attachment
// that begin has found, and the runtime may have made another with the same ID: then nothing of it is begun.
func (x *ending) goOnWith(e *endpoint.Endpoint) {
	if x.begun && x.record.Created.Equal(e.Created) {
		x.record = e
		return
	}
	x.begun = false
	x.setRecord(e)
}

func (x *ending) setRecord(e *endpoint.Endpoint) {
	x.record = e
	x.sender = bridge.Sender{HostIf: bridge.PortName(x.id), Addresses: e.Addresses}
	if mac, err := net.ParseMAC(e.MAC); err == nil {
		x.sender.MAC = mac
	}
}

// endLocked ends the attachment from where begin has come to; begin may not have been called. The caller holds the
// node's lock. It returns the record, and nil if there is none any more.
func (n Node) endLocked(x *ending) (*endpoint.Endpoint, error) {
	e, err := endpoint.MarkEnding(x.id)
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return nil, nil
	case errors.Is(err, endpoint.ErrBroken):
		e, err = salvage(x.id)
	}
	if err != nil {
		return nil, err
	}
	x.goOnWith(e)
	return e, n.detach(x)
}

// salvage returns what can be known of an attachment whose record is broken.
func salvage(id string) (*endpoint.Endpoint, error) {
	container, ifName, _ := strings.Cut(id, ":")
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

// detach takes everything away, in an order in which nothing is allowed on the way: the port is forbidden to send,
// unless begin has done that, then the addresses leave every set, and an address is released only when nothing refers
// to it any more. The caller holds the node's lock, which keeps the addresses from being assigned meanwhile.
func (n Node) detach(x *ending) error {
	addresses, err := x.addresses()
	if err != nil {
		return err
	}
	if !x.begun {
		if err := x.forbid(); err != nil {
			return err
		}
	}
	if err := n.Sets.Purge(addrsOf(addresses)...); err != nil {
		return err
	}
	if err := bridge.RemovePort(x.sender.HostIf, addresses); err != nil {
		return err
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

// addresses returns the record's addresses without those that are assigned to another attachment by now: an earlier
// attempt to end this one has come as far as releasing them.
func (x *ending) addresses() ([]endpoint.Address, error) {
	var own []endpoint.Address
	for _, a := range x.record.Addresses {
		owner, err := ipam.AssignedTo(a.Addr)
		if err != nil {
			return nil, err
		}
		if owner == "" || owner == x.id {
			own = append(own, a)
		}
	}
	return own, nil
}

// forbid takes back what the guard lets the port send.
func (x *ending) forbid() error {
	if x.sender.MAC == nil {
		return bridge.ForbidPort(x.sender.HostIf)
	}
	return bridge.ForbidSender(x.sender)
}

func addrsOf(addresses []endpoint.Address) []netip.Addr {
	all := make([]netip.Addr, 0, len(addresses))
	for _, a := range addresses {
		all = append(all, a.Addr)
	}
	return all
}
