// Package ipam owns the node's pod addresses: which are free, who holds which. A held address is a symbolic link
// /run/weir/addresses/ADDRESS whose target names the holder: made by one system call, so a crash leaves it there or
// not there, never half. A reboot frees all of them, as the pods are gone. Which address was given out last is kept apart,
// where it outlives a reboot: other nodes may know the pods that were here for some time yet, and what they let through
// to one of these must not be let through to whom its address goes next.
package ipam

import (
	"errors"
	"fmt"
	"io/fs"
	"iter"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"github.com/weir-net/weir/conf"
	"github.com/weir-net/weir/endpoint"
)

const (
	addressesDir = endpoint.Dir + "/addresses"
	lastDir      = "/var/lib/cni/weir/last"
)

// ExhaustedError says that every address of one family's ranges is held.
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

// Reserve picks a free address of each family that the ranges hold, in the order in which they do, and makes holder their
// owner: of all or of none. record is called with the choice before it takes effect: what it writes down says where to
// look after a crash, so no address can be held by nobody. The caller holds endpoint.Lock. Addresses are given out
// round-robin, so a freed one rests as long as possible before it is used again: connections of its last owner have time
// to die.
func Reserve(holder string, ranges []conf.Range, record func([]endpoint.Address) error) error {
	for _, dir := range []string{addressesDir, lastDir} {
		if err := os.MkdirAll(dir, 0o700); err != nil {
			return fmt.Errorf("make %s: %w", dir, err)
		}
	}
	families := byFamily(ranges)
	var picked []endpoint.Address
	for _, alternatives := range families {
		a, err := free(alternatives)
		if err != nil {
			return errors.Join(err, noteFull(alternatives))
		}
		picked = append(picked, a)
	}
	if err := record(picked); err != nil {
		return err
	}
	for i, a := range picked {
		if err := hold(holder, a.Addr, lastPath(families[i])); err != nil {
			for _, before := range picked[:i] {
				err = errors.Join(err, Release(holder, before.Addr))
			}
			return err
		}
	}
	return nil
}

// hold makes holder the address's owner, and the address the last that was given out.
func hold(holder string, addr netip.Addr, last string) error {
	if err := os.Symlink(holder, filepath.Join(addressesDir, addr.String())); err != nil {
		return fmt.Errorf("reserve %s for %s: %w", addr, holder, err)
	}
	if err := note(last, addr); err != nil {
		return errors.Join(fmt.Errorf("note %s as the last address: %w", addr, err), Release(holder, addr))
	}
	return nil
}

// byFamily are the ranges of each family, that of the first range first.
func byFamily(ranges []conf.Range) [][]conf.Range {
	var families [][]conf.Range
	for _, r := range ranges {
		i := slices.IndexFunc(families, func(f []conf.Range) bool { return conf.FamilyOf(f[0].Gateway) == conf.FamilyOf(r.Gateway) })
		if i < 0 {
			families = append(families, []conf.Range{r})
		} else {
			families[i] = append(families[i], r)
		}
	}
	return families
}

// free is the next address that nobody holds. It takes as many looks as there are held ones before it, however large the
// ranges are.
func free(ranges []conf.Range) (endpoint.Address, error) {
	held := 0
	for a := range candidates(ranges, last(ranges)) {
		if _, err := os.Lstat(filepath.Join(addressesDir, a.Addr.String())); err != nil {
			return a, nil
		}
		held++
	}
	return endpoint.Address{}, &ExhaustedError{Ranges: ranges, Held: held}
}

// Holder is who holds the address; empty if nobody does.
func Holder(addr netip.Addr) (string, error) {
	holder, err := os.Readlink(filepath.Join(addressesDir, addr.String()))
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return "", fmt.Errorf("look up the holder of %s: %w", addr, err)
	}
	return holder, nil
}

// Release frees the address if holder holds it; otherwise it is left alone and that is no error.
func Release(holder string, addr netip.Addr) error {
	if owner, err := Holder(addr); err != nil || owner != holder {
		return err
	}
	if err := forgetFull(); err != nil {
		return err
	}
	if err := os.Remove(filepath.Join(addressesDir, addr.String())); err != nil && !errors.Is(err, fs.ErrNotExist) {
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

// note keeps the address in a symbolic link too: a file could be empty after a crash of the machine.
func note(path string, addr netip.Addr) error {
	tmp := path + ".tmp"
	if err := os.Remove(tmp); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	if err := os.Symlink(addr.String(), tmp); err != nil {
		return err
	}
	return os.Rename(tmp, path)
}

// last is the address that was given out last, or no address: losing it costs the round robin, nothing else.
func last(ranges []conf.Range) netip.Addr {
	target, err := os.Readlink(lastPath(ranges))
	if err != nil {
		return netip.Addr{}
	}
	addr, err := netip.ParseAddr(target)
	if err != nil {
		return netip.Addr{}
	}
	return addr.WithZone("") // or all that follow it would be in that zone
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
