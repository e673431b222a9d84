package agent

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"net"
	"net/netip"
	"reflect"
	"slices"
	"strings"

	"github.com/weir-net/weir/conf"
	"github.com/weir-net/weir/endpoint"
	"github.com/weir-net/weir/internal/dirwatch"
	"github.com/weir-net/weir/ipam"
	"github.com/weir-net/weir/policy/kernel"
)

func (a *agent) watchRecords(ctx context.Context, w *dirwatch.Watcher) error {
	change := dirwatch.Change{Lost: true}
	for {
		taken := change
		if !a.hand(ctx, func() kernel.Verify { return a.takeRecords(taken) }) {
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
func (a *agent) takeRecords(c dirwatch.Change) kernel.Verify {
	verify := none
	var err error
	if c.Lost {
		verify = kernel.Trust
		var all []endpoint.Endpoint
		all, err = endpoint.List()
		a.cutting.owed = a.cutting.owed || len(a.broken) > 0
		a.endpoints, a.broken, a.shut = map[string]endpoint.Endpoint{}, endpoint.BrokenRecords{}, map[string]endpoint.Endpoint{}
		var broken endpoint.BrokenRecords
		if errors.As(err, &broken) {
			err = nil
		}
		for id, why := range broken {
			a.refuse(id, why)
		}
		slices.SortFunc(all, func(a, b endpoint.Endpoint) int { return a.Created.Compare(b.Created) })
		for _, e := range all {
			a.hold(e)
		}
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

// noticeRecord reads a record that may have changed, and says whether the kernel is to hold something else for it now. Not if an
// ADD is on its way that will ask for its pod to be let in: it would wait for what is done before.
func (a *agent) noticeRecord(id string) kernel.Verify {
	before, had := a.endpoints[id]
	broken := a.broken[id] != nil
	a.takeRecord(id)
	e, has := a.endpoints[id]
	switch broken = broken || a.broken[id] != nil; {
	case broken:
		return kernel.Trust
	case had == has && reflect.DeepEqual(before, e):
		return none
	case !had && e.Enforcement != conf.Off:
		if busy, err := endpoint.Busy(id); busy && err == nil {
			return none
		}
	}
	return kernel.Trust
}

// takeRecord reads one record. If that fails its pod is closed: it is in no class.
func (a *agent) takeRecord(id string) {
	delete(a.endpoints, id)
	if a.broken[id] != nil {
		a.cutting.owed = true // nobody judged it meanwhile
	}
	delete(a.broken, id)
	delete(a.shut, id)
	e, err := endpoint.Load(id)
	switch {
	case errors.Is(err, fs.ErrNotExist):
	case err != nil:
		a.refuse(id, err)
	default:
		a.hold(*e)
	}
}

// refuse closes an attachment of which no more is known than its ID. Its addresses, which their holder's name tells, stay
// among those that are judged: a pod whose link is another plugin's would be open without.
func (a *agent) refuse(id string, why error) {
	container, ifName, _ := strings.Cut(id, ":")
	e := endpoint.Endpoint{ContainerID: container, IfName: ifName, Enforcement: conf.Strict, Pod: endpoint.Pod{Namespace: "unknown", Name: id}}
	held, err := ipam.Holders()
	for addr, holder := range held {
		if holder == id {
			e.Addresses = append(e.Addresses, endpoint.Address{Addr: addr, Subnet: netip.PrefixFrom(addr, addr.BitLen())})
		}
	}
	a.broken[id], a.shut[id] = errors.Join(why, err), e
}

// hold takes a record as it is, if the kernel could: one that it couldn't would hold up every other pod's. An address has
// one holder: whose record has it too has ended, and it is only not known yet. Were both kept, the new pod would have
// what is allowed to the old one.
func (a *agent) hold(e endpoint.Endpoint) {
	var err error
	if !e.Chained { // else it is nothing that weir goes by
		_, err = net.ParseMAC(e.MAC)
	}
	for _, addr := range e.Addresses {
		no := !addr.Addr.IsValid() || addr.Addr.IsUnspecified() || addr.Addr.Zone() != "" || addr.Addr.Is4In6()
		if no || !addr.Subnet.Contains(addr.Addr) || addr.Subnet.Bits() == 0 {
			err = errors.Join(err, fmt.Errorf("address %s in %s can't be", addr.Addr, addr.Subnet))
		}
	}
	if err != nil {
		a.refuse(e.ID(), fmt.Errorf("endpoint record %s: %w", e.ID(), err))
		return
	}
	for id, o := range a.endpoints {
		if id == e.ID() || !shareAddress(e, o) {
			continue
		}
		delete(a.endpoints, id)
		if o, err := endpoint.Load(id); err == nil && shareAddress(e, *o) {
			a.refuse(id, fmt.Errorf("endpoint record %s: its address is that of %s by now", id, e.ID()))
		}
	}
	a.endpoints[e.ID()] = e
}

func shareAddress(a, b endpoint.Endpoint) bool {
	return slices.ContainsFunc(a.Addresses, func(x endpoint.Address) bool {
		return slices.ContainsFunc(b.Addresses, func(y endpoint.Address) bool { return x.Addr == y.Addr })
	})
}
