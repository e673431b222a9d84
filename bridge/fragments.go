package bridge

import (
	"fmt"
	"strconv"
	"time"

	"github.com/google/nftables"
	"github.com/google/nftables/binaryutil"
	"github.com/google/nftables/expr"
	"golang.org/x/sys/unix"

	"github.com/weir-net/weir/conf"
	"github.com/weir-net/weir/internal/nft"
)

// The kernel reassembles fragmented datagrams before policy is checked, in one memory for all pods. By default, the
// memory has 4 MiB for each family, and an incomplete datagram stays there for 30 seconds (IPv6: 60). So a pod that
// sends a few thousand incomplete datagrams would fill the memory, and the kernel would drop all other pods' fragments.
// Two measures prevent this:
//
//   - The guard gives each port a share of its own: a number of fragments and bytes a second. Beyond their shares, all
//     ports together may send a further limited number (the shared part).
//   - weir enlarges the memory, and shortens the stay of incomplete datagrams (see reassembly).
//
// The guard doesn't limit fragments that come from other hosts. Other nodes reassemble the fragments of their own
// pods. Another host would need 100,000 large fragments a second to fill the memory.
const (
	// A port may send this many fragments a second, and the same number at once. That is enough for 100 datagrams of
	// 8 KB a second: with an MTU of 900 bytes or more, each has at most ten fragments.
	portFragments = 1000
	portBytes     = 1 << 20 // bytes a second

	// The shared part: all ports together may send this much a second beyond their own shares.
	sharedFragments = 10_000
	sharedBytes     = 16 << 20
	sharedAtOnce    = 1000 // fragments at once

	// reassemblyTime is in whole seconds. After this time, the kernel drops an incomplete datagram. One second would be
	// too short for a pod that waits for the processor between two fragments.
	reassemblyTime = 2
	// reassemblyMemory is in bytes, for each family. In reassemblyTime, the fragments of a port's own share take less
	// than 8 MiB, and those of the shared part less than 96 MiB. So the memory is enough for 50 pods that flood at the
	// same time (50 * 8 + 96 MiB). The kernel allocates it only for fragments that exist.
	reassemblyMemory = 512 << 20
	// memoryPart limits the memory for reassembly to an eighth of the node's memory. This matters only on nodes with
	// less than 4 GiB: on other nodes, reassemblyMemory is the smaller limit.
	memoryPart = 8
)

const (
	fragmentsSet     = "fragments"
	fragmentBytesSet = "fragment-bytes"
)

// fragmentSet returns a set of the ports that send fragments. The kernel removes a port after a minute without
// fragments.
func fragmentSet(name string) *nftables.Set {
	return &nftables.Set{
		Table: bridgeTable(), Name: name, KeyType: nftables.TypeIFName, KeyByteOrder: binaryutil.NativeEndian,
		Dynamic: true, HasTimeout: true, Timeout: time.Minute, Size: 65535,
	}
}

func fragmentRules(sets map[string]*nftables.Set) []nft.Rule {
	share := func(set *nftables.Set, l *expr.Limit) []expr.Any {
		l.Over, l.Unit = true, expr.LimitTimeSecond
		return []expr.Any{
			nft.LoadIIFName(unix.NFT_REG_1),
			&expr.Dynset{
				SrcRegKey: unix.NFT_REG_1, SetName: set.Name, SetID: set.ID, Operation: unix.NFT_DYNSET_OP_UPDATE,
				Exprs: []expr.Any{l},
			},
			&expr.Verdict{Kind: expr.VerdictGoto, Chain: sharedChain},
		}
	}
	return []nft.Rule{
		{
			Comment: fmt.Sprintf("weir: more than the port's own %d fragments a second", portFragments),
			Exprs:   share(sets[fragmentsSet], &expr.Limit{Type: expr.LimitTypePkts, Rate: portFragments, Burst: portFragments}),
		},
		{
			Comment: fmt.Sprintf("weir: more than the port's own %d bytes a second in fragments", portBytes),
			Exprs:   share(sets[fragmentBytesSet], &expr.Limit{Type: expr.LimitTypePktBytes, Rate: portBytes}),
		},
	}
}

// sharedRules limits the fragments that all ports together send beyond their own shares.
func sharedRules() []nft.Rule {
	drop := func(l *expr.Limit) []expr.Any {
		l.Over, l.Unit = true, expr.LimitTimeSecond
		return append([]expr.Any{l}, logDrop(conf.FragmentsLogPrefix)...)
	}
	return []nft.Rule{
		{
			Comment: fmt.Sprintf("weir: more than the %d fragments a second that all ports share", sharedFragments),
			Exprs:   drop(&expr.Limit{Type: expr.LimitTypePkts, Rate: sharedFragments, Burst: sharedAtOnce}),
		},
		{
			Comment: fmt.Sprintf("weir: more than the %d bytes a second that all ports share in fragments", sharedBytes),
			Exprs:   drop(&expr.Limit{Type: expr.LimitTypePktBytes, Rate: sharedBytes}),
		},
	}
}

func isFragment4() []expr.Any { return compareFragment(expr.CmpOpNeq) }

func wholeIPv4() []expr.Any { return compareFragment(expr.CmpOpEq) }

func compareFragment(op expr.CmpOp) []expr.Any {
	return []expr.Any{
		nft.LoadPayload(expr.PayloadBaseNetworkHeader, 6, 2, unix.NFT_REG_1),
		&expr.Bitwise{
			SourceRegister: unix.NFT_REG_1, DestRegister: unix.NFT_REG_1, Len: 2, Mask: []byte{0x3f, 0xff}, Xor: []byte{0, 0},
		},
		&expr.Cmp{Op: op, Register: unix.NFT_REG_1, Data: []byte{0, 0}},
	}
}

// isFragment6 matches IPv6 fragments, even if other extension headers precede the fragment header (RFC 8200, section
// 4.5).
func isFragment6() []expr.Any {
	return []expr.Any{
		&expr.Exthdr{
			DestRegister: unix.NFT_REG_1, Type: unix.IPPROTO_FRAGMENT, Len: 1, Flags: unix.NFT_EXTHDR_F_PRESENT,
			Op: expr.ExthdrOpIpv6,
		},
		&expr.Cmp{Op: expr.CmpOpEq, Register: unix.NFT_REG_1, Data: []byte{1}},
	}
}

// reassembly returns the sysctls for fragments of IPv4 and IPv6, and the sysctls of connection tracking for fragments
// of IPv6. The kernel may lack some of them.
//
// Equivalent to:
//
//	sysctl net.ipv4.ipfrag_time=2 net.ipv4.ipfrag_high_thresh=BYTES
//	sysctl net.ipv6.ip6frag_time=2 net.ipv6.ip6frag_high_thresh=BYTES
//	sysctl net.netfilter.nf_conntrack_frag6_timeout=2 net.netfilter.nf_conntrack_frag6_high_thresh=BYTES
func reassembly(nodeMemory uint64) []Property {
	memory := strconv.FormatInt(min(reassemblyMemory, int64(nodeMemory/memoryPart)), 10)
	seconds := strconv.Itoa(reassemblyTime)
	why := "incomplete datagrams leave room for others' fragments"
	var all []Property
	for _, family := range []struct{ time, memory string }{
		{"ipv4/ipfrag_time", "ipv4/ipfrag_high_thresh"},
		{"ipv6/ip6frag_time", "ipv6/ip6frag_high_thresh"},
		{"netfilter/nf_conntrack_frag6_timeout", "netfilter/nf_conntrack_frag6_high_thresh"},
	} {
		all = append(all, sysctl{Key: "net/" + family.time, Value: seconds, Bound: atMost, IfThere: true, Why: why},
			sysctl{Key: "net/" + family.memory, Value: memory, Bound: atLeast, IfThere: true, Why: why})
	}
	return all
}

// SetReassembly sets the node's limits for reassembly. A larger memory or a shorter time stays, because the
// administrator may have set it.
func SetReassembly() error {
	memory, err := NodeMemory()
	if err != nil {
		return err
	}
	return setAll(reassembly(memory))
}

// NodeMemory returns the size of the node's memory in bytes.
//
// Equivalent to: free --bytes
func NodeMemory() (uint64, error) {
	var node unix.Sysinfo_t
	if err := unix.Sysinfo(&node); err != nil {
		return 0, fmt.Errorf("read the size of the node's memory: %w", err)
	}
	return node.Totalram * uint64(node.Unit), nil
}
