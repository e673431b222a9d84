package ipset

import (
	"errors"
	"fmt"
	"slices"

	"github.com/vishvananda/netlink/nl"
	"github.com/vishvananda/netns"
	"golang.org/x/sys/unix"

	"github.com/weir-net/weir/netfilter/batch"
)

// Question asks whether the set has the entry, or a network that contains the entry's address.
type Question struct {
	Set string
	Entry
}

// Contains answers the questions in order, with few system calls. missing has the sets that don't exist. For a missing
// set, the answer is false.
//
// Equivalent to: ipset test SET ENTRY, for each question
func Contains(questions []Question) (contains []bool, missing map[string]bool, err error) {
	missing = map[string]bool{}
	for some := range slices.Chunk(questions, batchSize) {
		var b batch.Batch
		first := len(contains)
		for i, q := range some {
			contains = append(contains, true)
			test := b.Add(request(nl.IPSET_CMD_TEST, q.Set, q.Entry), "test %s in ipset %s", q.Entry, q.Set)
			test.MapError = func(err error) error {
				err = mapError(err)
				lacks := errors.Is(err, nl.IPSetError(nl.IPSET_ERR_EXIST))
				gone := errors.Is(err, ErrNotExist)
				if gone {
					missing[q.Set] = true
				}
				if lacks || gone {
					contains[first+i] = false
					return nil
				}
				return err
			}
		}
		if _, err := b.Do(unix.NETLINK_NETFILTER, netns.None()); err != nil {
			return nil, nil, fmt.Errorf("ask which ipsets have an address: %w", err)
		}
	}
	return contains, missing, nil
}
