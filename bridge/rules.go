package bridge

import (
	"encoding/binary"
	"slices"

	"github.com/google/nftables"
	"github.com/google/nftables/expr"
	"golang.org/x/sys/unix"

	"github.com/weir-net/weir/conf"
	"github.com/weir-net/weir/internal/nft"
)

// The guard is three nftables tables. "bridge weir" sees each frame that a port hands to the bridge, and drops frames
// with a MAC or address that the port's pod doesn't have. The two tables weir-ports drop packets that reach the node's
// IP stack without passing "bridge weir". portRules and guardChains give the reasons for the rules.
//
//	table bridge weir {
//	  set senders4 { typeof iifname . ether saddr . ip saddr }
//	  set senders6 { typeof iifname . ether saddr . ip6 saddr }
//	  set links4 { typeof iif . ether saddr . ip saddr; size 8192 }                           (see quick.go)
//	  set fragments { typeof iifname; size 65535; flags dynamic,timeout; timeout 1m }         (see fragments.go)
//	  set fragment-bytes { typeof iifname; size 65535; flags dynamic,timeout; timeout 1m }
//	  chain ports {
//	    type filter hook prerouting priority -300; policy accept;
//	    meta protocol ip meta pkttype != multicast ip daddr != 127.0.0.0/8 ip frag-off & 0x3fff == 0 \
//	      iif . ether saddr . ip saddr @links4 accept
//	    iifname != "weirp*" accept
//	    @ll,0,40 0x0180c20000 log prefix "weir drop guard-reserved" group 88 counter drop
//	    meta protocol ip ip daddr 127.0.0.0/8 log prefix "weir drop guard-loopback" group 88 counter drop
//	    meta protocol ip ip frag-off & 0x3fff != 0 jump fragments
//	    meta protocol ip6 exthdr frag exists jump fragments
//	    meta protocol ip iifname . ether saddr . ip saddr @senders4 accept
//	    meta protocol arp iifname . ether saddr . arp saddr ip @senders4 \
//	      iifname . arp saddr ether . arp saddr ip @senders4 accept
//	    meta protocol ip6 meta l4proto ipv6-icmp icmpv6 type 133-137 goto discovery
//	    meta protocol ip6 iifname . ether saddr . ip6 saddr @senders6 accept
//	    jump forged
//	    counter drop comment "weir: forged sender"
//	  }
//	  chain forged {
//	    meta protocol ip6 meta l4proto ipv6-icmp return
//	    log prefix "weir drop guard" group 88
//	  }
//	  chain discovery {
//	    icmpv6 type { 134, 136-137 } log prefix "weir drop guard-discovery" group 88          (two rules)
//	    counter drop
//	  }
//	  chain fragments {
//	    update @fragments { iifname limit rate over 1000/second burst 1000 packets } goto shared
//	    update @fragment-bytes { iifname limit rate over 1048576 bytes/second } goto shared
//	  }
//	  chain shared {
//	    limit rate over 10000/second burst 1000 packets log prefix "weir drop guard-fragments" group 88 counter drop
//	    limit rate over 16777216 bytes/second log prefix "weir drop guard-fragments" group 88 counter drop
//	  }
//	}
//	table inet weir-ports {
//	  chain prerouting {
//	    type filter hook prerouting priority -450; policy accept;
//	    meta iifgroup 2003134834 accept
//	    iifname "weirp*" log prefix "weir drop guard-past" group 88 counter drop
//	    iifname "weir-vxlan" meta protocol ip6 meta l4proto ipv6-icmp icmpv6 type 133-137 counter drop
//	  }
//	}
//	table arp weir-ports {
//	  chain input {
//	    type filter hook input priority 0; policy accept;
//	    iifname "weirp*" log prefix "weir drop guard-past" group 88 counter drop
//	    iifname "weir-vxlan" counter drop
//	  }
//	}
func guardTables() []*nftables.Table {
	return []*nftables.Table{
		bridgeTable(),
		{Name: conf.PortsTable, Family: nftables.TableFamilyINet},
		{Name: conf.PortsTable, Family: nftables.TableFamilyARP},
	}
}

const (
	regName = unix.NFT_REG_1
	regMAC  = unix.NFT_REG_2 // a register of 16 bytes, which the kernel also uses as four registers of 4 bytes
	regAddr = unix.NFT_REG32_06
)

const (
	fragmentsChain = "fragments"
	sharedChain    = "shared"
	forgedChain    = "forged"
	discoveryChain = "discovery"
)

func guardSetsByName() map[string]*nftables.Set {
	all := senderSets()
	for _, s := range []*nftables.Set{fragmentSet(fragmentsSet), fragmentSet(fragmentBytesSet)} {
		all[s.Name] = s
	}
	return all
}

// guardChains returns the chains of the guard's tables. Reasons for the chains of the two tables weir-ports:
//
//   - linkLocalMACs makes a port forward frames to link-local MACs. If another program changes this setting, the bridge
//     hands such frames directly to the IP stack, and these chains drop them.
//   - An ordinary packet of a pod reaches the IP stack from weir0. So a packet from a port has bypassed the guard.
//   - Priority -450 comes before connection tracking reassembles fragments (-400).
//   - The first rule of "prerouting" compares weir0's link group, because comparing a name takes three times as long.
//   - Nodes need no neighbour discovery and no ARP out of the tunnel, and a router advertisement would give the node a
//     default route. The gate (package overlay) doesn't drop such packets if they come from addresses of pods.
func guardChains(sets map[string]*nftables.Set) []nft.Chain {
	tables := guardTables()
	bridge, inet, arp := tables[0], tables[1], tables[2]
	arpInput := nftables.ChainHookRef(unix.NF_INET_PRE_ROUTING) // the ARP family's hook "input" has the same number
	return []nft.Chain{
		{Chain: &nftables.Chain{Name: sharedChain, Table: bridge}, Rules: sharedRules()},
		{Chain: &nftables.Chain{Name: fragmentsChain, Table: bridge}, Rules: fragmentRules(sets)},
		{Chain: nft.BaseChain(bridge, "ports", nftables.ChainHookPrerouting, -300), Rules: portRules(sets)},
		{Chain: nft.BaseChain(inet, "prerouting", nftables.ChainHookPrerouting, -450), Rules: []nft.Rule{
			rule("weir: from weir0: nearly all packets of pods", fromBridge(), nft.Verdict(expr.VerdictAccept, "")),
			rule("weir: to the node's IP stack past the bridge's guard", fromPort(), logDrop(conf.PastLogPrefix)),
			rule("weir: neighbour discovery out of the tunnel, which nodes don't need",
				fromTunnel(), protocol(unix.ETH_P_IPV6), neighbourDiscovery(), nft.Drop()),
		}},
		{Chain: nft.BaseChain(arp, "input", arpInput, 0), Rules: []nft.Rule{
			rule("weir: ARP to the node past the bridge's guard", fromPort(), logDrop(conf.PastLogPrefix)),
			rule("weir: ARP out of the tunnel, which nodes don't need", fromTunnel(), nft.Drop()),
		}},
		{Chain: &nftables.Chain{Name: forgedChain, Table: bridge}, Rules: forgedRules()},
		{Chain: &nftables.Chain{Name: discoveryChain, Table: bridge}, Rules: discoveryRules()},
	}
}

func withoutLog(chains []nft.Chain) []nft.Chain {
	quiet := slices.Clone(chains)
	for i, c := range chains {
		quiet[i] = c.WithoutLog()
	}
	return quiet
}

func logDrop(prefix string) []expr.Any { return append(logTo(prefix), nft.Drop()...) }

func logTo(prefix string) []expr.Any { return nft.Log(prefix, conf.LogGroup) }

// discoveryRules drop neighbour discovery. Only advertisements and redirects are logged, because only these can
// deceive other hosts. Each pod's kernel sends solicitations.
func discoveryRules() []nft.Rule {
	return []nft.Rule{
		rule("weir: a router advertisement of a pod", discoveryType(134, 134), logTo(conf.DiscoveryLogPrefix)),
		rule("weir: a neighbour advertisement or a redirect of a pod", discoveryType(136, 137),
			logTo(conf.DiscoveryLogPrefix)),
		rule("weir: neighbour discovery, which pods don't need", nft.Drop()),
	}
}

// forgedRules log frames with a forged sender. They don't log ICMPv6: the kernel of each new pod sends ICMPv6 packets
// under other addresses than the pod's own.
func forgedRules() []nft.Rule {
	return []nft.Rule{
		rule("weir: IPv6's own messages, which every new pod sends", protocol(unix.ETH_P_IPV6), icmpv6(),
			nft.Verdict(expr.VerdictReturn, "")),
		rule("weir: forged sender, or none of IPv4, IPv6 and ARP", logTo(conf.GuardLogPrefix)),
	}
}

// portRules returns the rules of the chain "ports". Reasons for some of them:
//
//   - The first rule accepts nearly all frames of pods, and so saves the time of the other rules. It accepts no frame
//     that a later rule drops or limits. For example, it accepts no multicast, because the MACs that are reserved for
//     bridges are multicast MACs.
//   - The rule for loopback addresses is needed where portmap sets route_localnet on weir0: the kernel then routes
//     packets to these addresses.
//   - Pods need no neighbour discovery, because their neighbour entries are permanent. The guard can't check messages
//     of neighbour discovery: the address that such a message announces is inside the message.
//   - If a pod has no IPv6 address, senders6 has no element for its port, so the pod can't send IPv6.
func portRules(sets map[string]*nftables.Set) []nft.Rule {
	set4, set6 := sets[guardSets[conf.IPv4]], sets[guardSets[conf.IPv6]]
	accept, limit := nft.Verdict(expr.VerdictAccept, ""), nft.Verdict(expr.VerdictJump, fragmentsChain)
	etherSource := nft.LoadPayload(expr.PayloadBaseLLHeader, 6, 6, regMAC)
	ip4Source := nft.LoadPayload(expr.PayloadBaseNetworkHeader, 12, 4, regAddr)
	ip6Source := nft.LoadPayload(expr.PayloadBaseNetworkHeader, 8, 16, regAddr)
	arpMAC := nft.LoadPayload(expr.PayloadBaseNetworkHeader, 8, 6, regMAC)
	arpSource := nft.LoadPayload(expr.PayloadBaseNetworkHeader, 14, 4, regAddr)
	return []nft.Rule{
		rule("weir: whole IPv4 packets under the pod's own name: most frames", protocol(unix.ETH_P_IP), notMulticast(),
			notToLoopback(), wholeIPv4(), isQuickSender(sets[quickSet]), accept),
		rule("weir: not a pod's port", notFromPort(), accept),
		rule("weir: to a MAC that is for bridges", toBridges(), logDrop(conf.ReservedLogPrefix)),
		rule("weir: to the node's loopback addresses", protocol(unix.ETH_P_IP), toLoopback(),
			logDrop(conf.LoopbackLogPrefix)),
		rule("weir: fragments are bounded", protocol(unix.ETH_P_IP), isFragment4(), limit),
		rule("weir: fragments are bounded, behind other extension headers too",
			protocol(unix.ETH_P_IPV6), isFragment6(), limit),
		rule("weir: IPv4 under the pod's own name",
			protocol(unix.ETH_P_IP), isSender(set4, etherSource, ip4Source), accept),
		rule("weir: ARP under the pod's own name",
			protocol(unix.ETH_P_ARP), isSender(set4, etherSource, arpSource), isSender(set4, arpMAC, arpSource), accept),
		rule("weir: neighbour discovery, which pods don't need",
			protocol(unix.ETH_P_IPV6), neighbourDiscovery(), nft.Verdict(expr.VerdictGoto, discoveryChain)),
		rule("weir: IPv6 under the pod's own name",
			protocol(unix.ETH_P_IPV6), isSender(set6, etherSource, ip6Source), accept),
		rule("weir: who sends under a foreign name?", nft.Verdict(expr.VerdictJump, forgedChain)),
		rule("weir: forged sender, or none of IPv4, IPv6 and ARP", nft.Drop()),
	}
}

func rule(comment string, parts ...[]expr.Any) nft.Rule {
	return nft.Rule{Comment: comment, Exprs: nft.Join(parts...)}
}

// notFromPort matches packets that don't come by a pod's port. The compared text has no final NUL, so it covers every
// name that begins with PortPrefix: nft's "weirp*".
func notFromPort() []expr.Any { return nft.IIFName(expr.CmpOpNeq, []byte(PortPrefix)) }
func fromPort() []expr.Any    { return nft.IIFName(expr.CmpOpEq, []byte(PortPrefix)) }

// fromBridge matches packets that come by weir0. It compares the link's group, because only weir0 is in
// bridgeGroup.
func fromBridge() []expr.Any {
	load := nft.LoadMeta(expr.MetaKeyIIFGROUP, unix.NFT_REG_1)
	return nft.Equal(load, binary.NativeEndian.AppendUint32(nil, bridgeGroup))
}

func fromTunnel() []expr.Any { return nft.IIFName(expr.CmpOpEq, nft.LinkName(conf.Tunnel)) }

func protocol(etherType uint16) []expr.Any {
	load := nft.LoadMeta(expr.MetaKeyPROTOCOL, unix.NFT_REG_1)
	return nft.Equal(load, binary.BigEndian.AppendUint16(nil, etherType))
}

// toBridges matches frames to the MACs 01:80:c2:00:00:00 to 01:80:c2:00:00:ff. IEEE reserves them for bridges and
// other standards.
func toBridges() []expr.Any {
	load := nft.LoadPayload(expr.PayloadBaseLLHeader, 0, 5, unix.NFT_REG_1)
	return nft.Equal(load, []byte{0x01, 0x80, 0xc2, 0, 0})
}

func notMulticast() []expr.Any {
	return nft.Compare(nft.LoadMeta(expr.MetaKeyPKTTYPE, unix.NFT_REG_1), expr.CmpOpNeq, []byte{unix.PACKET_MULTICAST})
}

func toLoopback() []expr.Any { return compareLoopback(expr.CmpOpEq) }

func notToLoopback() []expr.Any { return compareLoopback(expr.CmpOpNeq) }

func compareLoopback(op expr.CmpOp) []expr.Any {
	return nft.Compare(nft.LoadPayload(expr.PayloadBaseNetworkHeader, 16, 1, unix.NFT_REG_1), op, []byte{127})
}

func icmpv6() []expr.Any {
	return nft.Equal(nft.LoadMeta(expr.MetaKeyL4PROTO, unix.NFT_REG_1), []byte{unix.IPPROTO_ICMPV6})
}

func neighbourDiscovery() []expr.Any { return append(icmpv6(), discoveryType(133, 137)...) }

func discoveryType(first, last byte) []expr.Any {
	return []expr.Any{
		nft.LoadPayload(expr.PayloadBaseTransportHeader, 0, 1, unix.NFT_REG_1),
		&expr.Range{Op: expr.CmpOpEq, Register: unix.NFT_REG_1, FromData: []byte{first}, ToData: []byte{last}},
	}
}

// isQuickSender matches frames whose link, MAC and address are in quickSet, the set that the guard's first rule looks
// up. The registers have 4 bytes each.
func isQuickSender(set *nftables.Set) []expr.Any {
	const index, mac, addr = unix.NFT_REG_1, unix.NFT_REG32_01, unix.NFT_REG32_03
	return []expr.Any{
		nft.LoadMeta(expr.MetaKeyIIF, index),
		nft.LoadPayload(expr.PayloadBaseLLHeader, 6, 6, mac),
		nft.LoadPayload(expr.PayloadBaseNetworkHeader, 12, 4, addr),
		&expr.Lookup{SourceRegister: index, SetName: set.Name, SetID: set.ID},
	}
}

func isSender(set *nftables.Set, mac, addr expr.Any) []expr.Any {
	return []expr.Any{
		nft.LoadIIFName(regName), mac, addr,
		&expr.Lookup{SourceRegister: regName, SetName: set.Name, SetID: set.ID},
	}
}
