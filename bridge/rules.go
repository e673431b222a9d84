package bridge

import (
	"encoding/binary"
	"errors"
	"fmt"
	"maps"
	"slices"

	"github.com/google/nftables"
	"github.com/google/nftables/expr"
	"github.com/google/nftables/userdata"
	"golang.org/x/sys/unix"

	"github.com/weir-net/weir/conf"
	"github.com/weir-net/weir/internal/nft"
)

// The guard is three nftables tables. "bridge weir" sees the frames that a port hands to the bridge, and drops what is
// not under the pod's own name:
//
//	table bridge weir {
//	  set senders4 { typeof iifname . ether saddr . ip saddr }
//	  set senders6 { typeof iifname . ether saddr . ip6 saddr }
//	  set fragments { typeof iifname; size 65535; flags dynamic,timeout; timeout 1m }         (see fragments.go)
//	  set fragment-bytes { typeof iifname; size 65535; flags dynamic,timeout; timeout 1m }
//	  chain ports {
//	    type filter hook prerouting priority -300; policy accept;
//	    iifname != "weirp*" accept
//	    @ll,0,40 0x0180c20000 counter drop
//	    meta protocol ip ip daddr 127.0.0.0/8 counter drop
//	    meta protocol ip ip frag-off & 0x3fff != 0 jump fragments
//	    meta protocol ip6 exthdr frag exists jump fragments
//	    meta protocol ip iifname . ether saddr . ip saddr @senders4 accept
//	    meta protocol arp iifname . ether saddr . arp saddr ip @senders4 iifname . arp saddr ether . arp saddr ip @senders4 accept
//	    meta protocol ip6 meta l4proto ipv6-icmp icmpv6 type 133-137 counter drop
//	    meta protocol ip6 iifname . ether saddr . ip6 saddr @senders6 accept
//	    counter drop comment "weir: forged sender"
//	  }
//	  chain fragments {
//	    update @fragments { iifname limit rate over 1000/second burst 1000 packets } goto shared
//	    update @fragment-bytes { iifname limit rate over 1048576 bytes/second } goto shared
//	  }
//	  chain shared {
//	    limit rate over 10000/second burst 1000 packets counter drop
//	    limit rate over 16777216 bytes/second counter drop
//	  }
//	}
//
// One lookup decides, whatever the number of pods. Neighbour discovery (RFC 4861: router and neighbour solicitations
// and advertisements, redirects) is dropped as a whole, be it behind extension headers: whose address it speaks of
// stands inside, and no pod needs it, as all neighbours are permanent. Of a pod without an IPv6 address, no IPv6
// passes. The node's loopback addresses are dropped because portmap sets route_localnet on weir0, and the kernel then
// routes them.
//
// The bridge hands some frames to the node's IP stack itself, as received on the port, past that chain, unless the port
// is told otherwise (linkLocalMACs): those to the link-local MACs of IEEE 802.1D, 01:80:c2:00:00:02 to :0f
// (br_handle_frame in net/bridge/br_input.c), and to :00 where the bridge runs STP. Where somebody has told the port
// differently again, the other two tables drop what comes to the IP stack from a port. An ordinary frame comes from
// weir0 there, so nothing legitimate matches, whichever ports there are: no rule is added with a pod. Priority -450 is
// ahead of -400, where connection tracking reassembles fragments. Of what comes out of the tunnel, they drop neighbour
// discovery and ARP, which nodes don't need either: a router advertisement would give this node a default route. The
// gate (package overlay) drops those that no pod's address sends. These rules drop the others too, and stand from the
// first ADD, before there is a gate.
//
//	table inet weir-ports {
//	  chain prerouting {
//	    type filter hook prerouting priority -450; policy accept;
//	    iifname "weirp*" counter drop
//	    iifname "weir-vxlan" meta protocol ip6 meta l4proto ipv6-icmp icmpv6 type 133-137 counter drop
//	  }
//	}
//	table arp weir-ports {
//	  chain input {
//	    type filter hook input priority 0; policy accept;
//	    iifname "weirp*" counter drop
//	    iifname "weir-vxlan" counter drop
//	  }
//	}
const portsTable = "weir-ports"

// Register numbers of nf_tables: a key is put together in consecutive 32-bit registers, each part filled up to four
// bytes: 16 for the interface's name, 8 for the MAC, 4 or 16 for the address.
const (
	regName = unix.NFT_REG_1
	regMAC  = unix.NFT_REG_2 // the fifth of the 32-bit registers; the kernel calls it so
	regAddr = unix.NFT_REG32_06
)

// Names of the chains of "bridge weir" that only fragments go through.
const (
	fragmentsChain = "fragments"
	sharedChain    = "shared"
)

// guardTables are the guard's tables.
func guardTables() []*nftables.Table {
	return []*nftables.Table{
		table(),
		{Name: portsTable, Family: nftables.TableFamilyINet},
		{Name: portsTable, Family: nftables.TableFamilyARP},
	}
}

// guardChain is a chain, and what it does.
type guardChain struct {
	*nftables.Chain
	rules []guardRule
}

type guardRule struct {
	comment string
	exprs   []expr.Any
}

// guardSetsOf are the sets of "bridge weir", by name.
func guardSetsOf() map[string]*nftables.Set {
	all := map[string]*nftables.Set{}
	for _, s := range []*nftables.Set{
		senders(conf.IPv4), senders(conf.IPv6), fragmentSet(fragmentsSet), fragmentSet(fragmentBytesSet),
	} {
		all[s.Name] = s
	}
	return all
}

// guardChains are the guard's chains, each behind those that it jumps to.
func guardChains(sets map[string]*nftables.Set) []guardChain {
	tables := guardTables()
	hook := func(t *nftables.Table, name string, hook *nftables.ChainHook, priority nftables.ChainPriority) *nftables.Chain {
		accept := nftables.ChainPolicyAccept
		return &nftables.Chain{
			Name: name, Table: t, Type: nftables.ChainTypeFilter, Policy: &accept, Hooknum: hook, Priority: &priority,
		}
	}
	drop := []expr.Any{&expr.Counter{}, verdict(expr.VerdictDrop)}
	return []guardChain{
		{&nftables.Chain{Name: sharedChain, Table: tables[0]}, sharedRules()},
		{&nftables.Chain{Name: fragmentsChain, Table: tables[0]}, fragmentRules(sets)},
		{hook(tables[0], "ports", nftables.ChainHookPrerouting, -300), portRules(sets)},
		{hook(tables[1], "prerouting", nftables.ChainHookPrerouting, -450), []guardRule{
			{"weir: to the node's IP stack past the bridge's guard", join(fromPort(), drop)},
			{
				"weir: neighbour discovery out of the tunnel, which nodes don't need",
				join(fromTunnel(), protocol(unix.ETH_P_IPV6), neighbourDiscovery(), drop),
			},
		}},
		{hook(tables[2], "input", nftables.ChainHookRef(unix.NF_INET_PRE_ROUTING), 0), []guardRule{
			{"weir: ARP to the node past the bridge's guard", join(fromPort(), drop)},
			{"weir: ARP out of the tunnel, which nodes don't need", join(fromTunnel(), drop)},
		}},
	}
}

func portRules(sets map[string]*nftables.Set) []guardRule {
	set4, set6 := sets[guardSets[conf.IPv4]], sets[guardSets[conf.IPv6]]
	accept, drop := []expr.Any{verdict(expr.VerdictAccept)}, []expr.Any{&expr.Counter{}, verdict(expr.VerdictDrop)}
	count := []expr.Any{&expr.Verdict{Kind: expr.VerdictJump, Chain: fragmentsChain}}
	return []guardRule{
		{"weir: not a pod's port", join(notPort(), accept)},
		{"weir: to a MAC that is for bridges", join(toBridges(), drop)},
		{"weir: to the node's loopback addresses", join(protocol(unix.ETH_P_IP), toLoopback(), drop)},
		{"weir: fragments are bounded", join(protocol(unix.ETH_P_IP), isFragment4(), count)},
		{"weir: fragments are bounded, behind other extension headers too", join(protocol(unix.ETH_P_IPV6), isFragment6(), count)},
		{"weir: IPv4 under the pod's own name", join(protocol(unix.ETH_P_IP),
			lookup(set4, payload(expr.PayloadBaseLLHeader, 6, 6, regMAC), payload(expr.PayloadBaseNetworkHeader, 12, 4, regAddr)),
			accept)},
		{"weir: ARP under the pod's own name", join(protocol(unix.ETH_P_ARP),
			lookup(set4, payload(expr.PayloadBaseLLHeader, 6, 6, regMAC), payload(expr.PayloadBaseNetworkHeader, 14, 4, regAddr)),
			lookup(set4, payload(expr.PayloadBaseNetworkHeader, 8, 6, regMAC), payload(expr.PayloadBaseNetworkHeader, 14, 4, regAddr)),
			accept)},
		{"weir: neighbour discovery, which pods don't need", join(protocol(unix.ETH_P_IPV6), neighbourDiscovery(), drop)},
		{"weir: IPv6 under the pod's own name", join(protocol(unix.ETH_P_IPV6),
			lookup(set6, payload(expr.PayloadBaseLLHeader, 6, 6, regMAC), payload(expr.PayloadBaseNetworkHeader, 8, 16, regAddr)),
			accept)},
		{"weir: forged sender, or none of IPv4, IPv6 and ARP", drop},
	}
}

// makeGuard makes tables, sets, chains and rules, or renews the rules, and adds the elements, all in one transaction.
func makeGuard(add elements) error {
	conn, err := nftables.New()
	if err != nil {
		return fmt.Errorf("open nftables: %w", err)
	}
	stands, err := guardStands(conn)
	return commitGuard(conn, add, err != nil || !stands)
}

// makeGuardAnew deletes whatever has the names of the guard's tables, and makes the guard in the same transaction. Chains at
// other hooks and sets of other types can't be changed into the guard's.
//
// Equivalent to: nft -f, with "delete table" of each in front of the tables
func makeGuardAnew(all elements) error {
	conn, err := nftables.New()
	if err != nil {
		return fmt.Errorf("open nftables: %w", err)
	}
	for _, t := range guardTables() {
		conn.AddTable(t) // what isn't there can't be deleted
		conn.DelTable(t)
	}
	return commitGuard(conn, all, true)
}

// commitGuard adds the elements, and makes what isn't there; rules only if it is told to.
func commitGuard(conn *nftables.Conn, add elements, rules bool) error {
	for _, t := range guardTables() {
		conn.AddTable(t)
	}
	sets := guardSetsOf()
	for _, name := range slices.Sorted(maps.Keys(sets)) {
		if err := conn.AddSet(sets[name], nil); err != nil {
			return fmt.Errorf("make the guard's set %s: %w", name, err)
		}
	}
	for f, list := range add {
		if err := conn.SetAddElements(sets[guardSets[f]], list); err != nil {
			return fmt.Errorf("add to the guard's set %s: %w", guardSets[f], err)
		}
	}
	if rules {
		addRules(conn, guardChains(sets))
	}
	err := conn.Flush()
	if errors.Is(err, unix.EOPNOTSUPP) || errors.Is(err, unix.EAFNOSUPPORT) {
		err = fmt.Errorf("%w: the kernel needs nf_tables for these families (CONFIG_NF_TABLES_BRIDGE, _INET and _ARP)", err)
	}
	if err != nil {
		return fmt.Errorf("make the guard (nftables tables bridge %s, inet %s and arp %s): %w", guardTable, portsTable, portsTable, err)
	}
	return nil
}

// guardStands says whether all of the guard but the elements of its sets is as it should be. With an error it isn't known.
//
// Equivalent to: nft list table bridge weir; nft list table inet weir-ports; nft list table arp weir-ports
func guardStands(conn *nftables.Conn) (bool, error) {
	for _, t := range guardTables() {
		tables, err := conn.ListTablesOfFamily(t.Family)
		if err != nil {
			return false, fmt.Errorf("list the tables of the guard: %w", err)
		}
		// A table with flags is one that somebody has switched off ("dormant"), or taken.
		if !slices.ContainsFunc(tables, func(o *nftables.Table) bool { return o.Name == t.Name && o.Flags == 0 }) {
			return false, nil
		}
	}
	for _, c := range guardChains(guardSetsOf()) {
		hooked, err := c.hooked(conn)
		if err != nil || !hooked {
			return false, err
		}
		have, err := conn.GetRules(c.Table, c.Chain)
		if errors.Is(err, unix.ENOENT) {
			return false, nil
		}
		if err != nil {
			return false, fmt.Errorf("list the rules of the guard's chain %s: %w", c.Name, err)
		}
		if !slices.EqualFunc(have, c.rules, func(h *nftables.Rule, w guardRule) bool {
			return nft.SameRule(c.Table.Family, h, w.comment, w.exprs)
		}) {
			return false, nil
		}
	}
	return true, nil
}

// hooked says whether the kernel has the chain at its hook, or at none if it has none.
func (c guardChain) hooked(conn *nftables.Conn) (bool, error) {
	chains, err := conn.ListChainsOfTableFamily(c.Table.Family)
	if err != nil {
		return false, fmt.Errorf("list the chains of the guard: %w", err)
	}
	i := slices.IndexFunc(chains, func(have *nftables.Chain) bool { return have.Table.Name == c.Table.Name && have.Name == c.Name })
	if i < 0 {
		return false, nil
	}
	var priority nftables.ChainPriority
	if c.Priority != nil {
		priority = *c.Priority
	}
	return nft.Hooked(chains[i], c.Hooknum, priority), nil
}

func addRules(conn *nftables.Conn, chains []guardChain) {
	for _, c := range chains {
		conn.AddChain(c.Chain)
		conn.FlushChain(c.Chain)
	}
	for _, c := range chains {
		for _, r := range c.rules {
			conn.AddRule(&nftables.Rule{
				Table: c.Table, Chain: c.Chain, Exprs: r.exprs, UserData: userdata.AppendString(nil, userdata.TypeComment, r.comment),
			})
		}
	}
}

// RemoveGuard deletes the tables with all that is in them; that they are gone already is no error.
//
// Equivalent to: nft delete table bridge weir; nft delete table inet weir-ports; nft delete table arp weir-ports
func RemoveGuard() error {
	conn, err := nftables.New()
	if err != nil {
		return fmt.Errorf("open nftables: %w", err)
	}
	var errs []error
	for _, t := range guardTables() {
		conn.DelTable(t) // in a transaction of its own: an absent one fails the transaction as a whole
		if err := conn.Flush(); err != nil && !errors.Is(err, unix.ENOENT) {
			errs = append(errs, fmt.Errorf("delete the guard's table %s: %w", t.Name, err))
		}
	}
	return errors.Join(errs...)
}

// Comparing fewer bytes than the register holds is how nft writes "weirp*".
func notPort() []expr.Any  { return incoming(expr.CmpOpNeq, []byte(PortPrefix)) }
func fromPort() []expr.Any { return incoming(expr.CmpOpEq, []byte(PortPrefix)) }

func fromTunnel() []expr.Any {
	name := make([]byte, unix.IFNAMSIZ)
	copy(name, conf.Tunnel)
	return incoming(expr.CmpOpEq, name)
}

// incoming goes on if the name of the link that the packet comes from compares so.
func incoming(op expr.CmpOp, name []byte) []expr.Any {
	return []expr.Any{
		&expr.Meta{Key: expr.MetaKeyIIFNAME, Register: unix.NFT_REG_1},
		&expr.Cmp{Op: op, Register: unix.NFT_REG_1, Data: name},
	}
}

func protocol(ethertype uint16) []expr.Any {
	return []expr.Any{
		&expr.Meta{Key: expr.MetaKeyPROTOCOL, Register: unix.NFT_REG_1},
		&expr.Cmp{Op: expr.CmpOpEq, Register: unix.NFT_REG_1, Data: binary.BigEndian.AppendUint16(nil, ethertype)},
	}
}

// toBridges goes on if a frame is for one of the group addresses that IEEE 802.1D keeps for bridges, 01:80:c2:00:00:00
// to :ff.
func toBridges() []expr.Any {
	return []expr.Any{
		payload(expr.PayloadBaseLLHeader, 0, 5, unix.NFT_REG_1),
		&expr.Cmp{Op: expr.CmpOpEq, Register: unix.NFT_REG_1, Data: []byte{0x01, 0x80, 0xc2, 0, 0}},
	}
}

// toLoopback goes on if an IPv4 packet is for 127.0.0.0/8 (RFC 1122, section 3.2.1.3).
func toLoopback() []expr.Any {
	return []expr.Any{
		payload(expr.PayloadBaseNetworkHeader, 16, 1, unix.NFT_REG_1),
		&expr.Cmp{Op: expr.CmpOpEq, Register: unix.NFT_REG_1, Data: []byte{127}},
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
