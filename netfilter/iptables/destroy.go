package iptables

import (
	"errors"
	"fmt"
	"time"

	"github.com/vishvananda/netlink/nl"
)

// destroySlice limits the time in which one Apply destroys unneeded sets, if it has nothing else to do. A later Apply
// destroys the remaining sets. If more sets or entries remain than mostLeft allows, the Apply goes on destroying sets
// after this time.
const destroySlice = 20 * time.Millisecond

// mostLeft limits the unneeded sets that an Apply leaves, and the entries in them. There is a limit, because the
// kernel limits the number of sets.
var mostLeft = struct{ sets, entries int }{1 << 12, 1 << 18}

// destroy destroys unneeded sets, and returns the sets that it leaves for a later Apply. On some kernels, destroying
// one set takes milliseconds. If busy is true, the Apply also makes other changes: destroy then stops as soon as
// mostLeft allows the remaining sets. If busy is false, destroy goes on at least until destroySlice is over, or until
// it has destroyed all sets.
func (d *Driver) destroy(names []string, have state, busy bool) (left []string, err error) {
	began, sets, entries := time.Now(), len(names), 0
	for _, name := range names {
		entries += have.sets[name].entries.Len()
	}
	for i, name := range names {
		if (busy || time.Since(began) > destroySlice) && sets <= mostLeft.sets && entries <= mostLeft.entries {
			return append(left, names[i:]...), nil
		}
		err := d.sets.Destroy(name)
		// nf_tables frees a deleted rule only some time after the transaction. Until then, the rule's set counts as in use.
		if errors.Is(err, nl.IPSetError(nl.IPSET_ERR_BUSY)) {
			left = append(left, name)
			continue
		}
		if err != nil {
			return nil, err
		}
		sets, entries = sets-1, entries-have.sets[name].entries.Len()
	}
	return left, nil
}

// destroyForeign destroys a set of another program that has the name of one of weir's sets. While a rule uses the set,
// the kernel refuses to destroy it.
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
