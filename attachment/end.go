// Package attachment owns how attachments end: because the runtime deletes them, because making them failed, or because
// they are over and nobody says so. What an attachment has on the node is its record, guard entry, places in sets, link,
// neighbour entries, connections and addresses. The record is written before all of these and removed after them, and each
// step can be repeated, so whatever is killed on the way leaves what is found again.
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
	"github.com/weir-net/weir/netfilter/ipset"
)

// End takes the attachment away, as its record says. That it is gone already is no error. A record that can't be understood
// ends too: what goes by its name alone is taken away, and so are the addresses that it holds.
func End(id string) error {
	// Reap takes what is left half done, and a deletion that still goes on is not.
	defer func(held io.Closer) { _ = held.Close() }(endpoint.MarkBusy(id))
	begun, err := begin(id)
	if errors.Is(err, fs.ErrNotExist) {
		return nil // nothing is made before the record, and it goes last: there was nothing left but perhaps the link
	}
	if err != nil {
		return err
	}
	unlock, err := endpoint.Lock()
	if err != nil {
		return err
	}
	defer unlock()
	_, err = end(id, begun)
	return err
}

// Detach is End for who has the record's content: of a record that is gone, or was never written, too.
func Detach(e *endpoint.Endpoint) error {
	defer func(held io.Closer) { _ = held.Close() }(endpoint.MarkBusy(e.ID()))
	begun, err := begin(e.ID())
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	unlock, err := endpoint.Lock()
	if err != nil {
		return err
	}
	defer unlock()
	return detach(e, begun)
}

// begin is what is done before the lock is waited for, as it takes the kernel longer than all the rest: from here the agent
// puts the pod into nothing, its port sends nothing, and its link is gone, which is known by the ID alone. It returns the
// record of whom it did that for; nil if that can't be understood, and with the error fs.ErrNotExist if there is none.
func begin(id string) (*endpoint.Endpoint, error) {
	e, err := endpoint.MarkEnding(id)
	if err == nil {
		if e.Chained { // another plugin's port, which only that can end
			return e, nil
		}
		if s, err := sender(e); err == nil {
			return e, bridge.Unplug(s)
		}
	}
	if err != nil && !errors.Is(err, fs.ErrNotExist) && !errors.Is(err, endpoint.ErrBroken) {
		return nil, err
	}
	if err := bridge.RemoveLink(bridge.PortName(id)); err != nil {
		return nil, err
	}
	if errors.Is(err, fs.ErrNotExist) {
		return nil, err
	}
	return nil, nil
}

// end is End for who holds the lock. The record is read under it: whoever had it before may have taken the attachment
// away, and the runtime have made another of the same ID. It returns what was there; nil if nothing was. begun is what
// begin has returned; nil if it wasn't called.
func end(id string, begun *endpoint.Endpoint) (*endpoint.Endpoint, error) {
	e, err := endpoint.MarkEnding(id)
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return nil, nil
	case errors.Is(err, endpoint.ErrBroken):
		e, err = salvage(id)
	}
	if err != nil {
		return nil, err
	}
	return e, detach(e, begun)
}

// salvage is what can be known of an attachment whose record can't be understood.
func salvage(id string) (*endpoint.Endpoint, error) {
	container, ifName, _ := strings.Cut(id, ":")
	e := &endpoint.Endpoint{ContainerID: container, IfName: ifName, HostIf: bridge.PortName(id)}
	held, err := ipam.Assignments()
	if err != nil {
		return nil, err
	}
	for addr, holder := range held {
		if holder == id {
			e.Addresses = append(e.Addresses, endpoint.Address{Addr: addr})
		}
	}
	return e, nil
}

// detach takes everything away, step by step so that nothing opens: the port is forbidden to send, if begin hasn't done
// that, the addresses leave every set, and only what nothing refers to any more is freed. What goes by addresses leaves out those that another holds
// by now: whoever detached it before has come as far as freeing them. The lock keeps others from taking them meanwhile.
func detach(e, begun *endpoint.Endpoint) error {
	var addresses []endpoint.Address
	for _, a := range e.Addresses {
		holder, err := ipam.AssignedTo(a.Addr)
		if err != nil {
			return err
		}
		if holder == "" || holder == e.ID() {
			addresses = append(addresses, a)
		}
	}
	if begun == nil || !begun.Created.Equal(e.Created) {
		if err := forbid(e); err != nil {
			return err
		}
	}
	if err := purge(addrsOf(addresses)); err != nil {
		return err
	}
	// The link that weir made for the attachment, and no other, whatever a record says is the node's end.
	if err := bridge.RemovePort(bridge.PortName(e.ID()), addresses); err != nil {
		return err
	}
	if err := conntrack.Delete(addrsOf(addresses)...); err != nil {
		return err
	}
	for _, a := range addresses {
		if err := ipam.Release(e.ID(), a.Addr); err != nil {
			return err
		}
	}
	return endpoint.Remove(e.ID())
}

func forbid(e *endpoint.Endpoint) error {
	s, err := sender(e)
	if err != nil { // of a record that can't be understood
		return bridge.ForbidPort(s.HostIf)
	}
	return bridge.ForbidSender(s)
}

// sender goes by the name of weir's own link, whatever a record says is the node's end.
func sender(e *endpoint.Endpoint) (bridge.Sender, error) {
	mac, err := net.ParseMAC(e.MAC)
	return bridge.Sender{HostIf: bridge.PortName(e.ID()), MAC: mac, Addresses: e.Addresses}, err
}

// purge takes the addresses out of every set.
func purge(addrs []netip.Addr) error {
	if len(addrs) == 0 {
		return nil
	}
	sets, err := ipset.New()
	if err != nil {
		return err
	}
	defer sets.Close()
	return sets.Purge(addrs...)
}

func addrsOf(addresses []endpoint.Address) []netip.Addr {
	all := make([]netip.Addr, 0, len(addresses))
	for _, a := range addresses {
		all = append(all, a.Addr)
	}
	return all
}
