package iptables

import (
	"errors"
	"fmt"
	"time"

	"github.com/vishvananda/netlink/nl"
)

// destroySlice bounds the time in which one Apply destroys sets.
const destroySlice = 20 * time.Millisecond

// destroy destroys sets until all are gone or destroySlice is over, and returns the sets that are left. No rule uses
// the sets, so they can wait: some kernels take milliseconds for each, and an ADD or a change of policy would wait
// meanwhile.
func (d *Driver) destroy(names []string) (left []string, err error) {
	began := time.Now()
	for i, name := range names {
		if time.Since(began) > destroySlice {
			return append(left, names[i:]...), nil
		}
		err := d.sets.Destroy(name)
		// nf_tables frees a deleted rule some time after the transaction is over. Until then the rule still uses the
		// set.
		if errors.Is(err, nl.IPSetError(nl.IPSET_ERR_BUSY)) {
			left = append(left, name)
		} else if err != nil {
			return nil, err
		}
	}
	return left, nil
}

// destroyForeign destroys a set that has the name of a set of weir's, but another type or family: another program has
// made it. The kernel refuses that while a rule uses the set, so no packet is treated differently afterwards.
//
// Equivalent to: ipset destroy NAME
func (d *Driver) destroyForeign(name string) error {
	err := d.sets.Destroy(name)
	if errors.Is(err, nl.IPSetError(nl.IPSET_ERR_BUSY)) {
		return fmt.Errorf("a rule of another program uses ipset %s, which another program has made under a name of weir's: "+
			"delete the rule (iptables-save | grep %s), then the agent replaces the set", name, name)
	}
	return err
}
