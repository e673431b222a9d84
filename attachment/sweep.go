package attachment

import (
	"errors"
	"net/netip"
	"slices"
	"strings"

	"github.com/weir-net/weir/bridge"
	"github.com/weir-net/weir/conf"
	"github.com/weir-net/weir/endpoint"
	"github.com/weir-net/weir/ipam"
	"github.com/weir-net/weir/netfilter/conntrack"
	"github.com/weir-net/weir/netfilter/ipset"
)

// found is what is there of attachments, whoever's it is.
type found struct {
	ports   []string
	senders []bridge.Sender
	addrs   []netip.Addr // in sets of this node's pods
	held    map[netip.Addr]string
}

// known is what belongs to attachments that are there.
type known struct {
	ids   map[string]bool
	ports map[string]bool
	addrs map[netip.Addr]bool
}

// sweep takes away what belongs to no attachment: whoever lost its record, by hand or by a fault of the disk, left it
// behind. An ID in valid is an attachment without a record too: the runtime says so. A record that can't be understood
// keeps what goes by its name; its pod is closed by the agent.
//
// What is there is read first, and the records after it. As a record is written before all else, what has none by then is
// nobody's; and as addresses are given out under the lock, it becomes nobody else's meanwhile.
func sweep(valid map[string]bool) error {
	unlock, err := endpoint.Lock()
	if err != nil {
		return err
	}
	defer unlock()
	f, err := find()
	if err != nil {
		return err
	}
	k, err := know(f.held, valid)
	if err != nil {
		return err
	}
	var errs []error
	for _, s := range f.senders {
		if !k.ports[s.HostIf] {
			errs = append(errs, bridge.ForbidSender(s))
		}
	}
	stale := k.stale(f)
	errs = append(errs, purge(addrsOf(stale)))
	for _, name := range f.ports {
		if !k.ports[name] {
			errs = append(errs, bridge.RemovePort(name, nil))
		}
	}
	errs = append(errs, bridge.RemoveNeighbours(stale), conntrack.Delete(addrsOf(stale)...))
	if errors.Join(errs...) == nil { // an address is freed when nothing refers to it any more
		for _, a := range stale {
			errs = append(errs, ipam.Release(f.held[a.Addr], a.Addr))
		}
	}
	return errors.Join(errs...)
}

// Evict takes those of the addresses that are no attachment's out of the sets of all pods, and returns them. As
// addresses are given out, and attachments end, under the lock, none becomes one's meanwhile.
func Evict(addrs []netip.Addr) ([]netip.Addr, error) {
	unlock, err := endpoint.Lock()
	if err != nil {
		return nil, err
	}
	defer unlock()
	held, err := ipam.Assignments()
	if err != nil {
		return nil, err
	}
	k, err := know(held, nil)
	if err != nil {
		return nil, err
	}
	var evicted []netip.Addr
	var changes []ipset.Change
	for _, a := range addrs {
		set := conf.FamilyOf(a).Set(conf.PodsSet)
		in, err := ipset.SetsContaining(a, []string{set})
		if err != nil {
			return nil, err
		}
		if held[a] != "" || k.addrs[a] || !in[set] { // an attachment's, or of one that has ended since it was seen
			continue
		}
		evicted = append(evicted, a)
		changes = append(changes, ipset.Change{Set: set, Entry: ipset.Entry{Prefix: netip.PrefixFrom(a, a.BitLen())}, Delete: true})
	}
	return evicted, ipset.Apply(changes...)
}

// stale are the addresses that are no attachment's.
func (k known) stale(f found) []endpoint.Address {
	var all []endpoint.Address
	add := func(a netip.Addr) {
		if !k.addrs[a] && !slices.ContainsFunc(all, func(o endpoint.Address) bool { return o.Addr == a }) {
			all = append(all, endpoint.Address{Addr: a})
		}
	}
	for _, a := range f.addrs {
		add(a)
	}
	for a, holder := range f.held {
		if !k.ids[holder] {
			add(a)
		}
	}
	return all
}

func find() (f found, err error) {
	if f.ports, err = bridge.Ports(); err != nil {
		return f, err
	}
	if f.senders, err = bridge.Senders(); err != nil {
		return f, err
	}
	if f.addrs, err = pods(); err != nil {
		return f, err
	}
	f.held, err = ipam.Assignments()
	return f, err
}

// pods are the addresses in the sets that hold pods of this node alone.
func pods() ([]netip.Addr, error) {
	sets, err := ipset.New()
	if err != nil {
		return nil, err
	}
	defer sets.Close()
	headers, err := sets.Headers()
	if err != nil {
		return nil, err
	}
	var all []netip.Addr
	for _, h := range headers {
		if !local(h) {
			continue
		}
		s, err := sets.List(h.Name)
		if errors.Is(err, ipset.ErrNotExist) { // gone since it was listed
			continue
		}
		if err != nil {
			return nil, err
		}
		for _, e := range s.Entries {
			all = append(all, e.Prefix.Addr())
		}
	}
	return all, nil
}

func local(h ipset.Header) bool {
	return h.Type == ipset.HashIP && (h.Name == h.Family.Set(conf.PodsSet) ||
		strings.HasPrefix(h.Name, conf.IngressClasses) || strings.HasPrefix(h.Name, conf.EgressClasses))
}

func know(held map[netip.Addr]string, valid map[string]bool) (known, error) {
	k := known{ids: map[string]bool{}, ports: map[string]bool{}, addrs: map[netip.Addr]bool{}}
	ids, err := endpoint.IDs()
	if err != nil {
		return k, err
	}
	for _, id := range ids {
		e, _, err := endpoint.LoadAny(id)
		if errors.Is(err, endpoint.ErrBroken) {
			e, err = nil, nil
		}
		if err := ignoreNotExist(err); err != nil {
			return k, err
		}
		k.ids[id] = true
		if e == nil {
			continue
		}
		k.ports[e.HostIf] = true
		for _, a := range e.Addresses {
			k.addrs[a.Addr] = true
		}
	}
	for id := range valid {
		k.ids[id] = true
	}
	for id := range k.ids {
		k.ports[bridge.PortName(id)] = true
	}
	for a, holder := range held {
		if k.ids[holder] {
			k.addrs[a] = true
		}
	}
	return k, nil
}
