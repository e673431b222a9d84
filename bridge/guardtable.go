package bridge

import (
	"cmp"
	"errors"
	"fmt"
	"maps"
	"slices"

	"github.com/google/nftables"
	"golang.org/x/sys/unix"

	"github.com/weir-net/weir/conf"
	"github.com/weir-net/weir/internal/nft"
)

func makeGuard(add elements) error {
	return logIfPossible(func(conn *nftables.Conn, logs bool) error {
		intact, err := guardIntact(conn)
		return commitGuard(conn, add, err != nil || !intact, logs)
	})
}

// logIfPossible calls the function commit with logs true, so that commit makes rules that log. Some kernels can't log
// frames of a bridge. So after an error, logIfPossible calls commit with logs false. It returns the first error if
// both calls fail.
func logIfPossible(commit func(conn *nftables.Conn, logs bool) error) error {
	var first error
	for _, logs := range []bool{true, false} {
		conn, err := nftables.New()
		if err != nil {
			return fmt.Errorf("open nftables: %w", err)
		}
		if err = commit(conn, logs); err == nil {
			return nil
		}
		first = cmp.Or(first, err)
	}
	return first
}

// replaceGuard makes the guard's tables anew, because the kernel can't change a chain's hook or a set's type.
//
// Equivalent to: nft -f, with "delete table" for each table before the tables
func replaceGuard(all elements) error {
	return logIfPossible(func(conn *nftables.Conn, logs bool) error {
		for _, t := range guardTables() {
			conn.AddTable(t) // deleting a table that is absent would fail
			conn.DelTable(t)
		}
		return commitGuard(conn, all, true, logs)
	})
}

func commitGuard(conn *nftables.Conn, add elements, rules, logs bool) error {
	for _, t := range guardTables() {
		conn.AddTable(t)
	}
	sets := guardSetsByName()
	for _, name := range slices.Sorted(maps.Keys(sets)) {
		if err := conn.AddSet(sets[name], nil); err != nil {
			return fmt.Errorf("make the guard's set %s: %w", name, err)
		}
	}
	for name, list := range add {
		if err := conn.SetAddElements(sets[name], list); err != nil {
			return fmt.Errorf("add to the guard's set %s: %w", name, err)
		}
	}
	if rules {
		chains := guardChains(sets)
		if !logs {
			chains = withoutLog(chains)
		}
		nft.AddChains(conn, chains)
	}
	err := conn.Flush()
	if errors.Is(err, unix.EOPNOTSUPP) || errors.Is(err, unix.EAFNOSUPPORT) {
		err = fmt.Errorf("%w: the kernel needs nf_tables for these families (CONFIG_NF_TABLES_BRIDGE, _INET and _ARP)", err)
	}
	if err != nil {
		return fmt.Errorf("make the guard (nftables tables bridge %s, inet %s and arp %s): %w",
			conf.GuardTable, conf.PortsTable, conf.PortsTable, err)
	}
	return nil
}

// guardIntact reports whether the kernel has all chains and rules of the guard. It doesn't look at the sets. Rules
// without a log count as intact, because some kernels can't log frames of a bridge.
//
// Equivalent to: nft list table bridge weir; nft list table inet weir-ports; nft list table arp weir-ports
func guardIntact(conn *nftables.Conn) (bool, error) {
	chains := guardChains(guardSetsByName())
	quiet := withoutLog(chains)
	for _, t := range guardTables() {
		exists, err := nft.TableExists(conn, t)
		if err != nil || !exists {
			return false, err
		}
		have, err := nft.ListChains(conn, t)
		if err != nil {
			return false, err
		}
		for i, c := range chains {
			if sameTable(c.Table, t) && !c.Same(have[c.Name]) && !quiet[i].Same(have[c.Name]) {
				return false, nil
			}
		}
	}
	return true, nil
}

func sameTable(a, b *nftables.Table) bool { return a.Name == b.Name && a.Family == b.Family }

// RemoveGuard deletes the guard and the table for link-local addresses. Missing tables are no error.
//
// Equivalent to: nft delete table bridge weir; nft delete table inet weir-ports; nft delete table arp weir-ports;
// nft delete table bridge weir-link-local
func RemoveGuard() error {
	conn, err := nftables.New()
	if err != nil {
		return fmt.Errorf("open nftables: %w", err)
	}
	var errs []error
	for _, t := range append(guardTables(), linkLocalTable()) {
		errs = append(errs, removeTable(conn, t))
	}
	return errors.Join(errs...)
}

// removeTable deletes the table in a transaction of its own. If the table is absent, the kernel refuses the whole
// transaction, and removeTable returns nil.
func removeTable(conn *nftables.Conn, t *nftables.Table) error {
	conn.DelTable(t)
	if err := conn.Flush(); err != nil && !errors.Is(err, unix.ENOENT) {
		return fmt.Errorf("delete nftables table %s: %w", t.Name, err)
	}
	return nil
}
