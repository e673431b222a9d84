package agent

import (
	"errors"
	"net"
	"reflect"
	"time"

	"github.com/weir-net/weir/bridge"
	"github.com/weir-net/weir/endpoint"
	"github.com/weir-net/weir/netfilter"
)

type guardView struct {
	// generation is nf_tables' generation when the guard last had exactly these senders. 0 means unknown.
	generation uint32
	senders    []bridge.Sender
	adds       adds
}

// adds remembers the attachments whose ADD has ended.
type adds struct {
	ended map[string]time.Time // when the attachment was created, by its ID
}

// run reports whether an ADD is making the attachment. It asks the kernel only until the ADD has ended.
func (a *adds) run(e endpoint.Endpoint) bool {
	if created, ok := a.ended[e.ID()]; ok && created.Equal(e.Created) {
		return false
	}
	if isBusy(e) {
		return true
	}
	if a.ended == nil {
		a.ended = map[string]time.Time{}
	}
	a.ended[e.ID()] = e.Created
	return false
}

// forget empties the map if it has many more attachments than the node has.
func (a *adds) forget(attachments int) {
	if len(a.ended) > 2*attachments+64 {
		a.ended = nil
	}
}

// keepGuard repairs the guard (see package bridge) in each round that reads everything from the kernel, and in every
// round until a round has succeeded. If neither nf_tables nor the records have changed, it doesn't read the guard.
func (a *agent) keepGuard(verify netfilter.Verify) error {
	if verify != netfilter.All && !a.kernel.lastSync.IsZero() {
		return nil
	}
	g := &a.kernel.guard
	generation, err := a.backend.Generation() // read before the guard is read, so any later change has a higher number
	if err != nil {
		generation = 0
	}
	if generation != 0 && generation == g.generation {
		now, _, err := a.senders()
		if err == nil && reflect.DeepEqual(now, g.senders) {
			return nil
		}
	}
	g.generation = 0
	var attaching map[string]bool // the ports of attachments that an ADD is making; the ADD adds them to the guard
	lacked, fell, err := bridge.RepairGuard(func() (all []bridge.Sender, err error) {
		all, attaching, err = a.senders()
		g.senders = all
		return all, err
	})
	if err == nil {
		g.generation = generation
	}
	var repaired []repair
	if fell {
		repaired = append(repaired, repair{"the guard's rules were changed", "weir-agent run"})
	}
	for _, s := range lacked {
		if !attaching[s.HostIf] {
			was := "the guard did not allow port " + s.HostIf + " to send as " + s.MAC.String()
			repaired = append(repaired, repair{was, s.Command()})
		}
	}
	if !a.kernel.lastSync.IsZero() { // before the first sync, the guard may not have been made yet
		a.countRepairs(bridge.KindGuard, repaired)
	}
	return err
}

// senders reads the records on disk, because the loop may not have read a new record yet. attaching has the ports that
// an ADD is making.
func (a *agent) senders() (all []bridge.Sender, attaching map[string]bool, err error) {
	records, err := a.records.lister.List()
	if err != nil && !errors.As(err, &endpoint.BrokenRecords{}) {
		return nil, nil, err
	}
	attaching = map[string]bool{}
	a.kernel.guard.adds.forget(len(records))
	for _, e := range records {
		mac, err := net.ParseMAC(e.MAC)
		if err != nil || e.Chained { // weir didn't make the link, or the record has no valid MAC
			continue
		}
		attaching[e.HostIf] = a.kernel.guard.adds.run(e)
		all = append(all, bridge.Sender{HostIf: e.HostIf, MAC: mac, Addresses: e.Addresses})
	}
	return all, attaching, nil
}
