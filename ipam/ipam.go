// Package ipam owns the node's pod addresses: which are free, who holds which. A held address is a symbolic link
// /run/weir/addresses/ADDRESS whose target names the holder: made by one system call, so a crash leaves it there or
// not there, never half. A reboot frees all of them, as the pods are gone. Which address was given out last is kept apart,
// where it outlives a reboot: other nodes may know the pods that were here for some time yet, and what they let through
// to one of these must not be let through to whom its address goes next.
//
// So that neither ADD nor DEL takes longer the more addresses are held, bitmaps beside the links say where to look for a
// free one (type hint). Only the links decide: the bitmaps may be lost, or wrong, at any time.
package ipam

import (
	"errors"
	"fmt"
	"io/fs"
	"net/netip"
	"os"
	"path/filepath"
	"slices"

	"golang.org/x/sys/unix"

	"github.com/weir-net/weir/conf"
	"github.com/weir-net/weir/endpoint"
)

const (
	addressesDir = endpoint.Dir + "/addresses"
	lastDir      = "/var/lib/cni/weir/last"
)

// Request is what a pod is to get.
type Request struct {
	// Ranges that it gets an address of each family of, in the order in which they have them.
	Ranges []conf.Range
	// Addresses that it shall have, one of a family at most, each one that a range gives out (conf.NetConf.Addresses).
	Addresses []netip.Addr
}

// AssignedError says that an address which was asked for is another's.
type AssignedError struct {
	Addr  netip.Addr
	Owner string
}

func (e *AssignedError) Error() string {
	return fmt.Sprintf("address %s was asked for and is held by %s", e.Addr, e.Owner)
}

// Reserve picks a free address of each family that the ranges hold, in the order in which they do, and makes holder their
// owner: of all or of none. record is called with the choice before it takes effect: what it writes down says where to
// look after a crash, so no address can be held by nobody. The caller holds endpoint.Lock. Addresses are given out
// round-robin, so a freed one rests as long as possible before it is used again: connections of its last owner have time
// to die. One that was asked for doesn't turn the round.
func Assign(holder string, want Request, record func([]endpoint.Address) error) error {
	for _, dir := range []string{addressesDir, lastDir} {
		if err := os.MkdirAll(dir, 0o700); err != nil {
			return fmt.Errorf("make %s: %w", dir, err)
		}
	}
	h := hint{}
	if err := h.ensure(); err != nil {
		return err
	}
	others := newHostLocal()
	families := byFamily(want.Ranges)
	var picked []endpoint.Address
	for _, alternatives := range families {
		a, err := pick(h, others, alternatives, want.Addresses)
		if err != nil {
			return err
		}
		picked = append(picked, a)
	}
	if err := record(picked); err != nil {
		return err
	}
	for i, a := range picked {
		err := hold(h, holder, a.Addr)
		if err == nil && !slices.Contains(want.Addresses, a.Addr) {
			if err = note(lastPath(families[i]), a.Addr); err != nil {
				err = errors.Join(fmt.Errorf("note %s as the last address: %w", a.Addr, err), Release(holder, a.Addr))
			}
		}
		if err != nil {
			for _, before := range picked[:i] {
				err = errors.Join(err, Release(holder, before.Addr))
			}
			return err
		}
	}
	return nil
}

// pick is the family's address for a pod: that which was asked for, or the next that is free.
func pick(h hint, others *hostLocal, ranges []conf.Range, asked []netip.Addr) (endpoint.Address, error) {
	for _, a := range asked {
		i := slices.IndexFunc(ranges, func(r conf.Range) bool { return r.Gives(a) })
		if i < 0 {
			continue
		}
		holder, err := AssignedTo(a)
		if err != nil {
			return endpoint.Address{}, err
		}
		if holder == "" {
			holder = others.holds(a)
		}
		if holder != "" {
			return endpoint.Address{}, &AssignedError{Addr: a, Owner: holder}
		}
		return endpoint.Address{Addr: a, Subnet: ranges[i].Subnet, Gateway: ranges[i].Gateway}, nil
	}
	if a, ok := next(h, others, ranges); ok {
		return a, nil
	}
	rebuilt, err := h.rebuildIfOlder()
	if err != nil {
		return endpoint.Address{}, err
	}
	if a, ok := next(h, others, ranges); rebuilt && ok {
		return a, nil
	}
	noteShortage(ranges)
	return endpoint.Address{}, &ExhaustedError{Ranges: ranges}
}

// next is the first address, round-robin, that nobody holds.
func next(h hint, others *hostLocal, ranges []conf.Range) (endpoint.Address, bool) {
	for _, r := range turned(runs(ranges), last(ranges)) {
		for a := range h.free(r.IPRange) {
			if _, err := os.Lstat(linkPath(a)); !errors.Is(err, fs.ErrNotExist) {
				h.mark(a) // a crash came between the link and its bit; or it can't be known
				continue
			}
			if others.holds(a) == "" {
				return endpoint.Address{Addr: a, Subnet: r.subnet, Gateway: r.gateway}, true
			}
		}
	}
	return endpoint.Address{}, false
}

// Take makes holder the owner of an address that another plugin gave its pod. An owner of before that another plugin's
// address was is one whose end nobody told of: the address is the new pod's by now. That it is one of weir's own is an
// error: two pods would have it. The caller holds endpoint.Lock.
func AssignExternal(holder string, addr netip.Addr) error {
	if err := os.MkdirAll(addressesDir, 0o700); err != nil {
		return fmt.Errorf("make %s: %w", addressesDir, err)
	}
	h := hint{}
	if err := h.ensure(); err != nil {
		return err
	}
	owner, err := AssignedTo(addr)
	if err != nil || owner == holder {
		return err
	}
	if owner != "" {
		// A record that can't be read keeps its address: its pod may run.
		e, err := endpoint.Load(owner)
		if gone := errors.Is(err, fs.ErrNotExist); !gone && (err != nil || !e.Chained) {
			return &AssignedError{Addr: addr, Owner: owner}
		}
		if err := Release(owner, addr); err != nil {
			return err
		}
	}
	return hold(h, holder, addr)
}

// hold makes holder the address's owner. The link comes before the bit: a crash between them leaves a held address that
// looks free, which is found to be held when it is picked.
func hold(h hint, holder string, addr netip.Addr) error {
	if err := os.Symlink(holder, linkPath(addr)); err != nil {
		return fmt.Errorf("reserve %s for %s: %w", addr, holder, err)
	}
	h.mark(addr)
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

// Holder is who holds the address; empty if nobody does.
func AssignedTo(addr netip.Addr) (string, error) {
	holder, err := os.Readlink(linkPath(addr))
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return "", fmt.Errorf("look up the holder of %s: %w", addr, err)
	}
	return holder, nil
}

// Release frees the address if holder holds it; otherwise it is left alone and that is no error. The caller holds
// endpoint.Lock. The bit goes before the link: a crash between them leaves what one in hold does.
func Release(holder string, addr netip.Addr) error {
	if owner, err := AssignedTo(addr); err != nil || owner != holder {
		return err
	}
	if err := (hint{}).unmark(addr); err != nil {
		return fmt.Errorf("free %s: %w", addr, err)
	}
	if err := os.Remove(linkPath(addr)); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("free %s: %w", addr, err)
	}
	return nil
}

// Holders are the held addresses with their owners.
func Assignments() (map[netip.Addr]string, error) {
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
		owner, err := os.Readlink(filepath.Join(addressesDir, e.Name()))
		if errors.Is(err, fs.ErrNotExist) || errors.Is(err, unix.EINVAL) { // freed since it was listed, or no link: somebody else's
			continue
		}
		if err != nil {
			return nil, fmt.Errorf("look up the holder of %s: %w", addr, err)
		}
		all[addr] = owner
	}
	return all, nil
}

func linkPath(addr netip.Addr) string { return filepath.Join(addressesDir, addr.String()) }
