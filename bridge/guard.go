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

	"github.com/weir-net/weir/conf"
	"github.com/weir-net/weir/endpoint"
)

// The guard is the nftables table "bridge weir": a set for each family of who may send what, and one chain that drops
// the rest.
//
//	table bridge weir {
//	  set senders4 { typeof iifname . ether saddr . ip saddr }
//	  set senders6 { typeof iifname . ether saddr . ip6 saddr }
//	  chain ports {
//	    type filter hook prerouting priority -300; policy accept;
//	    iifname != "weirp*" accept
//	    meta protocol ip iifname . ether saddr . ip saddr @senders4 accept
//	    meta protocol arp iifname . ether saddr . arp saddr ip @senders4 iifname . arp saddr ether . arp saddr ip @senders4 accept
//	    meta protocol ip6 meta l4proto ipv6-icmp icmpv6 type 133-137 counter drop
//	    meta protocol ip6 iifname . ether saddr . ip6 saddr @senders6 accept
//	    counter drop comment "weir: forged sender"
//	  }
//	}
//
// One lookup decides, whatever the number of pods. Neighbour discovery (RFC 4861: router and neighbour solicitations and
// advertisements, redirects) is dropped as a whole, be it behind extension headers: whose address it speaks of stands
// inside, and no pod needs it, as all neighbours are permanent. Of a pod without an IPv6 address, no IPv6 passes.
const (
	guardTable = "weir"
	guardChain = "ports"
)

// guardSets are the names of the families' sets.
var guardSets = map[conf.Family]string{conf.IPv4: "senders4", conf.IPv6: "senders6"}

// Register numbers of nf_tables: a key is put together in consecutive 32-bit registers, each part filled up to four
// bytes: 16 for the interface's name, 8 for the MAC, 4 or 16 for the address.
const (
	regName = unix.NFT_REG_1
	regMAC  = unix.NFT_REG32_04
	regAddr = unix.NFT_REG32_06
)

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

// Allow lets the port send under that name, and under no other. The guard itself is made if it isn't there.
//
// Equivalent to: nft add element bridge weir senders4 { HOSTIF . MAC . ADDR } (senders6 for IPv6 addresses)
func Allow(s Sender) error {
	conn, err := nftables.New()
	if err != nil {
		return fmt.Errorf("open nftables: %w", err)
	}
	for f, list := range s.elements() {
		if err := conn.SetAddElements(senders(f), list); err != nil {
			return fmt.Errorf("let port %s send as %s: %w", s.HostIf, s.MAC, err)
		}
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
func Forbid(s Sender) error {
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
func Allowed(s Sender) (bool, error) {
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
	missing := elements{}
	for _, s := range allow {
		for f, list := range s.elements() {
			for _, e := range list {
				if !has[f][string(e.Key)] {
					missing[f] = append(missing[f], e)
				}
				delete(has[f], string(e.Key))
			}
		}
	}
	if len(missing) > 0 || !guardStands(conn) {
		if err := makeGuard(missing); err != nil {
			return err
		}
	}
	for f, stale := range has {
		for k := range stale {
			if err := forbid(conn, f, nftables.SetElement{Key: []byte(k)}); err != nil {
				return fmt.Errorf("clear a leftover from the guard: %w", err)
			}
		}
	}
	return nil
}

// makeGuard makes table, sets, chain and rules, or renews the rules, and adds the elements, all in one transaction.
func makeGuard(add elements) error {
	conn, err := nftables.New()
	if err != nil {
		return fmt.Errorf("open nftables: %w", err)
	}
	t := conn.AddTable(table())
	sets := map[conf.Family]*nftables.Set{}
	for _, f := range conf.Families {
		sets[f] = senders(f)
		if err := conn.AddSet(sets[f], add[f]); err != nil {
			return fmt.Errorf("make the guard's set %s: %w", guardSets[f], err)
		}
	}
	if !guardStands(conn) {
		addRules(conn, t, sets)
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
	want := guardRules(map[conf.Family]*nftables.Set{conf.IPv4: senders(conf.IPv4), conf.IPv6: senders(conf.IPv6)})
	return slices.EqualFunc(have, want, func(h *nftables.Rule, w guardRule) bool {
		c, _ := userdata.GetString(h.UserData, userdata.TypeComment)
		return c == w.comment && len(h.Exprs) == len(w.exprs)
	})
}

func addRules(conn *nftables.Conn, t *nftables.Table, sets map[conf.Family]*nftables.Set) {
	accept := nftables.ChainPolicyAccept
	chain := conn.AddChain(&nftables.Chain{
		Name: guardChain, Table: t, Type: nftables.ChainTypeFilter, Policy: &accept,
		Hooknum: nftables.ChainHookPrerouting, Priority: nftables.ChainPriorityRef(-300),
	})
	conn.FlushChain(chain)
	for _, r := range guardRules(sets) {
		conn.AddRule(&nftables.Rule{
			Table: t, Chain: chain, Exprs: r.exprs, UserData: userdata.AppendString(nil, userdata.TypeComment, r.comment),
		})
	}
}

type guardRule struct {
	comment string
	exprs   []expr.Any
}

func guardRules(sets map[conf.Family]*nftables.Set) []guardRule {
	set := sets[conf.IPv4]
	return []guardRule{
		{"weir: not a pod's port", append(notPort(), verdict(expr.VerdictAccept))},
		{"weir: IPv4 under the pod's own name", join(protocol(unix.ETH_P_IP),
			lookup(set, payload(expr.PayloadBaseLLHeader, 6, 6, regMAC), payload(expr.PayloadBaseNetworkHeader, 12, 4, regAddr)),
			[]expr.Any{verdict(expr.VerdictAccept)})},
		{"weir: ARP under the pod's own name", join(protocol(unix.ETH_P_ARP),
			lookup(set, payload(expr.PayloadBaseLLHeader, 6, 6, regMAC), payload(expr.PayloadBaseNetworkHeader, 14, 4, regAddr)),
			lookup(set, payload(expr.PayloadBaseNetworkHeader, 8, 6, regMAC), payload(expr.PayloadBaseNetworkHeader, 14, 4, regAddr)),
			[]expr.Any{verdict(expr.VerdictAccept)})},
		{"weir: neighbour discovery, which pods don't need", join(protocol(unix.ETH_P_IPV6), neighbourDiscovery(),
			[]expr.Any{&expr.Counter{}, verdict(expr.VerdictDrop)})},
		{"weir: IPv6 under the pod's own name", join(protocol(unix.ETH_P_IPV6),
			lookup(sets[conf.IPv6], payload(expr.PayloadBaseLLHeader, 6, 6, regMAC), payload(expr.PayloadBaseNetworkHeader, 8, 16, regAddr)),
			[]expr.Any{verdict(expr.VerdictAccept)})},
		{"weir: forged sender, or none of IPv4, IPv6 and ARP", []expr.Any{&expr.Counter{}, verdict(expr.VerdictDrop)}},
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

// neighbourDiscovery goes on if that is what the packet is. The kernel looks for the protocol behind extension headers.
func neighbourDiscovery() []expr.Any {
	return []expr.Any{
		&expr.Meta{Key: expr.MetaKeyL4PROTO, Register: unix.NFT_REG_1},
		&expr.Cmp{Op: expr.CmpOpEq, Register: unix.NFT_REG_1, Data: []byte{unix.IPPROTO_ICMPV6}},
		payload(expr.PayloadBaseTransportHeader, 0, 1, unix.NFT_REG_1),
		&expr.Range{Op: expr.CmpOpEq, Register: unix.NFT_REG_1, FromData: []byte{133}, ToData: []byte{137}},
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
