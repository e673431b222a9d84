// Package ipam assigns addresses to attachments on this node. It owns these files:
//
//   - /run/weir/addresses/ADDRESS: a symbolic link for each assigned address. Its target is the attachment's ID.
//   - /run/weir/addresses.maps: bitmaps of the assigned addresses (see hint)
//   - /var/lib/cni/weir/last/SUBNET: a symbolic link whose target is the address that was assigned last (see lastPath)
//   - /run/weir/shortage.json: the ranges that had no free address (see Shortage)
//
// Invariants:
//   - One system call makes or removes a link, so a crash leaves an address assigned or free.
//   - Only the links decide whether an address is assigned. The bitmaps only save time, and may be lost or wrong.
//   - A process assigns and releases addresses only with the node's lock.
//   - A reboot releases all addresses: /run is emptied, and the pods are gone.
//   - The address that was assigned last outlives a reboot. Other nodes may still allow traffic to pods from
//     before the reboot, so the addresses of these pods must not be the first to be assigned again.
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

type Request struct {
	// Ranges are the ranges to assign from. The pod gets one address of each family, in the order in which the families
	// first appear.
	Ranges []conf.Range
	// Addresses are the addresses that the runtime requests, at most one of each family. Each must be in a range.
	Addresses []netip.Addr
}

// AssignedError means that a requested address isn't free: it is assigned to an attachment, or a pod may still have it
// from host-local.
type AssignedError struct {
	Addr  netip.Addr
	Owner string // an attachment's ID, or a text that names the IPAM plugin host-local
}

func (e *AssignedError) Error() string {
	return fmt.Sprintf("address %s was requested, but is assigned to %s", e.Addr, e.Owner)
}

// Assign picks a free address of each family of the ranges and assigns them to the attachment id. If it fails,
// it has assigned none. It returns an AssignedError if a requested address isn't free, an ExhaustedError if a
// family has no free address, or another error. The caller must have endpoint.Lock.
//
// Before Assign assigns the addresses, it calls the function record, which writes them into the endpoint record. After
// a crash, the endpoint record says which attachment the addresses belong to.
//
// Addresses are assigned round-robin. So a released address stays free for as long as possible, and old
// connections to it can end.
func Assign(id string, want Request, record func([]endpoint.Address) error) error {
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
	if others.unread != nil { // any address may be in use, and an IPv6 range has too many addresses to check
		return fmt.Errorf("find out which addresses host-local has given to pods: %w", others.unread)
	}
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
		err := assign(h, id, a.Addr)
		if err == nil && !slices.Contains(want.Addresses, a.Addr) {
			if err = recordLast(lastPath(families[i]), a.Addr); err != nil {
				err = errors.Join(fmt.Errorf("record %s as the last address: %w", a.Addr, err), Release(id, a.Addr))
			}
		}
		if err != nil {
			for _, before := range picked[:i] {
				err = errors.Join(err, Release(id, before.Addr))
			}
			return err
		}
	}
	return nil
}

// pick returns the requested address that one of the ranges can assign, or else the next free address. It returns an
// AssignedError if the requested address isn't free, and an ExhaustedError if no address is free. The ranges must be
// of one family.
func pick(h hint, others *hostLocal, ranges []conf.Range, requested []netip.Addr) (endpoint.Address, error) {
	for _, a := range requested {
		i := slices.IndexFunc(ranges, func(r conf.Range) bool { return r.CanAssign(a) })
		if i < 0 {
			continue
		}
		owner, err := AssignedTo(a)
		if err != nil {
			return endpoint.Address{}, err
		}
		if owner == "" {
			owner = others.owner(a)
		}
		if owner != "" {
			return endpoint.Address{}, &AssignedError{Addr: a, Owner: owner}
		}
		return endpoint.Address{Addr: a, Subnet: ranges[i].Subnet, Gateway: ranges[i].Gateway}, nil
	}
	if a, ok := next(h, others, ranges); ok {
		return a, nil
	}
	rebuilt, err := h.rebuildIfStale()
	if err != nil {
		return endpoint.Address{}, err
	}
	if a, ok := next(h, others, ranges); rebuilt && ok {
		return a, nil
	}
	recordShortage(ranges)
	return endpoint.Address{}, &ExhaustedError{Ranges: ranges}
}

func next(h hint, others *hostLocal, ranges []conf.Range) (endpoint.Address, bool) {
	for _, r := range rotate(runs(ranges), lastAssigned(ranges)) {
		for a := range h.free(r.IPRange) {
			if _, err := os.Lstat(linkPath(a)); !errors.Is(err, fs.ErrNotExist) {
				h.mark(a) // the bit is wrong, or the link can't be read
				continue
			}
			if others.owner(a) == "" {
				return endpoint.Address{Addr: a, Subnet: r.subnet, Gateway: r.gateway}, true
			}
		}
	}
	return endpoint.Address{}, false
}

// AssignExternal assigns the attachment id an address that another plugin gave the pod. If the address is still
// assigned to another attachment, AssignExternal releases the address first, or refuses it (see CheckExternal). The
// caller must have endpoint.Lock.
func AssignExternal(id string, addr netip.Addr) error {
	if err := os.MkdirAll(addressesDir, 0o700); err != nil {
		return fmt.Errorf("make %s: %w", addressesDir, err)
	}
	h := hint{}
	if err := h.ensure(); err != nil {
		return err
	}
	owner, err := replaceable(id, addr)
	if err != nil || owner == id {
		return err
	}
	if owner != "" {
		if err := Release(owner, addr); err != nil {
			return err
		}
	}
	return assign(h, id, addr)
}

// CheckExternal returns an *AssignedError if AssignExternal would refuse the address. AssignExternal refuses an address
// of another attachment if weir chose the address for that attachment, or if that attachment's record can't be read.
// Otherwise two pods could have the address. The caller must have endpoint.Lock.
func CheckExternal(id string, addr netip.Addr) error {
	_, err := replaceable(id, addr)
	return err
}

// replaceable returns the ID of the attachment to which the address is assigned, or "" if the address is free. That
// attachment may lose the address to the attachment id in three cases: it has no endpoint record, it is ending, or
// another plugin made its interface (weir has then missed its DEL). Otherwise replaceable returns an *AssignedError.
func replaceable(id string, addr netip.Addr) (owner string, err error) {
	owner, err = AssignedTo(addr)
	if err != nil || owner == "" || owner == id {
		return owner, err
	}
	e, err := endpoint.Load(owner)
	if gone := errors.Is(err, fs.ErrNotExist); !gone && (err != nil || !e.Chained) {
		return "", &AssignedError{Addr: addr, Owner: owner}
	}
	return owner, nil
}

// assign makes the symbolic link that assigns the address, and then sets the address's bit in the bitmaps. A crash
// between these two steps leaves an assigned address with a clear bit.
func assign(h hint, id string, addr netip.Addr) error {
	if err := os.Symlink(id, linkPath(addr)); err != nil {
		return fmt.Errorf("assign %s to %s: %w", addr, id, err)
	}
	h.mark(addr)
	return nil
}

func byFamily(ranges []conf.Range) [][]conf.Range {
	var families [][]conf.Range
	for _, r := range ranges {
		i := slices.IndexFunc(families, func(f []conf.Range) bool {
			return conf.FamilyOf(f[0].Gateway) == conf.FamilyOf(r.Gateway)
		})
		if i < 0 {
			families = append(families, []conf.Range{r})
		} else {
			families[i] = append(families[i], r)
		}
	}
	return families
}

// AssignedTo returns the ID of the attachment that the address is assigned to; empty if the address is free. It
// returns an error if the link can't be read.
func AssignedTo(addr netip.Addr) (string, error) {
	id, err := os.Readlink(linkPath(addr))
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return "", fmt.Errorf("look up what %s is assigned to: %w", addr, err)
	}
	return id, nil
}

// Release releases the address if it is assigned to the attachment id. Otherwise it does nothing and returns
// nil. The caller must have endpoint.Lock.
func Release(id string, addr netip.Addr) error {
	if owner, err := AssignedTo(addr); err != nil || owner != id {
		return err
	}
	if err := (hint{}).unmark(addr); err != nil {
		return fmt.Errorf("release %s: %w", addr, err)
	}
	if err := os.Remove(linkPath(addr)); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("release %s: %w", addr, err)
	}
	return nil
}

// Assignments returns the attachment's ID for each assigned address. Files that other programs left in the
// directory of addresses don't count.
func Assignments() (map[netip.Addr]string, error) {
	entries, err := os.ReadDir(addressesDir)
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return nil, fmt.Errorf("list assigned addresses: %w", err)
	}
	all := make(map[netip.Addr]string, len(entries))
	for _, e := range entries {
		addr, err := netip.ParseAddr(e.Name())
		if err != nil {
			continue
		}
		owner, err := os.Readlink(filepath.Join(addressesDir, e.Name()))
		if errors.Is(err, fs.ErrNotExist) || errors.Is(err, unix.EINVAL) { // released meanwhile, or no symbolic link
			continue
		}
		if err != nil {
			return nil, fmt.Errorf("look up what %s is assigned to: %w", addr, err)
		}
		all[addr] = owner
	}
	return all, nil
}

func linkPath(addr netip.Addr) string { return filepath.Join(addressesDir, addr.String()) }
