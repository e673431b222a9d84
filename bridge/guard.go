package bridge

import (
	"encoding/binary"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"slices"

	"github.com/google/nftables"
	"github.com/google/nftables/expr"
	"github.com/google/nftables/userdata"
	"golang.org/x/sys/unix"

	"github.com/weir-net/weir/endpoint"
)

// The guard is the nftables table "bridge weir": a set of who may send what, and one chain that drops the rest.
//
//	table bridge weir {
//	  set senders4 { typeof iifname . ether saddr . ip saddr }
//	  chain ports {
//	    type filter hook prerouting priority -300; policy accept;
//	    iifname != "weirp*" accept
//	    meta protocol ip iifname . ether saddr . ip saddr @senders4 accept
//	    meta protocol arp iifname . ether saddr . arp saddr ip @senders4 iifname . arp saddr ether . arp saddr ip @senders4 accept
//	    counter drop comment "weir: forged sender"
//	  }
//	}
//
// One lookup decides, whatever the number of pods. Frames that are neither IPv4 nor ARP are dropped, so a pod has no
// IPv6 until its addresses are in a set as well.
const (
	guardTable = "weir"
	guardSet   = "senders4"
	guardChain = "ports"
)

// Register numbers of nf_tables: a key is put together in consecutive 32-bit registers, each part filled up to four
// bytes: 16 for the interface's name, 8 for the MAC, 4 for the address.
const (
	regName = unix.NFT_REG_1
	regMAC  = unix.NFT_REG32_04
	regAddr = unix.NFT_REG32_06
)

func table() *nftables.Table {
	return &nftables.Table{Name: guardTable, Family: nftables.TableFamilyBridge}
}

func senders() *nftables.Set {
	return &nftables.Set{
		Table: table(), Name: guardSet, Concatenation: true,
		KeyType: nftables.MustConcatSetType(nftables.TypeIFName, nftables.TypeEtherAddr, nftables.TypeIPAddr),
	}
}

// Sender is who a port may send as.
type Sender struct {
	HostIf    string
	MAC       net.HardwareAddr
	Addresses []endpoint.Address
}

func (s Sender) elements() []nftables.SetElement {
	var all []nftables.SetElement
	for _, a := range s.Addresses {
		all = append(all, nftables.SetElement{Key: key(s.HostIf, s.MAC, a.Addr)})
	}
	return all
}

// Allow lets the port send under that name, and under no other. The guard itself is made if it isn't there.
//
// Equivalent to: nft add element bridge weir senders4 { HOSTIF . MAC . ADDR }
func Allow(s Sender) error {
	conn, err := nftables.New()
	if err != nil {
		return fmt.Errorf("open nftables: %w", err)
	}
	if err := conn.SetAddElements(senders(), s.elements()); err != nil {
		return fmt.Errorf("let port %s send as %s: %w", s.HostIf, s.MAC, err)
	}
	err = conn.Flush()
	if errors.Is(err, unix.ENOENT) {
		return makeGuard(s.elements()...)
	}
	if err != nil {
		return fmt.Errorf("let port %s send as %s: %w", s.HostIf, s.MAC, err)
	}
	return nil
}

// Forbid takes back what Allow gave; that it is gone already is no error. From here the port sends nothing.
//
// Equivalent to: nft delete element bridge weir senders4 { HOSTIF . MAC . ADDR }
func Forbid(s Sender) error {
	for _, e := range s.elements() {
		if err := forbid(e); err != nil {
			return fmt.Errorf("forbid port %s to send as %s: %w", s.HostIf, s.MAC, err)
		}
	}
	return nil
}

// forbid deletes one element, in a transaction of its own: an absent one fails the transaction as a whole.
func forbid(e nftables.SetElement) error {
	conn, err := nftables.New()
	if err != nil {
		return fmt.Errorf("open nftables: %w", err)
	}
	if err := conn.SetDeleteElements(senders(), []nftables.SetElement{e}); err != nil {
		return err
	}
	if err := conn.Flush(); err != nil && !errors.Is(err, unix.ENOENT) {
		return err
	}
	return nil
}

// Allowed says whether the port may send under that name.
func Allowed(s Sender) (bool, error) {
	conn, err := nftables.New()
	if err != nil {
		return false, fmt.Errorf("open nftables: %w", err)
	}
	has, err := allowed(conn)
	if err != nil {
		return false, err
	}
	for _, e := range s.elements() {
		if !has[string(e.Key)] {
			return false, nil
		}
	}
	return true, nil
}

// allowed are the keys in the guard's set; none if there is no guard.
func allowed(conn *nftables.Conn) (map[string]bool, error) {
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
	if !slices.ContainsFunc(sets, func(s *nftables.Set) bool { return s.Name == guardSet }) {
		return nil, nil
	}
	elements, err := conn.GetSetElements(senders())
	if err != nil {
		return nil, fmt.Errorf("list the guard's set: %w", err)
	}
	has := make(map[string]bool, len(elements))
	for _, e := range elements {
		has[string(e.Key)] = true
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
// is touched: the counter goes on.
func RepairGuard(current func() ([]Sender, error)) error {
	conn, err := nftables.New()
	if err != nil {
		return fmt.Errorf("open nftables: %w", err)
	}
	has, err := allowed(conn)
	if err != nil {
		return err
	}
	allow, err := current()
	if err != nil {
		return err
	}
	var missing, stale []nftables.SetElement
	for _, s := range allow {
		for _, e := range s.elements() {
			if !has[string(e.Key)] {
				missing = append(missing, e)
			}
			delete(has, string(e.Key))
		}
	}
	for k := range has {
		stale = append(stale, nftables.SetElement{Key: []byte(k)})
	}
	if len(missing) > 0 || !guardStands(conn) {
		if err := makeGuard(missing...); err != nil {
			return err
		}
	}
	for _, e := range stale {
		if err := forbid(e); err != nil {
			return fmt.Errorf("clear a leftover from the guard: %w", err)
		}
	}
	return nil
}

// makeGuard makes table, set, chain and rules, or renews the rules, and adds the elements, all in one transaction.
func makeGuard(elements ...nftables.SetElement) error {
	conn, err := nftables.New()
	if err != nil {
		return fmt.Errorf("open nftables: %w", err)
	}
	t := conn.AddTable(table())
	set := senders()
	if err := conn.AddSet(set, elements); err != nil {
		return fmt.Errorf("make the guard's set: %w", err)
	}
	if !guardStands(conn) {
		addRules(conn, t, set)
	}
	if err := conn.Flush(); err != nil {
		return fmt.Errorf("make the guard (nftables table bridge %s): %w", guardTable, err)
	}
	return nil
}

// guardStands says whether the chain has its rules, by their comments: whoever edits rules by hand leaves others.
func guardStands(conn *nftables.Conn) bool {
	have, err := conn.GetRules(table(), &nftables.Chain{Name: guardChain, Table: table()})
	if err != nil {
		return false
	}
	want := guardRules(senders())
	return slices.EqualFunc(have, want, func(h *nftables.Rule, w guardRule) bool {
		c, _ := userdata.GetString(h.UserData, userdata.TypeComment)
		return c == w.comment && len(h.Exprs) == len(w.exprs)
	})
}

func addRules(conn *nftables.Conn, t *nftables.Table, set *nftables.Set) {
	accept := nftables.ChainPolicyAccept
	chain := conn.AddChain(&nftables.Chain{
		Name: guardChain, Table: t, Type: nftables.ChainTypeFilter, Policy: &accept,
		Hooknum: nftables.ChainHookPrerouting, Priority: nftables.ChainPriorityRef(-300),
	})
	conn.FlushChain(chain)
	for _, r := range guardRules(set) {
		conn.AddRule(&nftables.Rule{
			Table: t, Chain: chain, Exprs: r.exprs, UserData: userdata.AppendString(nil, userdata.TypeComment, r.comment),
		})
	}
}

type guardRule struct {
	comment string
	exprs   []expr.Any
}

func guardRules(set *nftables.Set) []guardRule {
	return []guardRule{
		{"weir: not a pod's port", append(notPort(), verdict(expr.VerdictAccept))},
		{"weir: IPv4 under the pod's own name", join(protocol(unix.ETH_P_IP),
			lookup(set, payload(expr.PayloadBaseLLHeader, 6, 6, regMAC), payload(expr.PayloadBaseNetworkHeader, 12, 4, regAddr)),
			[]expr.Any{verdict(expr.VerdictAccept)})},
		{"weir: ARP under the pod's own name", join(protocol(unix.ETH_P_ARP),
			lookup(set, payload(expr.PayloadBaseLLHeader, 6, 6, regMAC), payload(expr.PayloadBaseNetworkHeader, 14, 4, regAddr)),
			lookup(set, payload(expr.PayloadBaseNetworkHeader, 8, 6, regMAC), payload(expr.PayloadBaseNetworkHeader, 14, 4, regAddr)),
			[]expr.Any{verdict(expr.VerdictAccept)})},
		{"weir: forged sender, or neither IPv4 nor ARP", []expr.Any{&expr.Counter{}, verdict(expr.VerdictDrop)}},
	}
}

// RemoveGuard deletes the table with all that is in it.
//
// Equivalent to: nft delete table bridge weir
func RemoveGuard() error {
	conn, err := nftables.New()
	if err != nil {
		return fmt.Errorf("open nftables: %w", err)
	}
	conn.DelTable(table())
	if err := conn.Flush(); err != nil && !errors.Is(err, unix.ENOENT) {
		return fmt.Errorf("delete the guard: %w", err)
	}
	return nil
}

func notPort() []expr.Any {
	return []expr.Any{
		&expr.Meta{Key: expr.MetaKeyIIFNAME, Register: unix.NFT_REG_1},
		// Comparing fewer bytes than the register holds is how nft writes "weirp*".
		&expr.Cmp{Op: expr.CmpOpNeq, Register: unix.NFT_REG_1, Data: []byte(PortPrefix)},
	}
}

func protocol(ethertype uint16) []expr.Any {
	return []expr.Any{
		&expr.Meta{Key: expr.MetaKeyPROTOCOL, Register: unix.NFT_REG_1},
		&expr.Cmp{Op: expr.CmpOpEq, Register: unix.NFT_REG_1, Data: binary.BigEndian.AppendUint16(nil, ethertype)},
	}
}

// lookup goes on if the port's name, the MAC and the address loaded by the two payloads are in the set together.
func lookup(set *nftables.Set, mac, addr expr.Any) []expr.Any {
	return []expr.Any{
		&expr.Meta{Key: expr.MetaKeyIIFNAME, Register: regName}, mac, addr,
		&expr.Lookup{SourceRegister: regName, SetName: set.Name, SetID: set.ID},
	}
}

func payload(base expr.PayloadBase, offset, length, register uint32) expr.Any {
	return &expr.Payload{Base: base, Offset: offset, Len: length, DestRegister: register}
}

func verdict(kind expr.VerdictKind) expr.Any { return &expr.Verdict{Kind: kind} }

func join(parts ...[]expr.Any) []expr.Any {
	var all []expr.Any
	for _, p := range parts {
		all = append(all, p...)
	}
	return all
}
