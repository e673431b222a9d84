package bridge

import (
	"errors"
	"fmt"
	"net/netip"
	"slices"

	"github.com/google/nftables"
	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/weir-net/weir/conf"
	"github.com/weir-net/weir/endpoint"
)

// ForbidPorts removes all entries of the ports from the guard's sets. The caller must call the returned function, which
// closes the connection to nftables, and waits until the kernel no longer uses the entries.
//
// Equivalent to: nft delete element bridge weir senders4 { HOSTIF . MAC . ADDR, … } (senders6 for IPv6 addresses)
func ForbidPorts(hostIfs []string) (later func(), err error) {
	conn, err := nftables.New(nftables.AsLasting())
	if err != nil {
		return func() {}, fmt.Errorf("open nftables: %w", err)
	}
	later = func() { _ = conn.CloseLasting() }
	has, err := readSenders(conn)
	if err != nil {
		return later, err
	}
	all := elements{}
	for name, list := range elementsOf(has) {
		if name != quickSet {
			all[name] = slices.DeleteFunc(list, func(e nftables.SetElement) bool {
				s, ok := senderOf(e.Key)
				return !ok || !slices.Contains(hostIfs, s.HostIf)
			})
		}
	}
	all[quickSet] = quickOf(has, all)
	if err := deleteTogether(conn, all); err != nil {
		return later, fmt.Errorf("forbid ports to send: %w", err)
	}
	return later, nil
}

// deleteTogether deletes the elements in one transaction. If an element is absent, the kernel refuses the whole
// transaction. deleteTogether then deletes each element in a transaction of its own.
func deleteTogether(conn *nftables.Conn, all elements) error {
	for name, list := range all {
		if len(list) == 0 {
			continue
		}
		if err := conn.SetDeleteElements(senderSets()[name], list); err != nil {
			return err
		}
	}
	if err := conn.Flush(); !errors.Is(err, unix.ENOENT) {
		return err
	}
	for set, list := range all {
		for _, e := range list {
			if err := deleteElement(conn, set, e); err != nil {
				return err
			}
		}
	}
	return nil
}

// RemovePorts deletes the ports' pairs and weir0's neighbour entries for the addresses. A missing pair or entry is no
// error.
//
// Equivalent to: ip neigh del ADDR dev weir0; ip link del HOSTIF, for each
func RemovePorts(hostIfs []string, addrs []endpoint.Address) error {
	for _, name := range hostIfs {
		index, err := indexOf(name)
		if err != nil {
			return err
		}
		if index != 0 {
			if err := RemovePort(name, nil); err != nil {
				return err
			}
		}
	}
	present, err := neighboursOf(addrs)
	if err != nil {
		return err
	}
	return RemoveNeighbours(present)
}

// Equivalent to: ip neigh show dev weir0
func neighboursOf(addrs []endpoint.Address) (present []endpoint.Address, err error) {
	index, err := indexOf(Name)
	if index == 0 || err != nil {
		return nil, err
	}
	wanted := map[netip.Addr]endpoint.Address{}
	six := false
	for _, a := range addrs {
		wanted[a.Addr], six = a, six || conf.FamilyOf(a.Addr) == conf.IPv6
	}
	families := []int{netlink.FAMILY_V4}
	if six {
		families = append(families, netlink.FAMILY_V6)
	}
	for _, f := range families {
		all, err := netlink.NeighList(index, f)
		if err != nil {
			return nil, fmt.Errorf("list neighbours on %s: %w", Name, err)
		}
		for _, n := range all {
			known, _ := netip.AddrFromSlice(n.IP)
			if a, ok := wanted[known.Unmap()]; ok {
				present = append(present, a)
			}
		}
	}
	return present, nil
}
