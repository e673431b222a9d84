package agent

import (
	"errors"
	"slices"

	"github.com/weir-net/weir/bridge"
	"github.com/weir-net/weir/endpoint"
	"github.com/weir-net/weir/netfilter"
)

// linkLocalView remembers how the agent last applied the table "bridge weir-link-local" (see package bridge).
type linkLocalView struct {
	known bool     // false if the kernel's table may differ
	ports []uint32 // the indexes of the ports of pods on other plugins' bridges, sorted
	// generation is nf_tables' generation when the kernel's table was last right. 0 means unknown.
	generation uint32
}

// keepLinkLocal keeps the ports of pods on other plugins' bridges in the table "bridge weir-link-local". In each round
// it adds new ports. At a resync it repairs the table, or deletes the table if no such pod is left. After an error, no
// pod is enrolled.
func (a *agent) keepLinkLocal(verify netfilter.Verify) error {
	v := &a.kernel.linkLocal
	ports, err := bridge.LinkLocalPorts(a.records.endpoints)
	if err != nil {
		return err
	}
	if !v.known || verify == netfilter.All {
		return a.repairLinkLocal(ports)
	}
	added := slices.DeleteFunc(ports, func(p uint32) bool { return slices.Contains(v.ports, p) })
	if len(added) == 0 {
		return nil
	}
	if err := bridge.AddLinkLocalPorts(added); err != nil {
		v.known = false
		return err
	}
	v.ports, v.generation = slices.Concat(v.ports, added), 0
	return nil
}

// repairLinkLocal adds the given ports, and the ports of pods with damaged records, to the table "bridge
// weir-link-local". It deletes all other ports from the table. But while a record can't be read or an attachment is
// ending, it deletes no port, because the pod may still run. If the addresses of pods can't be read, it adds the given
// ports, deletes no port, and returns an error.
func (a *agent) repairLinkLocal(ports []uint32) error {
	v, r := &a.kernel.linkLocal, &a.records
	var damaged []endpoint.Address
	for _, e := range r.closed {
		damaged = append(damaged, e.Addresses...)
	}
	more, unread := bridge.LinkLocalPortsAt(damaged) // one call for all, because a call reads every pod's addresses
	ports = append(ports, more...)
	slices.Sort(ports)
	ports = slices.Compact(ports)
	generation, err := a.backend.Generation() // read before the table is read, so any later change has a higher number
	if err != nil {
		generation = 0
	}
	if v.known && generation != 0 && generation == v.generation && slices.Equal(ports, v.ports) {
		return unread
	}
	keep := !r.complete || r.stale || r.ending || len(r.broken) > 0 || unread != nil
	before := v.ports
	v.known = false
	lacked, changed, err := bridge.KeepLinkLocal(ports, keep)
	if err != nil {
		return errors.Join(unread, err)
	}
	lost := slices.ContainsFunc(lacked, func(p uint32) bool { return slices.Contains(before, p) })
	if lost || changed && len(before) > 0 {
		a.countRepairs(bridge.KindGuard, []repair{{"nftables table bridge weir-link-local was changed", "weir-agent run"}})
	}
	if keep {
		// The table may still have ports that aren't in the list ports. With generation 0, the next resync compares the
		// table again. If keep is false then, it deletes these ports.
		generation = 0
	}
	*v = linkLocalView{known: true, ports: ports, generation: generation}
	return unread
}
