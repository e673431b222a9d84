package agent

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"net/netip"
	"reflect"
	"slices"

	"github.com/weir-net/weir/conf"
	"github.com/weir-net/weir/endpoint"
	"github.com/weir-net/weir/internal/dirwatch"
	"github.com/weir-net/weir/ipam"
	"github.com/weir-net/weir/policy"
)

// records are the endpoint records as last read.
//
// Invariants:
//   - No ID is a key of both endpoints and broken.
//   - closed has the same keys as broken.
//   - No address belongs to two of the endpoints.
type records struct {
	endpoints map[string]endpoint.Endpoint
	broken    endpoint.BrokenRecords
	// closed has an endpoint for each broken record, with the attachment's addresses as far as they are known.
	closed map[string]endpoint.Endpoint
	// complete is true once the directory was read. Before that, no pod counts as gone.
	complete bool
	stale    bool
	// churn means that attachments have begun or ended since the last read of the kernel, or are beginning or ending now.
	// So the plugin may have changed sets.
	churn  bool
	ending bool
	// making has the new records whose ADD may still change sets.
	making map[string]bool
	copied *recordsCopy
	lister endpoint.Lister
}

// A recordsCopy never changes. Most rounds change no records, so they share one copy.
type recordsCopy struct {
	endpoints map[string]endpoint.Endpoint
	list      []endpoint.Endpoint // the values of endpoints, in no order
	attached  []policy.Endpoint   // the result of records.attached, converted to package policy's type
}

func (r *records) copies() *recordsCopy {
	if r.copied == nil {
		c := &recordsCopy{endpoints: maps.Clone(r.endpoints), list: slices.Collect(maps.Values(r.endpoints))}
		for _, e := range r.attached() {
			c.attached = append(c.attached, policyEndpoint(e))
		}
		r.copied = c
	}
	return r.copied
}

func newRecords() records {
	return records{
		endpoints: map[string]endpoint.Endpoint{}, broken: endpoint.BrokenRecords{}, closed: map[string]endpoint.Endpoint{},
		making: map[string]bool{},
	}
}

func (r *records) attached() []endpoint.Endpoint {
	all := make([]endpoint.Endpoint, 0, len(r.endpoints)+len(r.closed))
	for _, of := range []map[string]endpoint.Endpoint{r.endpoints, r.closed} {
		for _, id := range slices.Sorted(maps.Keys(of)) {
			all = append(all, of[id])
		}
	}
	return all
}

// readAll reads all records. If that fails, it keeps the earlier records. walk is true if a record was broken before.
// Then connections may have to be cut or restored.
func (r *records) readAll() (walk bool, err error) {
	all, err := r.lister.List()
	var broken endpoint.BrokenRecords
	if err != nil && !errors.As(err, &broken) {
		r.stale = true
		return false, err
	}
	ids, err := endpoint.IDs()
	if err != nil {
		r.stale = true
		return false, err
	}
	r.stale, r.complete, r.ending = false, true, len(ids) > len(all)+len(broken)
	walk = len(r.broken) > 0
	if !walk && len(broken) == 0 && r.equal(all) {
		r.churn = r.churn || r.ending
		return false, nil
	}
	r.copied = nil
	before := maps.Clone(r.endpoints)
	maps.Copy(before, r.closed)
	r.endpoints, r.closed = map[string]endpoint.Endpoint{}, map[string]endpoint.Endpoint{}
	r.broken = endpoint.BrokenRecords{}
	all = slices.Clone(all) // a copy, because the lister may return the same slice again
	slices.SortFunc(all, func(a, b endpoint.Endpoint) int { return a.Created.Compare(b.Created) })
	for _, e := range all {
		r.add(e)
	}
	for id, why := range broken {
		r.markBroken(id, before[id].Addresses, why)
	}
	r.churn = r.churn || r.ending || len(before) != len(r.endpoints)
	for id, e := range r.endpoints {
		if known, ok := before[id]; !ok || !reflect.DeepEqual(known, e) {
			r.churn, r.making[id] = true, true
		}
	}
	return walk, nil
}

// equal reports whether the parameter all contains exactly the known records.
func (r *records) equal(all []endpoint.Endpoint) bool {
	return len(all) == len(r.endpoints) && !slices.ContainsFunc(all, func(e endpoint.Endpoint) bool {
		known, ok := r.endpoints[e.ID()]
		return !ok || !reflect.DeepEqual(known, e)
	})
}

// read reads one record. If the record doesn't exist, read forgets it. If the record can't be read, its pod is closed.
// walk is true if the record was broken before. Then connections may have to be cut or restored.
func (r *records) read(id string) (walk bool) {
	known := slices.Concat(r.endpoints[id].Addresses, r.closed[id].Addresses)
	walk, r.copied = r.broken[id] != nil, nil
	delete(r.endpoints, id)
	delete(r.broken, id)
	delete(r.closed, id)
	e, err := endpoint.Load(id)
	switch {
	case errors.Is(err, fs.ErrNotExist):
	case err != nil:
		r.markBroken(id, known, err)
	default:
		r.add(*e)
	}
	return walk
}

// reread reads one record after a message about it. changed is true if the kernel may need a change now. After a new
// record, the kernel rarely needs a change at once, because the plugin asks to enrol the attachment later.
func (r *records) reread(id string) (changed, walk bool) {
	before, had := r.endpoints[id]
	walk = r.read(id)
	e, has := r.endpoints[id]
	same := had == has && reflect.DeepEqual(before, e)
	if r.churn = r.churn || !same; has && !same {
		r.making[id] = true
	}
	switch {
	case walk || r.broken[id] != nil: // the record was broken, or is broken now
		return true, walk
	case same:
		return false, walk
	case !had && !e.Chained && e.Enforcement != conf.Off: // a new pod's link is still down
		if busy, err := endpoint.Busy(id); busy && err == nil {
			return false, walk
		}
	}
	return true, walk
}

// markBroken marks a record as broken. The attachment's addresses stay in the set of all pods: without them, the pod of
// a chained attachment would not be closed.
func (r *records) markBroken(id string, known []endpoint.Address, why error) {
	container, ifName := endpoint.PartsOfID(id)
	e := endpoint.Endpoint{
		ContainerID: container, IfName: ifName, Enforcement: conf.Strict, Pod: endpoint.Pod{Namespace: "unknown", Name: id},
	}
	assigned, err := ipam.Assignments()
	for addr, owner := range assigned {
		if owner == id {
			e.Addresses = append(e.Addresses, endpoint.Address{Addr: addr, Subnet: netip.PrefixFrom(addr, addr.BitLen())})
		}
	}
	for _, addr := range known {
		alone := endpoint.Endpoint{Addresses: []endpoint.Address{addr}}
		others := slices.ContainsFunc(r.attached(), func(o endpoint.Endpoint) bool { return shareAddress(o, alone) })
		if assigned[addr.Addr] == "" && !others {
			e.Addresses = append(e.Addresses, addr)
		}
	}
	r.broken[id], r.closed[id] = errors.Join(why, err), e
}

// add adds the record. If two records have the same address, only the record of the attachment to which the address is
// assigned counts. Otherwise the new pod would also get the old pod's rights. If the address is assigned to neither
// attachment, the added record counts. A record that doesn't count becomes broken. But add forgets an earlier record if
// its file is gone, or no longer has the address.
func (r *records) add(e endpoint.Endpoint) {
	r.endpoints[e.ID()] = e
	owner := ""
	for id, known := range r.endpoints {
		if id == e.ID() || !shareAddress(e, known) {
			continue
		}
		o, err := endpoint.Load(id)
		if err == nil && owns(*o, e) {
			owner = id
			if !owns(e, *o) {
				r.endpoints[id] = *o
				continue
			}
		}
		delete(r.endpoints, id)
		switch {
		case errors.Is(err, fs.ErrNotExist):
		case err != nil:
			r.markBroken(id, nil, err)
		case shareAddress(e, *o):
			r.markBroken(id, o.Addresses, assignedTo(id, e.ID()))
		}
	}
	if owner != "" {
		delete(r.endpoints, e.ID())
		r.markBroken(e.ID(), e.Addresses, assignedTo(e.ID(), owner))
	}
}

func assignedTo(id, owner string) error {
	return fmt.Errorf("endpoint record %s: its address is assigned to %s now", id, owner)
}

// owns reports whether an address that both records have is assigned to the attachment of the first record. If the
// assignment can't be read, owns returns true.
func owns(a, b endpoint.Endpoint) bool {
	return slices.ContainsFunc(a.Addresses, func(x endpoint.Address) bool {
		if !slices.ContainsFunc(b.Addresses, func(y endpoint.Address) bool { return x.Addr == y.Addr }) {
			return false
		}
		owner, err := ipam.AssignedTo(x.Addr)
		return err != nil || owner == a.ID()
	})
}

// kernelRead sets churn (the plugin may have changed sets) after the kernel was read. churn is then true only if an
// ADD or DEL runs that may still change sets. For example, the agent puts a chained pod's addresses into the sets when
// it reads the new record, and an ADD that fails takes the addresses out again. Once an attachment is enrolled, its
// ADD changes no sets any more.
func (r *records) kernelRead(enrolled map[string]bool) {
	maps.DeleteFunc(r.making, func(id string, _ bool) bool {
		busy, err := endpoint.Busy(id)
		return enrolled[id] || !busy && err == nil
	})
	r.churn = r.ending || len(r.making) > 0
}

func (r *records) fault() error {
	if len(r.broken) == 0 {
		return nil
	}
	return maps.Clone(r.broken)
}

func shareAddress(a, b endpoint.Endpoint) bool {
	return slices.ContainsFunc(a.Addresses, func(x endpoint.Address) bool {
		return slices.ContainsFunc(b.Addresses, func(y endpoint.Address) bool { return x.Addr == y.Addr })
	})
}

func (a *agent) watchRecords(ctx context.Context, w *dirwatch.Watcher) error {
	change := dirwatch.Change{Lost: true}
	for {
		if !a.send(ctx, recordsChanged{change}) {
			return nil
		}
		var err error
		change, err = w.Next()
		if err != nil && ctx.Err() == nil {
			return fmt.Errorf("directory of endpoint records: %w", err)
		}
	}
}

func (a *agent) takeRecords(c dirwatch.Change) work {
	var remaining work
	var err error
	if c.Lost {
		remaining.reconcile = true
		walk, readErr := a.records.readAll()
		err = readErr
		a.cutting.makeDue(walk)
	}
	for _, name := range c.Names {
		if id, ok := endpoint.IDOfFile(name); ok {
			changed, walk := a.records.reread(id)
			remaining.reconcile = remaining.reconcile || changed
			a.cutting.makeDue(walk)
		}
	}
	for _, of := range []map[string]bool{a.links.done, a.enrolments.done} {
		maps.DeleteFunc(of, func(id string, _ bool) bool { _, ok := a.records.endpoints[id]; return !ok })
	}
	maps.DeleteFunc(a.links.down, func(id, _ string) bool { _, ok := a.records.endpoints[id]; return !ok })
	a.cluster.dropLookups(a.records.endpoints)
	if err == nil {
		err = a.records.fault()
	}
	a.faults.set(partRecords, err)
	return remaining
}

func (a *agent) retryRecords() {
	if a.records.stale || len(a.records.broken) > 0 {
		a.takeRecords(dirwatch.Change{Lost: true})
	}
}
