package attachment

import (
	"cmp"
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"time"

	"github.com/weir-net/weir/bridge"
	"github.com/weir-net/weir/endpoint"
	"github.com/weir-net/weir/ipam"
	"github.com/weir-net/weir/netfilter/conntrack"
)

type traces struct {
	ports   []string
	senders []bridge.Sender
	denied  []netip.Addr // the addresses in the sets that have only pods of this node
	owners  map[netip.Addr]string
}

type recorded struct {
	ids   map[string]bool
	ports map[string]bool
	addrs map[netip.Addr]bool
}

// sweep removes traces of attachments whose records were deleted by hand, or lost. An ID in valid counts as an
// attachment even without a record.
//
// sweep reads the traces before the records. An attachment's record is written before all traces, so a trace without a
// record belongs to no attachment.
func (n Node) sweep(valid map[string]bool) error {
	unlock, err := endpoint.Lock()
	if err != nil {
		return err
	}
	defer unlock()
	t, err := n.readTraces()
	if err != nil {
		return err
	}
	r, err := readRecords(t.owners, valid)
	if err != nil {
		return err
	}
	var errs []error
	for _, s := range t.senders {
		if !r.ports[s.HostIf] {
			errs = append(errs, bridge.ForbidSender(s))
		}
	}
	stale, _, err := sortByUse(r.stale(t))
	if err != nil {
		return errors.Join(append(errs, err)...)
	}
	errs = append(errs, n.Sets.Purge(addrsOf(stale)...))
	for _, name := range t.ports {
		if !r.ports[name] {
			errs = append(errs, bridge.RemovePort(name, nil))
		}
	}
	errs = append(errs, bridge.RemoveNeighbours(stale), conntrack.Delete(addrsOf(stale)...))
	if errors.Join(errs...) == nil { // nothing refers to the addresses any more
		for _, a := range stale {
			errs = append(errs, ipam.Release(t.owners[a.Addr], a.Addr))
		}
	}
	return errors.Join(errs...)
}

// Evict removes addresses that belong to no attachment from the sets of all pods. It returns the removed addresses.
// It takes the node's lock, so no address is assigned meanwhile. If a pod may still have an address, because a network
// namespace has it, the address stays, and Evict returns an error.
func (n Node) Evict(addrs []netip.Addr) ([]netip.Addr, error) {
	unlock, err := endpoint.Lock()
	if err != nil {
		return nil, err
	}
	defer unlock()
	owners, err := ipam.Assignments()
	if err != nil {
		return nil, err
	}
	r, err := readRecords(owners, nil)
	if err != nil {
		return nil, err
	}
	var strays []endpoint.Address
	for _, a := range addrs {
		denied, err := n.Sets.Contains(a)
		if err != nil {
			return nil, err
		}
		// An attachment may have got the address since the caller looked.
		if owners[a] != "" || r.addrs[a] || !denied {
			continue
		}
		strays = append(strays, endpoint.Address{Addr: a})
	}
	gone, inUse, err := sortByUse(strays)
	if len(inUse) > 0 {
		err = fmt.Errorf("network namespaces have the addresses %v, which no record has: their pods stay closed",
			addrsOf(inUse))
	}
	evicted := addrsOf(gone)
	return evicted, errors.Join(err, n.Sets.Remove(evicted...))
}

// lostWithin is how long DenyLost waits for the node's lock. The wait must be short: meanwhile the agent's loop stands
// still.
const lostWithin = time.Second

// DenyLost finds lost addresses. A lost address is in a backend's set of pods, but in no readable record, or only in
// records of attachments that are ending. DenyLost puts lost addresses into the sets of all pods of each backend that
// may be in use. The agent calls DenyLost before it removes a backend's sets. The agent's ruleset has no lost
// addresses, so only the sets of all pods keep a pod behind another plugin closed until the pod's link is down.
//
// DenyLost takes the node's lock, so no address is released and assigned to another pod meanwhile. If another process
// has the lock for lostWithin, DenyLost returns an error, and the caller tries again later. The end of an attachment
// takes the attachment's addresses out of the sets again. Evict removes the addresses of pods without records.
func (n Node) DenyLost() error {
	unlock, err := endpoint.LockWithin(lostWithin)
	if err != nil {
		return fmt.Errorf("keep pods without records closed: %w", err)
	}
	defer unlock()
	denied, err := n.Sets.Addresses()
	if err != nil {
		return err
	}
	owners, err := ipam.Assignments()
	if err != nil {
		return err
	}
	ids, err := endpoint.IDs()
	if err != nil {
		return err
	}
	attached, pods := map[netip.Addr]bool{}, map[netip.Addr]string{}
	for a, owner := range owners { // for pods without a readable record; the agent uses the same name
		pods[a] = endpoint.Pod{Namespace: "unknown", Name: owner}.String()
	}
	for _, id := range ids {
		e, ending, err := endpoint.LoadAny(id)
		if err != nil { // it isn't known which addresses the record has, so they stay denied
			continue
		}
		for _, a := range e.Addresses {
			attached[a.Addr], pods[a.Addr] = attached[a.Addr] || !ending, e.Pod.String()
		}
	}
	lost := map[string][]netip.Addr{} // by pod: Deny writes the pod's name as the comment of the set entries
	for _, a := range denied {
		if pod := cmp.Or(pods[a], "unknown"); !attached[a] && !slices.Contains(lost[pod], a) {
			lost[pod] = append(lost[pod], a)
		}
	}
	var errs []error
	for pod, addrs := range lost {
		errs = append(errs, n.Sets.Deny(pod, addrs...))
	}
	return errors.Join(errs...)
}

// sortByUse divides the addresses into two lists. inUse has the addresses that pods of chained attachments may still
// have. They must stay in the sets, because otherwise no rule would check these pods' packets. gone has all other
// addresses. They may leave the sets, because rules recognise the packets of weir's own links by the link.
func sortByUse(addrs []endpoint.Address) (gone, inUse []endpoint.Address, err error) {
	if len(addrs) == 0 {
		return nil, nil, nil
	}
	used, err := bridge.PodAddresses()
	if err != nil {
		return nil, nil, err
	}
	for _, a := range addrs {
		own, err := bridge.HasNeighbour([]endpoint.Address{a})
		switch {
		case err != nil:
			return nil, nil, err
		case len(used[a.Addr]) > 0 && !own:
			inUse = append(inUse, a)
		default:
			gone = append(gone, a)
		}
	}
	return gone, inUse, nil
}

func (r recorded) stale(t traces) []endpoint.Address {
	var all []endpoint.Address
	add := func(a netip.Addr) {
		if !r.addrs[a] && !slices.ContainsFunc(all, func(o endpoint.Address) bool { return o.Addr == a }) {
			all = append(all, endpoint.Address{Addr: a})
		}
	}
	for _, a := range t.denied {
		add(a)
	}
	for a, owner := range t.owners {
		if !r.ids[owner] {
			add(a)
		}
	}
	return all
}

func (n Node) readTraces() (t traces, err error) {
	if t.ports, err = bridge.Ports(); err != nil {
		return t, err
	}
	if t.senders, err = bridge.Senders(); err != nil {
		return t, err
	}
	if t.denied, err = n.Sets.Addresses(); err != nil {
		return t, err
	}
	t.owners, err = ipam.Assignments()
	return t, err
}

func readRecords(owners map[netip.Addr]string, valid map[string]bool) (recorded, error) {
	r := recorded{ids: map[string]bool{}, ports: map[string]bool{}, addrs: map[netip.Addr]bool{}}
	ids, err := endpoint.IDs()
	if err != nil {
		return r, err
	}
	for _, id := range ids {
		e, _, err := endpoint.LoadAny(id)
		if errors.Is(err, endpoint.ErrBroken) {
			e, err = nil, nil
		}
		if err := ignoreNotExist(err); err != nil {
			return r, err
		}
		r.ids[id] = true
		if e == nil {
			continue
		}
		r.ports[e.HostIf] = true
		for _, a := range e.Addresses {
			r.addrs[a.Addr] = true
		}
	}
	for id := range valid {
		r.ids[id] = true
	}
	for id := range r.ids {
		r.ports[bridge.PortName(id)] = true
	}
	for a, owner := range owners {
		if r.ids[owner] {
			r.addrs[a] = true
		}
	}
	return r, nil
}
