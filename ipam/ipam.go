// Package ipam owns the node's pod addresses: which are free, who holds which. A held address is a symbolic link
// /run/weir/addresses/ADDRESS whose target names the holder: made by one system call, so a crash leaves it there or
// not there, never half.
package ipam

import (
	"errors"
	"fmt"
	"io/fs"
	"iter"
	"net/netip"
	"os"
	"path/filepath"
	"strings"

	"github.com/weir-net/weir/conf"
	"github.com/weir-net/weir/endpoint"
)

const (
	addressesDir = endpoint.Dir + "/addresses"
	lastDir      = endpoint.Dir + "/last"
)

// ExhaustedError says that every address of the ranges is held.
type ExhaustedError struct {
	Ranges []conf.Range
	Held   int
}

func (e *ExhaustedError) Error() string {
	names := make([]string, len(e.Ranges))
	for i, r := range e.Ranges {
		names[i] = fmt.Sprintf("%s (%s to %s)", r.Subnet, r.RangeStart, r.RangeEnd)
	}
	return fmt.Sprintf("ranges: no free address in %s: all %d are held", strings.Join(names, ", "), e.Held)
}

// Reserve picks one free address and makes holder its owner. record is called with the choice before it takes
// effect: what it writes down says where to look after a crash, so no address can be held by nobody. The caller holds
// endpoint.Lock. Addresses are given out round-robin, so a freed one rests as long as possible before it is used
// again: connections of its last owner have time to die.
func Reserve(holder string, ranges []conf.Range, record func(endpoint.Address) error) error {
	for _, dir := range []string{addressesDir, lastDir} {
		if err := os.MkdirAll(dir, 0o700); err != nil {
			return fmt.Errorf("make %s: %w", dir, err)
		}
	}
	held := 0
	for a := range candidates(ranges, last(ranges)) {
		path := filepath.Join(addressesDir, a.Addr.String())
		if _, err := os.Lstat(path); err == nil {
			held++
			continue
		}
		if err := record(a); err != nil {
			return err
		}
		if err := os.Symlink(holder, path); err != nil {
			return fmt.Errorf("reserve %s for %s: %w", a.Addr, holder, err)
		}
		if err := os.WriteFile(lastPath(ranges), []byte(a.Addr.String()), 0o600); err != nil {
			return errors.Join(fmt.Errorf("note %s as the last address: %w", a.Addr, err), Release(holder, a.Addr))
		}
		return nil
	}
	return &ExhaustedError{Ranges: ranges, Held: held}
}

// Release frees the address if holder holds it; otherwise it is left alone and that is no error.
func Release(holder string, addr netip.Addr) error {
	path := filepath.Join(addressesDir, addr.String())
	owner, err := os.Readlink(path)
	if errors.Is(err, fs.ErrNotExist) || (err == nil && owner != holder) {
		return nil
	}
	if err != nil {
		return fmt.Errorf("look up the holder of %s: %w", addr, err)
	}
	if err := os.Remove(path); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("free %s: %w", addr, err)
	}
	return nil
}

// Holders are the held addresses with their owners.
func Holders() (map[netip.Addr]string, error) {
	entries, err := os.ReadDir(addressesDir)
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return nil, fmt.Errorf("list held addresses: %w", err)
	}
	all := make(map[netip.Addr]string, len(entries))
	for _, e := range entries {
		addr, err := netip.ParseAddr(e.Name())
		if err != nil {
			continue
		}
		if owner, err := os.Readlink(filepath.Join(addressesDir, e.Name())); err == nil {
			all[addr] = owner
		}
	}
	return all, nil
}

func lastPath(ranges []conf.Range) string {
	return filepath.Join(lastDir, strings.ReplaceAll(ranges[0].Subnet.String(), "/", "_"))
}

// last is the address that was given out last, or no address: losing it costs the round robin, nothing else.
func last(ranges []conf.Range) netip.Addr {
	data, err := os.ReadFile(lastPath(ranges))
	if err != nil {
		return netip.Addr{}
	}
	addr, err := netip.ParseAddr(string(data))
	if err != nil {
		return netip.Addr{}
	}
	return addr
}

// candidates are the ranges' addresses, each once, from the one after last round to last. Gateways are left out.
func candidates(ranges []conf.Range, last netip.Addr) iter.Seq[endpoint.Address] {
	return func(yield func(endpoint.Address) bool) {
		start := 0
		for i, r := range ranges {
			if !last.Less(r.RangeStart) && !r.RangeEnd.Less(last) {
				start = i
			}
		}
		run := func(r conf.Range, from, to netip.Addr) bool {
			for a := from; a.IsValid() && !to.Less(a); a = a.Next() {
				if a != r.Gateway && !yield(endpoint.Address{Addr: a, Subnet: r.Subnet, Gateway: r.Gateway}) {
					return false
				}
			}
			return true
		}
		first := ranges[start]
		from := first.RangeStart
		if last.IsValid() && !last.Less(first.RangeStart) && !first.RangeEnd.Less(last) {
			from = last.Next()
		}
		if !run(first, from, first.RangeEnd) {
			return
		}
		for i := 1; i < len(ranges); i++ {
			if r := ranges[(start+i)%len(ranges)]; !run(r, r.RangeStart, r.RangeEnd) {
				return
			}
		}
		if from != first.RangeStart {
			run(first, first.RangeStart, from.Prev())
		}
	}
}
