package overlay

import (
	"bytes"
	"errors"
	"fmt"
	"slices"

	"github.com/google/nftables"
	"github.com/google/nftables/expr"
	"github.com/google/nftables/userdata"
	"github.com/mdlayher/netlink"
	"golang.org/x/sys/unix"

	"github.com/weir-net/weir/conf"
	"github.com/weir-net/weir/internal/nft"
)

// Traffic counts tunnel packets since the gate was made.
type Traffic struct {
	Accepted  uint64 // by the gate
	Delivered uint64 // at the tunnel, past all firewalls of the host
}

func gateTable() *nftables.Table {
	return &nftables.Table{Name: conf.TunnelTable, Family: nftables.TableFamilyINet}
}

// maxElements of one message: an attribute's length has 16 bits, and an element takes less than a hundred bytes.
const maxElements = 500

// transaction has room for the elements of thousands of nodes, as the kernel takes all of it or nothing.
func transaction() (*nftables.Conn, error) {
	conn, err := nftables.New(nftables.WithSockOptions(func(c *netlink.Conn) error {
		return errors.Join(c.SetWriteBuffer(16<<20), c.SetReadBuffer(1<<20))
	}))
	if err != nil {
		return nil, fmt.Errorf("open nftables: %w", err)
	}
	return conn, nil
}

// Apply makes the kernel's table the gate, in one transaction, or only changes what is in its sets if the rest is as it
// should be. It says whether it found the rules otherwise, and how many tunnel packets there were before.
//
// Equivalent to: nft -f, with the table that String prints
func (g Gate) Apply() (renewed bool, t Traffic, err error) {
	conn, err := transaction()
	if err != nil {
		return false, t, err
	}
	have, t, err := readGate(conn, g)
	if err != nil {
		return false, t, err
	}
	if have == nil || g.countStale(have) > fewElements {
		err = g.replace(conn)
	} else {
		err = g.updateElements(conn, have)
	}
	if err != nil {
		return have == nil, t, fmt.Errorf("make the gate (nftables table inet %s): %w", conf.TunnelTable, err)
	}
	return have == nil, t, nil
}

// Keep makes the table only if it isn't there, or lacks the rules of a chain, for when it isn't known yet which nodes
// there are. What else it holds stays as it is.
func (g Gate) EnsureExists() error {
	conn, err := transaction()
	if err != nil {
		return err
	}
	chains, err := conn.ListChainsOfTableFamily(nftables.TableFamilyINet)
	if err != nil {
		return fmt.Errorf("list the inet family's chains: %w", err)
	}
	for _, want := range g.chains {
		i := slices.IndexFunc(chains, func(c *nftables.Chain) bool { return c.Table.Name == conf.TunnelTable && c.Name == want.name })
		if i >= 0 {
			rules, err := conn.GetRules(gateTable(), chains[i])
			if err != nil {
				return fmt.Errorf("list the gate's chain %s: %w", want.name, err)
			}
			if (len(rules) > 0 || len(want.rules) == 0) && nft.Hooked(chains[i], want.hook, want.priority) {
				continue
			}
		}
		_, _, err := g.Apply()
		return err
	}
	return nil
}

// Remove deletes the table with all that is in it.
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
		Table: gateTable(), Name: s.name, KeyType: s.keyType, Interval: s.interval, Concatenation: s.concatenated, Comment: s.comment,
	}
}

func (g Gate) replace(conn *nftables.Conn) error {
	conn.AddTable(gateTable()) // what isn't there can't be deleted
	conn.DelTable(gateTable())
	table := conn.AddTable(gateTable())
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
	accept := nftables.ChainPolicyAccept
	for _, c := range g.chains {
		chain := &nftables.Chain{Name: c.name, Table: table}
		if c.hook != nil {
			chain.Type, chain.Hooknum, chain.Priority, chain.Policy = nftables.ChainTypeFilter, c.hook, &c.priority, &accept
		}
		conn.AddChain(chain)
		for _, r := range c.rules {
			conn.AddRule(&nftables.Rule{
				Table: table, Chain: chain, Exprs: r.exprs, UserData: userdata.AppendString(nil, userdata.TypeComment, r.comment),
			})
		}
	}
	return conn.Flush()
}

// held are the elements of the table's sets, by the names of the sets.
type gateElements map[string]map[string]nftables.SetElement

func elementKey(e nftables.SetElement) string {
	end := e.KeyEnd
	if bytes.Equal(end, e.Key) {
		end = nil
	}
	return fmt.Sprintf("%x %x %v", e.Key, end, e.IntervalEnd)
}

// fewElements is how many are taken out of sets one by one. From a set of intervals with several parts that takes the
// kernel a time that grows with the set: more than a millisecond each of 5,000, while the whole table is made in a
// fifth of a second.
const fewElements = 100

// leaves counts the elements that the gate hasn't.
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

// fill makes the elements of the sets those of the gate.
//
// Equivalent to: nft delete element inet weir-tunnel SET { … }; nft add element inet weir-tunnel SET { … }
func (g Gate) updateElements(conn *nftables.Conn, have gateElements) error {
	changed := false
	for _, s := range g.sets {
		set, stale := s.kernel(), have[s.name]
		var missing []nftables.SetElement
		for _, e := range s.elements {
			if _, ok := stale[elementKey(e)]; !ok {
				missing = append(missing, e)
			}
			delete(stale, elementKey(e))
		}
		var gone []nftables.SetElement
		for _, e := range stale {
			gone = append(gone, nftables.SetElement{Key: e.Key, KeyEnd: e.KeyEnd, IntervalEnd: e.IntervalEnd})
		}
		changed = changed || len(gone)+len(missing) > 0
		if s.interval && !s.concatenated && len(gone)+len(missing) > 0 {
			// An interval is two elements here. Such sets are small, and made anew they have no halves.
			conn.FlushSet(set)
			gone, missing = nil, s.elements
		}
		for part := range slices.Chunk(gone, maxElements) {
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

// readGate is what the kernel's table has in its sets if all else of it is the gate's; nil if there is no table, or it
// has other sets, chains or rules.
func readGate(conn *nftables.Conn, g Gate) (gateElements, Traffic, error) {
	var t Traffic
	// The library's "not found" can't be told from its other errors, so ask for what is there.
	tables, err := conn.ListTablesOfFamily(nftables.TableFamilyINet)
	if err != nil {
		return nil, t, fmt.Errorf("list the inet family's tables: %w", err)
	}
	i := slices.IndexFunc(tables, func(t *nftables.Table) bool { return t.Name == conf.TunnelTable })
	if i < 0 || tables[i].Flags != 0 { // a dormant table shows its rules, and no packet passes them
		return nil, t, nil
	}
	stands, t, err := chainsStand(conn, g)
	if err != nil || !stands {
		return nil, t, err
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

func chainsStand(conn *nftables.Conn, g Gate) (stands bool, t Traffic, err error) {
	chains, err := conn.ListChainsOfTableFamily(nftables.TableFamilyINet)
	if err != nil {
		return false, t, fmt.Errorf("list the inet family's chains: %w", err)
	}
	chains = slices.DeleteFunc(chains, func(c *nftables.Chain) bool { return c.Table.Name != conf.TunnelTable })
	stands = len(chains) == len(g.chains)
	for _, want := range g.chains {
		i := slices.IndexFunc(chains, func(c *nftables.Chain) bool { return c.Name == want.name })
		if i < 0 || !nft.Hooked(chains[i], want.hook, want.priority) {
			stands = false
			continue
		}
		rules, err := conn.GetRules(gateTable(), chains[i])
		if err != nil {
			return false, t, fmt.Errorf("list the gate's chain %s: %w", want.name, err)
		}
		stands = stands && slices.EqualFunc(rules, want.rules, func(have *nftables.Rule, r gateRule) bool {
			return nft.SameRule(nftables.TableFamilyINet, have, r.comment, r.exprs)
		})
		for _, r := range rules {
			t.count(r)
		}
	}
	return stands, t, nil
}

func (t *Traffic) count(r *nftables.Rule) {
	comment, _ := userdata.GetString(r.UserData, userdata.TypeComment)
	for _, e := range r.Exprs {
		c, ok := e.(*expr.Counter)
		switch {
		case ok && comment == acceptedComment:
			t.Accepted += c.Packets
		case ok && comment == deliveredComment:
			t.Delivered += c.Packets
		}
	}
}
