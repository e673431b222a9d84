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

// guardTable is the name of the table that has the sets of who may send what (see rules.go).
const guardTable = "weir"

// guardSets are the names of the families' sets.
var guardSets = map[conf.Family]string{conf.IPv4: "senders4", conf.IPv6: "senders6"}

func table() *nftables.Table {
	return &nftables.Table{Name: guardTable, Family: nftables.TableFamilyBridge}
}

func senders(f conf.Family) *nftables.Set {
	address := nftables.TypeIPAddr
	if f == conf.IPv6 {
		address = nftables.TypeIP6Addr
	}
	return &nftables.Set{
		Table: table(), Name: guardSets[f], Concatenation: true,
		KeyType: nftables.MustConcatSetType(nftables.TypeIFName, nftables.TypeEtherAddr, address),
	}
}

// Sender is who a port may send as.
type Sender struct {
	HostIf    string
	MAC       net.HardwareAddr
	Addresses []endpoint.Address
}

// Command is the shell command that lets the port send under its name.
func (s Sender) Command() string {
	var all []string
	for _, a := range s.Addresses {
		all = append(all, fmt.Sprintf("nft add element bridge %s %s '{ %s . %s . %s }'",
			guardTable, guardSets[conf.FamilyOf(a.Addr)], s.HostIf, s.MAC, a.Addr))
	}
	return strings.Join(all, "; ")
}

// elements of the families' sets.
type elements map[conf.Family][]nftables.SetElement

func (s Sender) elements() elements {
	all := elements{}
	for _, a := range s.Addresses {
		f := conf.FamilyOf(a.Addr)
		all[f] = append(all[f], nftables.SetElement{Key: key(s.HostIf, s.MAC, a.Addr)})
	}
	return all
}

// Allow lets the port send under that name, and under no other. The guard itself is made if it isn't there, or is that
// of an earlier weir, which had no bound on fragments: to add nothing to that set fails where there is none.
//
// Equivalent to: nft add element bridge weir senders4 { HOSTIF . MAC . ADDR } (senders6 for IPv6 addresses)
func AllowSender(s Sender) error {
	conn, err := nftables.New()
	if err != nil {
		return fmt.Errorf("open nftables: %w", err)
	}
	for f, list := range s.elements() {
		if err := conn.SetAddElements(senders(f), list); err != nil {
			return fmt.Errorf("let port %s send as %s: %w", s.HostIf, s.MAC, err)
		}
	}
	if err := conn.SetAddElements(fragmentSet(fragmentsSet), nil); err != nil {
		return fmt.Errorf("look for the guard: %w", err)
	}
	err = conn.Flush()
	if errors.Is(err, unix.ENOENT) {
		return makeGuard(s.elements())
	}
	if err != nil {
		return fmt.Errorf("let port %s send as %s: %w", s.HostIf, s.MAC, err)
	}
	return nil
}

// Forbid takes back what Allow gave; that it is gone already is no error. From here the port sends nothing.
//
// Equivalent to: nft delete element bridge weir senders4 { HOSTIF . MAC . ADDR } (senders6 for IPv6 addresses)
func ForbidSender(s Sender) error {
	conn, err := nftables.New(nftables.AsLasting())
	if err != nil {
		return fmt.Errorf("open nftables: %w", err)
	}
	defer func() { _ = conn.CloseLasting() }()
	return s.forbid(conn)
}

// Unplug is Forbid, and deletes the port's pair. Closing a socket waits until nothing that was deleted from nf_tables is in
// use any more (nft_rcv_nl_event in net/netfilter/nf_tables_api.c), tens of milliseconds, and deleting a link waits as
// long, so they do it at the same time.
//
// Equivalent to: Forbid's command; ip link del HOSTIF
func Unplug(s Sender) error {
	conn, err := nftables.New(nftables.AsLasting())
	if err != nil {
		return fmt.Errorf("open nftables: %w", err)
	}
	defer func() { _ = conn.CloseLasting() }()
	return errors.Join(s.forbid(conn), RemoveLink(s.HostIf))
}

func (s Sender) forbid(conn *nftables.Conn) error {
	for f, list := range s.elements() {
		for _, e := range list {
			if err := forbid(conn, f, e); err != nil {
				return fmt.Errorf("forbid port %s to send as %s: %w", s.HostIf, s.MAC, err)
			}
		}
	}
	return nil
}

// forbid deletes one element, in a transaction of its own: an absent one fails the transaction as a whole.
func forbid(conn *nftables.Conn, f conf.Family, e nftables.SetElement) error {
	if err := conn.SetDeleteElements(senders(f), []nftables.SetElement{e}); err != nil {
		return err
	}
	if err := conn.Flush(); err != nil && !errors.Is(err, unix.ENOENT) {
		return err
	}
	return nil
}

// Allowed says whether the port may send under that name.
func SenderAllowed(s Sender) (bool, error) {
	conn, err := nftables.New()
	if err != nil {
		return false, fmt.Errorf("open nftables: %w", err)
	}
	has, err := allowed(conn)
	if err != nil {
		return false, err
	}
	for f, list := range s.elements() {
		for _, e := range list {
			if !has[f][string(e.Key)] {
				return false, nil
			}
		}
	}
	return true, nil
}

// allowed are the keys in the guard's sets; none if there is no guard.
func allowed(conn *nftables.Conn) (map[conf.Family]map[string]bool, error) {
	tables, err := conn.ListTablesOfFamily(nftables.TableFamilyBridge)
	if err != nil {
		return nil, fmt.Errorf("list the bridge family's tables: %w", err)
	}
	// The library's "no such set" can't be told from its other errors, so ask for what is there.
	if !slices.ContainsFunc(tables, func(t *nftables.Table) bool { return t.Name == guardTable }) {
		return nil, nil
	}
	sets, err := conn.GetSets(table())
	if err != nil {
		return nil, fmt.Errorf("list the guard's sets: %w", err)
	}
	has := map[conf.Family]map[string]bool{}
	for _, f := range conf.Families {
		has[f] = map[string]bool{}
		if !slices.ContainsFunc(sets, func(s *nftables.Set) bool { return s.Name == guardSets[f] }) {
			continue
		}
		list, err := conn.GetSetElements(senders(f))
		if err != nil {
			return nil, fmt.Errorf("list the guard's set %s: %w", guardSets[f], err)
		}
		for _, e := range list {
			has[f][string(e.Key)] = true
		}
	}
	return has, nil
}

func key(hostIf string, mac net.HardwareAddr, addr netip.Addr) []byte {
	k := make([]byte, 16+8, 16+8+4)
	copy(k, hostIf)
	copy(k[16:], mac)
	return append(k, addr.AsSlice()...)
}

// RepairGuard makes the guard, or puts right what somebody changed in it, in one transaction, so that no port is ever
// without. current tells who may send; it is asked after the set was read, and because a port's record is written before
// its entry and removed after it, an entry that nobody tells of by then is a leftover. Where nothing is to be done nothing
// is touched: the counter goes on. If it can't be known who may send, the rules are made nevertheless, and the sets
// stay. It returns whom the sets lacked, and whether the rules did not stand.
func RepairGuard(current func() ([]Sender, error)) (lacked []Sender, fell bool, err error) {
	conn, err := nftables.New()
	if err != nil {
		return nil, false, fmt.Errorf("open nftables: %w", err)
	}
	stands, unknown := guardStands(conn)
	fell = !stands
	has, err := allowed(conn)
	var allow []Sender
	if err == nil {
		allow, err = current()
	}
	if err != nil {
		err = errors.Join(err, unknown)
		if fell {
			err = errors.Join(err, makeGuardOf(nil, elementsOf(has)))
		}
		return nil, fell, err
	}
	missing, all := elements{}, elements{}
	for _, s := range allow {
		lacks := false
		for f, list := range s.elements() {
			all[f] = append(all[f], list...)
			for _, e := range list {
				if !has[f][string(e.Key)] {
					missing[f] = append(missing[f], e)
					lacks = true
				}
				delete(has[f], string(e.Key))
			}
		}
		if lacks {
			lacked = append(lacked, s)
		}
	}
	if len(missing) > 0 || fell {
		if err := errors.Join(unknown, makeGuardOf(missing, all)); err != nil {
			return nil, false, err
		}
	}
	for f, stale := range elementsOf(has) {
		for _, e := range stale {
			if err := forbid(conn, f, e); err != nil {
				return lacked, fell, fmt.Errorf("clear a leftover from the guard: %w", err)
			}
		}
	}
	return lacked, fell, nil
}

// makeGuardOf makes the guard with what is missing, or, where the kernel can't make it of what is there, anew with all.
func makeGuardOf(missing, all elements) error {
	if makeGuard(missing) == nil {
		return nil
	}
	return makeGuardAnew(all)
}

// elementsOf are the elements with these keys, of those that have the keys' length.
func elementsOf(has map[conf.Family]map[string]bool) elements {
	all := elements{}
	for _, f := range conf.Families {
		for k := range has[f] {
			if len(k) == int(senders(f).KeyType.Bytes) {
				all[f] = append(all[f], nftables.SetElement{Key: []byte(k)})
			}
		}
	}
	return all
}
