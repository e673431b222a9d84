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
	"strings"

	"github.com/weir-net/weir/conf"
	"github.com/weir-net/weir/endpoint"
	"github.com/weir-net/weir/internal/dirwatch"
	"github.com/weir-net/weir/ipam"
	"github.com/weir-net/weir/netfilter/iptables"
)

func (a *agent) watchRecords(ctx context.Context, w *dirwatch.Watcher) error {
	change := dirwatch.Change{Lost: true}
	for {
		taken := change
		if !a.hand(ctx, func() iptables.Verify { return a.takeRecords(taken) }) {
			return nil
		}
		var err error
		change, err = w.Next()
		if err != nil && ctx.Err() == nil {
			return fmt.Errorf("directory of endpoint records: %w", err)
		}
	}
}

// takeRecords reads the records that have changed.
func (a *agent) takeRecords(c dirwatch.Change) iptables.Verify {
	verify := none
	var err error
	if c.Lost {
		verify, err = iptables.Trust, a.takeAllRecords()
	}
	for _, name := range c.Names {
		if id, ok := endpoint.IDOfFile(name); ok {
			verify = max(verify, a.noticeRecord(id))
		}
	}
	for _, of := range []map[string]bool{a.opened, a.enrolled} {
		maps.DeleteFunc(of, func(id string, _ bool) bool { _, ok := a.endpoints[id]; return !ok })
	}
	if len(a.found) > 0 {
		a.join()
	}
	if err == nil && len(a.broken) > 0 {
		err = maps.Clone(a.broken)
	}
	a.faults.set(partRecords, err)
	return verify
}

// takeAllRecords reads all of them. What was known stays if they can't be listed.
func (a *agent) takeAllRecords() error {
	all, err := endpoint.List()
	var broken endpoint.BrokenRecords
	if err != nil && !errors.As(err, &broken) {
		a.unlisted = true
		return err
	}
	ids, err := endpoint.IDs()
	if err != nil {
		a.unlisted = true
		return err
	}
	a.unlisted, a.ending = false, len(ids) > len(all)+len(broken)
	a.cutting.owed = a.cutting.owed || len(a.broken) > 0
	before := maps.Clone(a.endpoints)
	maps.Copy(before, a.shut)
	a.endpoints, a.broken, a.shut, a.listed = map[string]endpoint.Endpoint{}, endpoint.BrokenRecords{}, map[string]endpoint.Endpoint{}, true
	slices.SortFunc(all, func(a, b endpoint.Endpoint) int { return a.Created.Compare(b.Created) })
	for _, e := range all {
		a.hold(e)
	}
	for id, why := range broken {
		a.refuse(id, before[id].Addresses, why)
	}
	same := func(x, y endpoint.Endpoint) bool { return reflect.DeepEqual(x, y) }
	a.moved = a.moved || a.ending || !maps.EqualFunc(before, a.endpoints, same)
	return nil
}

// retryRecords reads once more what couldn't be read.
func (a *agent) retryRecords() {
	if again := (dirwatch.Change{Lost: a.unlisted || len(a.broken) > 0}); again.Lost {
		a.takeRecords(again)
	}
}

// noticeRecord reads a record that may have changed, and says whether the kernel is to hold something else for it now. Not if an
// ADD is on its way that will ask for its pod to be let in: it would wait for what is done before.
func (a *agent) noticeRecord(id string) iptables.Verify {
	before, had := a.endpoints[id]
	broken := a.broken[id] != nil
	a.takeRecord(id)
	e, has := a.endpoints[id]
	a.moved = a.moved || had != has
	switch broken = broken || a.broken[id] != nil; {
	case broken:
		return iptables.Trust
	case had == has && reflect.DeepEqual(before, e):
		return none
	case !had && !e.Chained && e.Enforcement != conf.Off: // whose link is down, where another plugin's isn't
		if busy, err := endpoint.Busy(id); busy && err == nil {
			return none
		}
	}
	return iptables.Trust
}

// takeRecord reads one record. If that fails its pod is closed: it is in no class.
func (a *agent) takeRecord(id string) {
	known := slices.Concat(a.endpoints[id].Addresses, a.shut[id].Addresses)
	if a.broken[id] != nil {
		a.cutting.owed = true // nobody judged it meanwhile
	}
	delete(a.endpoints, id)
	delete(a.broken, id)
	delete(a.shut, id)
	e, err := endpoint.Load(id)
	switch {
	case errors.Is(err, fs.ErrNotExist):
	case err != nil:
		a.refuse(id, known, err)
	default:
		a.hold(*e)
	}
}

// refuse closes an attachment whose record says nothing. Its addresses stay among those that are judged, as a pod whose link is
// another plugin's would be open without: those that it holds, and those that it was known to have if nobody else holds them.
func (a *agent) refuse(id string, known []endpoint.Address, why error) {
	container, ifName, _ := strings.Cut(id, ":")
	e := endpoint.Endpoint{ContainerID: container, IfName: ifName, Enforcement: conf.Strict, Pod: endpoint.Pod{Namespace: "unknown", Name: id}}
	held, err := ipam.Assignments()
	for addr, holder := range held {
		if holder == id {
			e.Addresses = append(e.Addresses, endpoint.Address{Addr: addr, Subnet: netip.PrefixFrom(addr, addr.BitLen())})
		}
	}
	for _, addr := range known {
		alone := endpoint.Endpoint{Addresses: []endpoint.Address{addr}}
		others := slices.ContainsFunc(a.attached(), func(o endpoint.Endpoint) bool { return shareAddress(o, alone) })
		if held[addr.Addr] == "" && !others {
			e.Addresses = append(e.Addresses, addr)
		}
	}
	a.broken[id], a.shut[id] = errors.Join(why, err), e
}

// hold takes a record as it is. An address has one holder: whose record has it too has ended, and it is only not known
// yet. Were both kept, the new pod would have what is allowed to the old one.
func (a *agent) hold(e endpoint.Endpoint) {
	a.endpoints[e.ID()] = e
	for id, o := range a.endpoints {
		if id == e.ID() || !shareAddress(e, o) {
			continue
		}
		delete(a.endpoints, id)
		o, err := endpoint.Load(id)
		switch {
		case errors.Is(err, fs.ErrNotExist):
		case err != nil:
			a.refuse(id, nil, err)
		case shareAddress(e, *o):
			a.refuse(id, o.Addresses, fmt.Errorf("endpoint record %s: its address is that of %s by now", id, e.ID()))
		}
	}
}

func shareAddress(a, b endpoint.Endpoint) bool {
	return slices.ContainsFunc(a.Addresses, func(x endpoint.Address) bool {
		return slices.ContainsFunc(b.Addresses, func(y endpoint.Address) bool { return x.Addr == y.Addr })
	})
}
