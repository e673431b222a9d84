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

// The kernel reassembles fragmented datagrams before policy is checked, and all pods share one memory for it: 4 MiB
// for each family, where an incomplete datagram stays for 30 seconds (IPv6: 60). A few thousand small fragments fill
// that memory; then no other pod's fragments arrive. So the guard bounds the fragments that each port sends, before
// IP sees them, and weir makes the memory large enough for the fragments that the guard accepts.
//
// Rates:
//
//   - Each port may send portFragments a second, up to portFragments of them at once, and portBytes a second. This is
//     100 datagrams of 8 KB a second with an MTU of 900 bytes or more.
//   - Beyond its own share, a port may use what all ports share: sharedFragments and sharedBytes a second. One pod can
//     send far more than its own share while the others don't, and a pod that floods takes nothing from the others' own
//     shares.
//
// Memory:
//
//   - The kernel drops an incomplete datagram after reassemblyTime, T = 2 s. One second would do for the network, but a
//     pod that waits for the processor may stop between two fragments.
//   - A token bucket accepts at most rate x T + burst in that time, and a bucket of bytes has a burst of one second.
//     That is 3,000 fragments and 3 MiB for a port, and 21,000 fragments and 48 MiB more for all ports.
//   - The kernel charges about 1 KiB for a small fragment, and at most 1024 + 2n for one of n bytes: 2.5 KiB for 700 to
//     1,514 bytes, 13.5 KiB for 9,000. So a port takes less than 8 MiB, and the shared part less than 96 MiB.
//   - reassemblyMemory, 512 MiB, is enough for about 50 pods that send as much as they can at the same time. It is an
//     upper bound: without an attack the memory isn't used. A node with less than 4 GiB gets an eighth of its memory.
//
// The guard doesn't bound fragments that come from outside the node or out of the tunnel. Pods of other nodes send no
// incomplete datagrams, since their own node reassembles them. Other hosts need 100,000 fragments of 1,500 bytes a
// second, or 250,000 small ones, to fill the memory.
const (
	portFragments   = 1000     // a second, and at once
	portBytes       = 1 << 20  // a second
	sharedFragments = 10_000   // a second
	sharedAtOnce    = 1000     // fragments
	sharedBytes     = 16 << 20 // a second

	reassemblyTime   = 2         // seconds; the kernel accepts only whole seconds
	reassemblyMemory = 512 << 20 // bytes, for each family
	memoryPart       = 8         // reassembly gets at most the node's memory divided by this
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

// sharedRules limits what all ports together send beyond their own shares.
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

// isFragment6 also finds a fragment header behind other extension headers (RFC 8200, section 4.5).
func isFragment6() []expr.Any {
	return []expr.Any{
		&expr.Exthdr{
			DestRegister: unix.NFT_REG_1, Type: unix.IPPROTO_FRAGMENT, Len: 1, Flags: unix.NFT_EXTHDR_F_PRESENT,
			Op: expr.ExthdrOpIpv6,
		},
		&expr.Cmp{Op: expr.CmpOpEq, Register: unix.NFT_REG_1, Data: []byte{1}},
	}
}

// reassembly returns the sysctls for fragments: IPv4's, IPv6's, and connection tracking's own for IPv6. It doesn't
// matter if the kernel lacks some of them.
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
		all = append(all, Sysctl{Key: "net/" + family.time, Value: seconds, Bound: AtMost, IfThere: true, Why: why},
			Sysctl{Key: "net/" + family.memory, Value: memory, Bound: AtLeast, IfThere: true, Why: why})
	}
	return all
}

// SetReassembly sets the node's limits for the reassembly of fragments. Better limits of the administrator stay.
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
