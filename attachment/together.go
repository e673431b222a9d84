package attachment

import (
	"net/netip"
	"slices"

	"github.com/weir-net/weir/bridge"
	"github.com/weir-net/weir/endpoint"
	"github.com/weir-net/weir/ipam"
	"github.com/weir-net/weir/netfilter/conntrack"
)

// endWaiting ends x, together with all attachments whose DELs wait for the node's lock or were killed. In this way, to
// end many pods at once takes little more time than to end one. The caller must have the node's lock, and must call
// the returned function later() after it has unlocked.
func (n Node) endWaiting(x *ending) (later func(), err error) {
	later = func() {}
	ids, err := endpoint.Unattended()
	if err == nil && slices.Contains(ids, x.id) && (len(ids) > 1 || !x.forbidden) {
		var all []*ending
		has := false
		for _, id := range ids {
			// An attachment with a broken record is left to its own DEL. If x has a broken record, endLocked below ends x.
			if e, isEnding, err := endpoint.LoadAny(id); err == nil && isEnding {
				other := &ending{id: id}
				other.setRecord(e)
				all, has = append(all, other), has || id == x.id
			}
		}
		if later, err = n.detachAll(all); err == nil && has {
			return later, nil
		}
	}
	_, err = n.endLocked(x)
	return later, err
}

// detachAll does what detach does, for many attachments. It does each step for all of them before the next step.
// The caller must have the node's lock, and must call the returned function later() after it has unlocked.
func (n Node) detachAll(all []*ending) (later func(), err error) {
	var ports []string
	var addresses []endpoint.Address
	own := map[string][]endpoint.Address{}
	for _, x := range all {
		if own[x.id], err = stillAssigned(x.record); err == nil {
			err = x.shut()
		}
		if err != nil {
			return func() {}, err
		}
		ports = append(ports, x.sender.HostIf)
		addresses = append(addresses, own[x.id]...)
	}
	later, err = bridge.ForbidPorts(ports)
	if err != nil {
		return later, err
	}
	steps := []func(addrs []netip.Addr) error{
		func(addrs []netip.Addr) error { return n.Sets.Purge(addrs...) },
		func([]netip.Addr) error { return bridge.RemovePorts(ports, addresses) },
		func(addrs []netip.Addr) error { return conntrack.Delete(addrs...) },
	}
	for _, step := range steps {
		if err := step(addrsOf(addresses)); err != nil {
			return later, err
		}
	}
	for _, x := range all {
		for _, a := range own[x.id] {
			if err := ipam.Release(x.id, a.Addr); err != nil {
				return later, err
			}
		}
		if err := endpoint.Remove(x.id); err != nil {
			return later, err
		}
	}
	return later, nil
}
