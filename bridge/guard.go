package bridge

import (
	"errors"
	"fmt"
	"net"
	"net/netip"
	"slices"
	"strings"

	"github.com/google/nftables"
	"golang.org/x/sys/unix"

	"github.com/weir-net/weir/conf"
	"github.com/weir-net/weir/endpoint"
)

var guardSets = map[conf.Family]string{conf.IPv4: "senders4", conf.IPv6: "senders6"}

func bridgeTable() *nftables.Table {
	return &nftables.Table{Name: conf.GuardTable, Family: nftables.TableFamilyBridge}
}

func sendersSet(f conf.Family) *nftables.Set {
	address := nftables.TypeIPAddr
	if f == conf.IPv6 {
		address = nftables.TypeIP6Addr
	}
	return &nftables.Set{
		Table: bridgeTable(), Name: guardSets[f], Concatenation: true,
		KeyType: nftables.MustConcatSetType(nftables.TypeIFName, nftables.TypeEtherAddr, address),
	}
}

// Sender is a port with the MAC and the addresses under which it may send.
type Sender struct {
	HostIf    string
	MAC       net.HardwareAddr
	Addresses []endpoint.Address
}

func (s Sender) Command() string {
	var all []string
	for _, a := range s.Addresses {
		all = append(all, fmt.Sprintf("nft add element bridge %s %s '{ %s . %s . %s }'",
			conf.GuardTable, guardSets[conf.FamilyOf(a.Addr)], s.HostIf, s.MAC, a.Addr))
	}
	return strings.Join(all, "; ")
}

// senderKeys has the keys of the elements in the guard's sets, by the name of the set.
type senderKeys map[string]map[string]bool

// elements has elements of the guard's sets, by the name of the set.
type elements map[string][]nftables.SetElement

// elements returns the sender's elements in the sets senders4 and senders6, which decide whether the port may send.
// It leaves out the elements in quickSet: they only save time, and the port may also send without them.
func (s Sender) elements() elements {
	all := elements{}
	for _, a := range s.Addresses {
		set := guardSets[conf.FamilyOf(a.Addr)]
		all[set] = append(all[set], nftables.SetElement{Key: senderKey(s.HostIf, s.MAC, a.Addr)})
	}
	return all
}

// allElements returns the sender's elements in all sets of the guard: senders4, senders6 and quickSet.
func (s Sender) allElements() elements {
	all := s.elements()
	if quick := s.quick(); len(quick) > 0 {
		all[quickSet] = quick
	}
	return all
}

func senderSets() map[string]*nftables.Set {
	return map[string]*nftables.Set{
		guardSets[conf.IPv4]: sendersSet(conf.IPv4), guardSets[conf.IPv6]: sendersSet(conf.IPv6), quickSet: quickSenders(),
	}
}

// AllowSender lets the port send from this MAC and these addresses. It makes the guard if there is none, or if an
// earlier version of weir made it without quickSet. The port's link should exist already: an entry in quickSet needs
// the link's index.
//
// Equivalent to: nft add element bridge weir senders4 { HOSTIF . MAC . ADDR } (senders6 for IPv6 addresses)
func AllowSender(s Sender) error {
	conn, err := nftables.New()
	if err != nil {
		return fmt.Errorf("open nftables: %w", err)
	}
	sets, all := senderSets(), s.allElements()
	for name, list := range all {
		if err := conn.SetAddElements(sets[name], list); err != nil {
			return fmt.Errorf("let port %s send as %s: %w", s.HostIf, s.MAC, err)
		}
	}
	if err := conn.SetAddElements(sets[quickSet], nil); err != nil {
		return fmt.Errorf("check that the guard exists: %w", err)
	}
	err = conn.Flush()
	if errors.Is(err, unix.ENOENT) {
		return makeGuard(all)
	}
	if errors.Is(err, unix.ENFILE) { // quickSet is full
		return makeGuard(s.elements())
	}
	if err != nil {
		return fmt.Errorf("let port %s send as %s: %w", s.HostIf, s.MAC, err)
	}
	return nil
}

// ForbidSender removes the sender's entries from the guard. Missing entries are no error.
//
// Equivalent to: nft delete element bridge weir senders4 { HOSTIF . MAC . ADDR } (senders6 for IPv6 addresses)
func ForbidSender(s Sender) error {
	conn, err := nftables.New(nftables.AsLasting())
	if err != nil {
		return fmt.Errorf("open nftables: %w", err)
	}
	defer func() { _ = conn.CloseLasting() }()
	return s.deleteElements(conn)
}

// Unplug removes the sender from the guard, and deletes the port's veth pair and the neighbour entries.
//
// Equivalent to: the command of ForbidSender; ip neigh del ADDR dev weir0; ip link del HOSTIF
//
// Deleting a link waits in the kernel for tens of milliseconds. Closing a socket that has deleted an element also
// waits. Unplug closes the socket last, so that both waits run at the same time.
func Unplug(s Sender, neighbours []endpoint.Address) error {
	conn, err := nftables.New(nftables.AsLasting())
	if err != nil {
		return fmt.Errorf("open nftables: %w", err)
	}
	defer func() { _ = conn.CloseLasting() }()
	return errors.Join(s.deleteElements(conn), RemovePort(s.HostIf, neighbours))
}

// deleteElements deletes the sender's entries from all sets of the guard. If the link is gone, the link's index is
// unknown. deleteElements then deletes the entries in quickSet that have the sender's MAC and one of its addresses.
func (s Sender) deleteElements(conn *nftables.Conn) error {
	all := s.allElements()
	if len(all[quickSet]) == 0 && len(all[guardSets[conf.IPv4]]) > 0 {
		has, err := readSenders(conn)
		if err != nil {
			return err
		}
		all[quickSet] = quickOf(has, all)
	}
	if err := deleteTogether(conn, all); err != nil {
		return fmt.Errorf("forbid port %s to send as %s: %w", s.HostIf, s.MAC, err)
	}
	return nil
}

// deleteElement deletes the element in a transaction of its own. It returns nil if the element is absent.
func deleteElement(conn *nftables.Conn, set string, e nftables.SetElement) error {
	if err := conn.SetDeleteElements(senderSets()[set], []nftables.SetElement{e}); err != nil {
		return err
	}
	if err := conn.Flush(); err != nil && !errors.Is(err, unix.ENOENT) {
		return err
	}
	return nil
}

// SenderAllowed reports whether the guard has all entries of the sender. Entries in quickSet don't count, because
// frames also pass without them.
func SenderAllowed(s Sender) (bool, error) {
	conn, err := nftables.New()
	if err != nil {
		return false, fmt.Errorf("open nftables: %w", err)
	}
	has, err := readSenders(conn)
	if err != nil {
		return false, err
	}
	for set, list := range s.elements() {
		for _, e := range list {
			if !has[set][string(e.Key)] {
				return false, nil
			}
		}
	}
	return true, nil
}

func readSenders(conn *nftables.Conn) (senderKeys, error) {
	tables, err := conn.ListTablesOfFamily(nftables.TableFamilyBridge)
	if err != nil {
		return nil, fmt.Errorf("list the bridge family's tables: %w", err)
	}
	// The library's error for a missing set looks like its other errors, so list tables and sets first.
	if !slices.ContainsFunc(tables, func(t *nftables.Table) bool { return t.Name == conf.GuardTable }) {
		return nil, nil
	}
	sets, err := conn.GetSets(bridgeTable())
	if err != nil {
		return nil, fmt.Errorf("list the guard's sets: %w", err)
	}
	has := senderKeys{}
	for name, set := range senderSets() {
		has[name] = map[string]bool{}
		if !slices.ContainsFunc(sets, func(s *nftables.Set) bool { return s.Name == name }) {
			continue
		}
		list, err := conn.GetSetElements(set)
		if err != nil {
			return nil, fmt.Errorf("list the guard's set %s: %w", name, err)
		}
		for _, e := range list {
			has[name][string(e.Key)] = true
		}
	}
	return has, nil
}

// senderKey returns the key of an element in senders4 or senders6: the link's name padded to 16 bytes, the MAC padded
// to 8 bytes, and the address.
func senderKey(hostIf string, mac net.HardwareAddr, addr netip.Addr) []byte {
	k := make([]byte, 16+8, 16+8+4)
	copy(k, hostIf)
	copy(k[16:], mac)
	return append(k, addr.AsSlice()...)
}

// RepairGuard restores the guard's rules and entries in one transaction, and then deletes leftovers. It returns the
// senders that the guard lacked. damaged is true if the rules were wrong. If the rules can't be read, RepairGuard
// writes all rules and returns the error. If the sets or the senders can't be read, it repairs only the rules and
// returns the error.
//
// RepairGuard reads the sets before it calls the function current, which reads the records. A port's record exists
// longer than the port's entries, so an entry without a record is a leftover.
func RepairGuard(current func() ([]Sender, error)) (missing []Sender, damaged bool, err error) {
	conn, err := nftables.New()
	if err != nil {
		return nil, false, fmt.Errorf("open nftables: %w", err)
	}
	intact, unreadable := guardIntact(conn)
	damaged = !intact
	present, err := readSenders(conn)
	var want []Sender
	if err == nil {
		want, err = current()
	}
	if err != nil {
		err = errors.Join(err, unreadable)
		if damaged {
			err = errors.Join(err, makeOrReplaceGuard(nil, elementsOf(present)))
		}
		return nil, damaged, err
	}
	missing, add, all := compareSenders(want, present)
	if len(add) > 0 || damaged {
		if err := errors.Join(unreadable, makeOrReplaceGuard(add, all)); err != nil {
			return nil, false, err
		}
	}
	for set, leftovers := range elementsOf(present) {
		for _, e := range leftovers {
			if err := deleteElement(conn, set, e); err != nil {
				return missing, damaged, fmt.Errorf("delete a leftover from the guard: %w", err)
			}
		}
	}
	return missing, damaged, nil
}

// compareSenders compares the wanted senders with the guard's entries (present). It returns the senders that the
// guard doesn't allow to send, the elements to add, and all wanted elements. It deletes the wanted keys from present,
// so only leftovers remain there.
func compareSenders(want []Sender, present senderKeys) (missing []Sender, add, all elements) {
	add, all = elements{}, elements{}
	for _, s := range want {
		complete := true
		for set, list := range s.allElements() {
			if set == quickSet && len(all[set])+len(list) > quickEntries {
				continue
			}
			all[set] = append(all[set], list...)
			for _, e := range list {
				if !present[set][string(e.Key)] {
					add[set] = append(add[set], e)
					complete = complete && set == quickSet
				}
				delete(present[set], string(e.Key))
			}
		}
		if !complete {
			missing = append(missing, s)
		}
	}
	return missing, add, all
}

// makeOrReplaceGuard adds what the guard lacks. If the kernel refuses this, a set or a chain may have a wrong type, so
// makeOrReplaceGuard replaces the whole guard.
func makeOrReplaceGuard(add, all elements) error {
	if makeGuard(add) == nil {
		return nil
	}
	return replaceGuard(all)
}

func elementsOf(keys senderKeys) elements {
	all := elements{}
	for name, set := range senderSets() {
		for k := range keys[name] {
			if len(k) == int(set.KeyType.Bytes) {
				all[name] = append(all[name], nftables.SetElement{Key: []byte(k)})
			}
		}
	}
	return all
}
