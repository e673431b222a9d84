package bridge

import (
	"encoding/binary"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/google/nftables"
	"github.com/google/nftables/binaryutil"
	"github.com/google/nftables/expr"
	"golang.org/x/sys/unix"

	"github.com/weir-net/weir/conf"
	"github.com/weir-net/weir/endpoint"
	"github.com/weir-net/weir/internal/nft"
)

// On another plugin's bridge, each pod has an IPv6 link-local address that weir doesn't know. So no policy is enforced
// on packets from and to these addresses. The table "bridge weir-link-local" drops the packets, and finds them by the
// pods' ports. Only the bridge family sees the port by which a packet goes out. The node has the table only while it
// has pods on another plugin's bridge.
//
// The ICMPv6 types 133 to 137 are neighbour discovery: router solicitation (133) and advertisement (134), neighbour
// solicitation (135) and advertisement (136), and redirect (137). The hop limit 255 shows that no router has forwarded
// the packet.
//
//	table bridge weir-link-local {
//	  set ports { typeof oif }
//	  set asked { typeof ip6 saddr . ip6 daddr . udp sport . udp dport; size 65535; flags dynamic,timeout; timeout 3m }
//	  chain forward {
//	    type filter hook forward priority -300; policy accept;
//	    meta protocol != ip6 accept
//	    ip6 saddr fe80::/10 goto between
//	    ip6 daddr fe80::/10 goto between
//	  }
//	  chain between {
//	    meta l4proto ipv6-icmp icmpv6 type 134 iif @ports log prefix "weir drop link-local" group 88 counter drop
//	    ip6 daddr ff00::/8 accept
//	    meta l4proto ipv6-icmp icmpv6 type 135-136 ip6 hoplimit 255 accept
//	    iif @ports log prefix "weir drop link-local" group 88 counter drop
//	    meta l4proto ipv6-icmp icmpv6 type 133-137 ip6 hoplimit 255 accept
//	    ip6 daddr fe80::/10 oif @ports log prefix "weir drop link-local-in" group 88 counter drop
//	  }
//	  chain input {
//	    type filter hook input priority -300; policy accept;
//	    meta protocol != ip6 accept
//	    ip6 saddr fe80::/10 goto to-node
//	    ip6 daddr fe80::/10 goto to-node
//	  }
//	  chain to-node {
//	    iif != @ports accept
//	    meta l4proto ipv6-icmp icmpv6 type 134 log prefix "weir drop link-local" group 88 counter drop
//	    ip6 daddr ff00::/8 accept
//	    meta l4proto ipv6-icmp icmpv6 type 135-136 ip6 hoplimit 255 accept
//	    meta l4proto ipv6-icmp icmpv6 type 129 accept
//	    meta l4proto tcp tcp flags & (rst | ack) != 0 accept
//	    meta l4proto udp ip6 daddr . ip6 saddr . udp dport . udp sport @asked accept
//	    log prefix "weir drop link-local" group 88 counter drop
//	  }
//	  chain output {
//	    type filter hook output priority -300; policy accept;
//	    meta protocol ip6 ip6 daddr fe80::/10 oif @ports meta l4proto udp \
//	      update @asked { ip6 saddr . ip6 daddr . udp sport . udp dport }
//	  }
//	}
func linkLocalTable() *nftables.Table {
	return &nftables.Table{Name: conf.LinkLocalTable, Family: nftables.TableFamilyBridge}
}

const (
	betweenChain = "between"
	toNodeChain  = "to-node"
)

// askedFor is how long a pod may answer a UDP packet of the node. Connection tracking remembers a UDP flow for a
// shorter time: at most two minutes (nf_conntrack_udp_timeout_stream).
const askedFor = 3 * time.Minute

func portsSet() *nftables.Set {
	return &nftables.Set{
		Table: linkLocalTable(), Name: "ports", KeyType: nftables.TypeIFIndex, KeyByteOrder: binaryutil.NativeEndian,
	}
}

// askedSet returns the set of the UDP flows that the node has begun, so that the rules accept the pods' answers.
func askedSet() *nftables.Set {
	return &nftables.Set{
		Table: linkLocalTable(), Name: "asked", Dynamic: true, HasTimeout: true, Timeout: askedFor, Size: 65535,
		KeyType: nftables.MustConcatSetType(
			nftables.TypeIP6Addr, nftables.TypeIP6Addr, nftables.TypeInetService, nftables.TypeInetService),
	}
}

// linkLocalChains returns the chains of the table "bridge weir-link-local". Reasons for some rules:
//
//   - Multicast passes, because switches and routers need pods' reports of multicast listeners. But no pod may become
//     the router of the node or of other pods.
//   - Neighbour discovery of other hosts passes, because a router on the bridge may send pods router advertisements.
//   - Packets from link-local addresses to pods' other addresses pass, because policies are enforced on these packets.
//   - Packets from the node to its pods always pass. The bridge family doesn't track connections, so the rules
//     recognise answers: TCP packets with ACK or RST, answers to pings, and UDP packets of a flow in the set "asked".
func linkLocalChains(ports, asked *nftables.Set) []nft.Chain {
	table := linkLocalTable()
	accept := nft.Verdict(expr.VerdictAccept, "")
	const neighbours, router = "weir: hosts on one link find each other", "weir: a router advertisement of a pod"
	other := rule("weir: not IPv6",
		nft.Compare(nft.LoadMeta(expr.MetaKeyPROTOCOL, unix.NFT_REG_1), expr.CmpOpNeq, []byte{0x86, 0xdd}), accept)
	linkLocal := func(to string) []nft.Rule {
		lead := nft.Verdict(expr.VerdictGoto, to)
		return []nft.Rule{
			other, rule("weir: from a link-local address", isLinkLocal(sourceOffset), lead),
			rule("weir: to a link-local address", isLinkLocal(destinationOffset), lead),
		}
	}
	return []nft.Chain{
		{Chain: &nftables.Chain{Name: betweenChain, Table: table}, Rules: []nft.Rule{
			rule(router, icmpv6(), discoveryType(134, 134), onPort(expr.MetaKeyIIF, ports, false),
				logDrop(conf.LinkLocalLogPrefix)),
			rule("weir: multicast", toMulticast(), accept),
			rule(neighbours, discovery(135, 136), accept),
			rule("weir: from a pod, from or to a link-local address", onPort(expr.MetaKeyIIF, ports, false),
				logDrop(conf.LinkLocalLogPrefix)),
			rule("weir: neighbour discovery and router advertisements of others", discovery(133, 137), accept),
			rule("weir: to a pod's link-local address", isLinkLocal(destinationOffset),
				onPort(expr.MetaKeyOIF, ports, false), logDrop(conf.LinkLocalInLogPrefix)),
		}},
		{Chain: &nftables.Chain{Name: toNodeChain, Table: table}, Rules: []nft.Rule{
			rule("weir: not from a pod", onPort(expr.MetaKeyIIF, ports, true), accept),
			rule(router, icmpv6(), discoveryType(134, 134), logDrop(conf.LinkLocalLogPrefix)),
			rule("weir: multicast", toMulticast(), accept),
			rule(neighbours, discovery(135, 136), accept),
			rule("weir: a pod's answer to a ping", icmpv6(), discoveryType(129, 129), accept),
			rule("weir: TCP, but not the first packet of a connection", transport(unix.IPPROTO_TCP), isTCPAnswer(), accept),
			rule("weir: a pod's answer over UDP", transport(unix.IPPROTO_UDP), flow(destinationOffset, sourceOffset, 2, 0),
				[]expr.Any{&expr.Lookup{SourceRegister: unix.NFT_REG_1, SetName: asked.Name, SetID: asked.ID}}, accept),
			rule("weir: from a pod, from or to a link-local address", logDrop(conf.LinkLocalLogPrefix)),
		}},
		{
			Chain: nft.BaseChain(table, "forward", nftables.ChainHookForward, -300),
			Rules: linkLocal(betweenChain),
		},
		{Chain: nft.BaseChain(table, "input", nftables.ChainHookInput, -300), Rules: linkLocal(toNodeChain)},
		{Chain: nft.BaseChain(table, "output", nftables.ChainHookOutput, -300), Rules: []nft.Rule{
			rule("weir: the node's UDP packets to pods, which may answer", protocol(unix.ETH_P_IPV6),
				isLinkLocal(destinationOffset), onPort(expr.MetaKeyOIF, ports, false), transport(unix.IPPROTO_UDP),
				flow(sourceOffset, destinationOffset, 0, 2), []expr.Any{&expr.Dynset{
					SrcRegKey: unix.NFT_REG_1, SetName: asked.Name, SetID: asked.ID, Operation: unix.NFT_DYNSET_OP_UPDATE,
				}}),
		}},
	}
}

// Offsets of the addresses in the IPv6 header, in bytes.
const (
	sourceOffset      = 8
	destinationOffset = 24
)

func isLinkLocal(offset uint32) []expr.Any {
	return []expr.Any{
		nft.LoadPayload(expr.PayloadBaseNetworkHeader, offset, 2, unix.NFT_REG_1),
		&expr.Bitwise{
			SourceRegister: unix.NFT_REG_1, DestRegister: unix.NFT_REG_1, Len: 2, Mask: []byte{0xff, 0xc0}, Xor: []byte{0, 0},
		},
		&expr.Cmp{Op: expr.CmpOpEq, Register: unix.NFT_REG_1, Data: []byte{0xfe, 0x80}},
	}
}

func toMulticast() []expr.Any {
	return nft.Equal(nft.LoadPayload(expr.PayloadBaseNetworkHeader, destinationOffset, 1, unix.NFT_REG_1), []byte{0xff})
}

// discovery matches ICMPv6 packets with a type from first to last and the hop limit 255. Each router lowers the hop
// limit, so these packets come from a host of the same link (RFC 4861, section 7.1).
func discovery(first, last byte) []expr.Any {
	notForwarded := nft.Equal(nft.LoadPayload(expr.PayloadBaseNetworkHeader, 7, 1, unix.NFT_REG_1), []byte{255})
	return nft.Join(icmpv6(), discoveryType(first, last), notForwarded)
}

func onPort(key expr.MetaKey, ports *nftables.Set, not bool) []expr.Any {
	return []expr.Any{
		nft.LoadMeta(key, unix.NFT_REG_1),
		&expr.Lookup{SourceRegister: unix.NFT_REG_1, SetName: ports.Name, SetID: ports.ID, Invert: not},
	}
}

func transport(number byte) []expr.Any {
	return nft.Equal(nft.LoadMeta(expr.MetaKeyL4PROTO, unix.NFT_REG_1), []byte{number})
}

func isTCPAnswer() []expr.Any {
	const rstOrACK = 0x14
	return []expr.Any{
		nft.LoadPayload(expr.PayloadBaseTransportHeader, 13, 1, unix.NFT_REG_1),
		&expr.Bitwise{
			SourceRegister: unix.NFT_REG_1, DestRegister: unix.NFT_REG_1, Len: 1, Mask: []byte{rstOrACK}, Xor: []byte{0},
		},
		&expr.Cmp{Op: expr.CmpOpNeq, Register: unix.NFT_REG_1, Data: []byte{0}},
	}
}

// flow loads the key of the set "asked" from a UDP packet: the node's address, the pod's address, the node's port and
// the pod's port. The parameters are the offsets of these fields in the packet's headers, in bytes. The offsets depend
// on whether the node or the pod has sent the packet.
func flow(node, pod, nodePort, podPort uint32) []expr.Any {
	return []expr.Any{
		nft.LoadPayload(expr.PayloadBaseNetworkHeader, node, 16, unix.NFT_REG_1),
		nft.LoadPayload(expr.PayloadBaseNetworkHeader, pod, 16, unix.NFT_REG_2),
		nft.LoadPayload(expr.PayloadBaseTransportHeader, nodePort, 2, unix.NFT_REG_3),
		nft.LoadPayload(expr.PayloadBaseTransportHeader, podPort, 2, unix.NFT_REG32_09),
	}
}

// LinkLocalPorts returns the indexes of the endpoints' ports on other plugins' bridges, sorted. If a record has no
// index, because an earlier version of weir wrote it, LinkLocalPorts looks the index up. It leaves out ports whose
// links are gone.
func LinkLocalPorts(endpoints map[string]endpoint.Endpoint) ([]uint32, error) {
	var ports []uint32
	for _, e := range endpoints {
		if !e.Chained || e.BridgeIf == "" {
			continue
		}
		index := e.HostIndex
		if index == 0 {
			var err error
			if index, err = indexOf(e.HostIf); err != nil {
				return nil, err
			}
		}
		if index != 0 {
			ports = append(ports, uint32(index))
		}
	}
	slices.Sort(ports)
	return slices.Compact(ports), nil
}

// LinkLocalPortsAt returns the indexes of the links that lead to these addresses, except weir's own links. It is for
// pods whose records can't be read: their links may be ports of a bridge.
func LinkLocalPortsAt(addrs []endpoint.Address) (ports []uint32, err error) {
	if len(addrs) == 0 {
		return nil, nil
	}
	all, err := PodAddresses()
	if err != nil {
		return nil, err
	}
	for _, a := range addrs {
		for _, p := range all[a.Addr] {
			if !strings.HasPrefix(p.Name, PortPrefix) {
				ports = append(ports, uint32(p.Index))
			}
		}
	}
	return ports, nil
}

// AddLinkLocalPorts makes the kernel check the link-local packets of these ports of bridges. It adds the indexes of the
// ports' links to the table "bridge weir-link-local". If there is no such table, it makes the table.
//
// Equivalent to: nft add element bridge weir-link-local ports { PORT }
func AddLinkLocalPorts(ports []uint32) error {
	conn, err := nftables.New()
	if err != nil {
		return fmt.Errorf("open nftables: %w", err)
	}
	if err := conn.SetAddElements(portsSet(), portElements(ports)); err != nil {
		return fmt.Errorf("add to the set of ports with link-local addresses: %w", err)
	}
	err = conn.Flush()
	if errors.Is(err, unix.ENOENT) {
		_, _, err = KeepLinkLocal(ports, true)
		return err
	}
	if err != nil {
		return fmt.Errorf("add to nftables table bridge %s: %w", conf.LinkLocalTable, err)
	}
	return nil
}

// KeepLinkLocal makes or repairs the table "bridge weir-link-local". If keep is false, the table then has exactly these
// ports; if keep is true, the table also keeps its other ports. KeepLinkLocal deletes a table that would have no ports.
// It returns the ports that the table lacked. damaged is true if there was no table, or if its rules were wrong.
func KeepLinkLocal(ports []uint32, keep bool) (lacked []uint32, damaged bool, err error) {
	conn, err := nftables.New()
	if err != nil {
		return nil, false, fmt.Errorf("open nftables: %w", err)
	}
	has, exists, intact, err := readLinkLocal(conn)
	if err != nil {
		return nil, false, err
	}
	all := slices.Clone(ports)
	var leftovers []uint32
	for _, p := range has {
		switch {
		case slices.Contains(ports, p):
		case keep:
			all = append(all, p)
		default:
			leftovers = append(leftovers, p)
		}
	}
	if len(all) == 0 {
		if exists {
			err = removeTable(conn, linkLocalTable())
		}
		return nil, false, err
	}
	for _, p := range ports {
		if !slices.Contains(has, p) {
			lacked = append(lacked, p)
		}
	}
	if intact && len(lacked)+len(leftovers) == 0 {
		return nil, false, nil
	}
	err = logIfPossible(func(conn *nftables.Conn, logs bool) error {
		return commitLinkLocal(conn, lacked, leftovers, !intact, logs)
	})
	if err != nil && !intact { // a set or a chain may have a wrong type, which the kernel can't change
		err = logIfPossible(func(conn *nftables.Conn, logs bool) error {
			conn.AddTable(linkLocalTable()) // deleting a table that is absent would fail
			conn.DelTable(linkLocalTable())
			return commitLinkLocal(conn, all, nil, true, logs)
		})
	}
	return lacked, !intact, err
}

// readLinkLocal reads the table "bridge weir-link-local", and returns the ports in its set "ports". exists is false if
// there is no such table. intact is true if the table has all of its sets, chains and rules. Rules without a log count
// as intact, because some kernels can't log frames of a bridge.
//
// Equivalent to: nft list table bridge weir-link-local
func readLinkLocal(conn *nftables.Conn) (has []uint32, exists, intact bool, err error) {
	table, ports, asked := linkLocalTable(), portsSet(), askedSet()
	if exists, err = nft.TableExists(conn, table); !exists || err != nil {
		return nil, false, false, err
	}
	chains, err := nft.ListChains(conn, table)
	if err != nil {
		return nil, true, false, err
	}
	intact = true
	for _, c := range linkLocalChains(ports, asked) {
		intact = intact && (c.Same(chains[c.Name]) || c.WithoutLog().Same(chains[c.Name]))
	}
	sets, err := conn.GetSets(table)
	if err != nil {
		return nil, true, false, fmt.Errorf("list the sets of nftables table bridge %s: %w", table.Name, err)
	}
	if !slices.ContainsFunc(sets, func(s *nftables.Set) bool { return s.Name == ports.Name }) {
		return nil, true, false, nil
	}
	list, err := conn.GetSetElements(ports)
	if err != nil {
		return nil, true, false, fmt.Errorf("list the set %s of nftables table bridge %s: %w", ports.Name, table.Name, err)
	}
	for _, e := range list {
		if len(e.Key) == 4 {
			has = append(has, binary.NativeEndian.Uint32(e.Key))
		}
	}
	return has, true, intact, nil
}

func commitLinkLocal(conn *nftables.Conn, add, remove []uint32, rules, logs bool) error {
	table, ports, asked := linkLocalTable(), portsSet(), askedSet()
	conn.AddTable(table)
	err := errors.Join(conn.AddSet(ports, portElements(add)), conn.AddSet(asked, nil))
	if err == nil && len(remove) > 0 {
		err = conn.SetDeleteElements(ports, portElements(remove))
	}
	if err != nil {
		return fmt.Errorf("write the sets of nftables table bridge %s: %w", table.Name, err)
	}
	if rules {
		chains := linkLocalChains(ports, asked)
		if !logs {
			chains = withoutLog(chains)
		}
		nft.AddChains(conn, chains)
	}
	if err := conn.Flush(); err != nil {
		return fmt.Errorf("write nftables table bridge %s: %w", table.Name, err)
	}
	return nil
}

func portElements(ports []uint32) []nftables.SetElement {
	var all []nftables.SetElement
	for _, p := range ports {
		all = append(all, nftables.SetElement{Key: binary.NativeEndian.AppendUint32(nil, p)})
	}
	return all
}
