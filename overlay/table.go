package overlay

import (
	"bytes"
	"errors"
	"fmt"
	"slices"

	"github.com/google/nftables"
	"github.com/google/nftables/expr"
	"github.com/mdlayher/netlink"
	"golang.org/x/sys/unix"

	"github.com/weir-net/weir/conf"
	"github.com/weir-net/weir/internal/nft"
)

// Traffic counts tunnel packets with weir's VNI since the gate was made. Accepted counts those whose inner sender is
// in a network of the node that sent the tunnel packet.
type Traffic struct {
	Accepted  uint64
	Delivered uint64 // tunnel packets that have passed all firewalls of the host
}

func gateTable() *nftables.Table {
	return &nftables.Table{Name: conf.TunnelTable, Family: nftables.TableFamilyINet}
}

// maxElements is the most elements in one netlink message. The attribute that has the elements can't be longer than 64
// KiB, and each element takes less than a hundred bytes.
const maxElements = 500

// openTransaction opens a socket with large buffers, because one transaction may have the elements of thousands of
// nodes.
func openTransaction() (*nftables.Conn, error) {
	conn, err := nftables.New(nftables.WithSockOptions(func(c *netlink.Conn) error {
		return errors.Join(c.SetWriteBuffer(16<<20), c.SetReadBuffer(1<<20))
	}))
	if err != nil {
		return nil, fmt.Errorf("open nftables: %w", err)
	}
	return conn, nil
}

// Apply makes the kernel's table equal to the gate. If only elements are wrong, and few of them must be deleted, it
// changes only elements. Otherwise it replaces the table in one transaction. replaced is true if the table was missing,
// or something other than elements was wrong. It is false if only elements were wrong, even many. t has the counts of
// the previous table.
//
// Equivalent to: nft -f, with a table of these sets and chains
func (g Gate) Apply() (replaced bool, t Traffic, err error) {
	conn, err := openTransaction()
	if err != nil {
		return false, t, err
	}
	have, t, err := readGate(conn, g)
	if err != nil {
		return false, t, err
	}
	if have == nil || g.countStale(have) > maxDeletions {
		err = g.replace(conn, true)
		if err != nil && g.replaceQuietly() == nil {
			err = nil
		}
	} else {
		err = g.updateElements(conn, have)
	}
	if err != nil {
		return have == nil, t, fmt.Errorf("make the gate (nftables table inet %s): %w", conf.TunnelTable, err)
	}
	return have == nil, t, nil
}

// EnsureExists makes the gate anew if one of its chains is missing, empty or at another hook. The agent calls it while
// the nodes aren't known. The agent doesn't know the wanted rules then, so EnsureExists compares no rules.
func (g Gate) EnsureExists() error {
	conn, err := openTransaction()
	if err != nil {
		return err
	}
	have, err := nft.ListChains(conn, gateTable())
	if err != nil {
		return err
	}
	for _, c := range g.chains {
		if !c.kernel().SameHook(have[c.name]) || (len(have[c.name].Rules) == 0 && len(c.rules) > 0) {
			_, _, err := g.Apply()
			return err
		}
	}
	return nil
}

// Remove deletes the gate. A missing gate is no error.
//
// Equivalent to: nft delete table inet weir-tunnel
func (Gate) Remove() error {
	conn, err := nftables.New()
	if err != nil {
		return fmt.Errorf("open nftables: %w", err)
	}
	conn.DelTable(gateTable())
	if err := conn.Flush(); err != nil && !errors.Is(err, unix.ENOENT) {
		return fmt.Errorf("delete the gate (nftables table inet %s): %w", conf.TunnelTable, err)
	}
	return nil
}

func (s gateSet) kernel() *nftables.Set {
	return &nftables.Set{
		Table: gateTable(), Name: s.name, KeyType: s.keyType, Interval: s.interval, Concatenation: s.concatenated,
		Comment: s.comment,
	}
}

func (g Gate) replace(conn *nftables.Conn, logs bool) error {
	conn.AddTable(gateTable()) // deleting a table that is absent would fail
	conn.DelTable(gateTable())
	conn.AddTable(gateTable())
	for _, s := range g.sets {
		set := s.kernel()
		if err := conn.AddSet(set, nil); err != nil {
			return err
		}
		for part := range slices.Chunk(s.elements, maxElements) {
			if err := conn.SetAddElements(set, part); err != nil {
				return err
			}
		}
	}
	var chains []nft.Chain
	for _, c := range g.chains {
		chain := c.kernel()
		if !logs {
			chain = chain.WithoutLog()
		}
		chains = append(chains, chain)
	}
	nft.AddChains(conn, chains)
	return conn.Flush()
}

// replaceQuietly makes the gate without its log, because some kernels lack nftables' log statement.
func (g Gate) replaceQuietly() error {
	conn, err := openTransaction()
	if err != nil {
		return err
	}
	return g.replace(conn, false)
}

type gateElements map[string]map[string]nftables.SetElement

func elementKey(e nftables.SetElement) string {
	end := e.KeyEnd
	if bytes.Equal(end, e.Key) {
		end = nil
	}
	return fmt.Sprintf("%x %x %v", e.Key, end, e.IntervalEnd)
}

// If Apply has more elements to delete than maxDeletions, it makes the table anew. In a set of 5,000 concatenated
// ranges, each deletion takes more than a millisecond. The whole table is made in 200 milliseconds.
const maxDeletions = 100

func (g Gate) countStale(have gateElements) (n int) {
	for _, s := range g.sets {
		n += len(have[s.name])
		for _, e := range s.elements {
			if _, ok := have[s.name][elementKey(e)]; ok {
				n--
			}
		}
	}
	return n
}

// Equivalent to: nft delete element inet weir-tunnel SET { … }; nft add element inet weir-tunnel SET { … }
func (g Gate) updateElements(conn *nftables.Conn, have gateElements) error {
	changed := false
	for _, s := range g.sets {
		missing, stale := s.compare(have[s.name])
		if len(missing)+len(stale) == 0 {
			continue
		}
		changed = true
		set := s.kernel()
		if s.interval && !s.concatenated {
			// In an interval set without concatenation, a range is two elements. After a single change, a range could
			// have only one of the two. The set is small, so all its elements are replaced.
			conn.FlushSet(set)
			stale, missing = nil, s.elements
		}
		for part := range slices.Chunk(stale, maxElements) {
			if err := conn.SetDeleteElements(set, part); err != nil {
				return err
			}
		}
		for part := range slices.Chunk(missing, maxElements) {
			if err := conn.SetAddElements(set, part); err != nil {
				return err
			}
		}
	}
	if !changed {
		return nil
	}
	return conn.Flush()
}

// compare returns the wanted elements that are missing among the kernel's elements (have), and the kernel's elements
// that aren't wanted. It removes the wanted elements from have.
func (s gateSet) compare(have map[string]nftables.SetElement) (missing, stale []nftables.SetElement) {
	for _, e := range s.elements {
		if _, ok := have[elementKey(e)]; !ok {
			missing = append(missing, e)
		}
		delete(have, elementKey(e))
	}
	for _, e := range have {
		stale = append(stale, nftables.SetElement{Key: e.Key, KeyEnd: e.KeyEnd, IntervalEnd: e.IntervalEnd})
	}
	return missing, stale
}

// readGate returns the kernel's elements, or nil if the table must be replaced.
func readGate(conn *nftables.Conn, g Gate) (gateElements, Traffic, error) {
	exists, err := nft.TableExists(conn, gateTable())
	if err != nil || !exists {
		return nil, Traffic{}, err
	}
	chains, err := nft.ListChains(conn, gateTable())
	if err != nil {
		return nil, Traffic{}, err
	}
	t := trafficOf(chains)
	differs := func(c gateChain) bool {
		want, has := c.kernel(), chains[c.name]
		return !want.Same(has) && !want.WithoutLog().Same(has)
	}
	if len(chains) != len(g.chains) || slices.ContainsFunc(g.chains, differs) {
		return nil, t, nil
	}
	sets, err := conn.GetSets(gateTable())
	if err != nil {
		return nil, t, fmt.Errorf("list the gate's sets: %w", err)
	}
	if len(sets) != len(g.sets) {
		return nil, t, nil
	}
	have := gateElements{}
	for _, want := range g.sets {
		i := slices.IndexFunc(sets, func(s *nftables.Set) bool { return s.Name == want.name })
		if i < 0 || sets[i].KeyType.Bytes != want.keyType.Bytes || sets[i].Interval != want.interval {
			return nil, t, nil
		}
		elements, err := conn.GetSetElements(want.kernel())
		if err != nil {
			return nil, t, fmt.Errorf("list the gate's set %s: %w", want.name, err)
		}
		have[want.name] = make(map[string]nftables.SetElement, len(elements))
		for _, e := range elements {
			have[want.name][elementKey(e)] = e
		}
	}
	return have, t, nil
}

var countingChains = []string{"tunnel", "last"}

func ReadTraffic() (Traffic, error) {
	conn, err := nftables.New(nftables.AsLasting())
	if err != nil {
		return Traffic{}, fmt.Errorf("open nftables: %w", err)
	}
	defer func() { _ = conn.CloseLasting() }()
	chains := map[string]nft.Listed{}
	for _, name := range countingChains {
		rules, err := conn.GetRules(gateTable(), &nftables.Chain{Name: name})
		if err != nil {
			return Traffic{}, fmt.Errorf("list the rules of the gate's chain %s: %w", name, err)
		}
		chains[name] = nft.Listed{Rules: rules}
	}
	return trafficOf(chains), nil
}

// trafficOf adds up the counts of tunnel packets. It finds the counting rules by their comments.
func trafficOf(chains map[string]nft.Listed) (t Traffic) {
	for _, c := range chains {
		for _, r := range c.Rules {
			for _, e := range r.Exprs {
				counter, ok := e.(*expr.Counter)
				if !ok {
					continue
				}
				switch nft.Comment(r) {
				case acceptedComment:
					t.Accepted += counter.Packets
				case deliveredComment:
					t.Delivered += counter.Packets
				}
			}
		}
	}
	return t
}
