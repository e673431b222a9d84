package bridge

import (
	"fmt"
	"strconv"
	"time"

	"github.com/google/nftables"
	"github.com/google/nftables/binaryutil"
	"github.com/google/nftables/expr"
	"golang.org/x/sys/unix"
)

// The kernel puts the fragments of a datagram together before any policy sees it, and one memory serves the whole node:
// 4 MiB for each family, where an incomplete datagram stays for 30 seconds (IPv6: 60). Some 6,000 small fragments fill
// it, and then nobody's fragments arrive. So the guard bounds what each port sends, before IP sees it, and the memory
// is made large enough for what the guard lets through.
//
// A port's own share is portFragments a second, and as many at once, and portBytes a second. That is 100 datagrams of 8
// KB a second with an MTU of 900 bytes or more. Beyond it all ports share sharedFragments and sharedBytes a second: so
// a single pod may send far more as long as no other does, and one that sends all it can takes nothing from the others'
// own shares.
//
// The memory that follows: an incomplete datagram is dropped after reassemblyTime, T = 2 s: one second would do for the
// network, but a pod that waits for the processor may stop between two fragments. A bucket lets through at most rate x
// T + burst in that time, and one of bytes holds a second's: of a port 3,000 fragments and 3 MiB, of all 21,000 and 48
// MiB more. The kernel charges a fragment of n bytes with about 1 KiB if it is small, and never with more than 1024 +
// 2n: 2.5 KiB for those of 700 to 1,514 bytes, 13.5 KiB for 9,000. So a port holds less than 8 MiB whatever it sends,
// and what is shared less than 96 MiB. reassemblyMemory, 512 MiB, is enough for some 50 pods that do their worst at the
// same time. It is a bound: without an attack it isn't used. A node with less than 4 GiB gets an eighth of its memory.
//
// Fragments that come from outside the node, or out of the tunnel, are not bounded by the guard. Pods of other nodes
// send none that are incomplete: their own node reassembles them. To fill the memory, others need to send 100,000
// fragments of 1,500 bytes a second, or 250,000 small ones.
const (
	portFragments   = 1000     // a second, and at once
	portBytes       = 1 << 20  // a second
	sharedFragments = 10_000   // a second
	sharedAtOnce    = 1000     // fragments
	sharedBytes     = 16 << 20 // a second

	reassemblyTime   = 2         // seconds, of which the kernel takes whole ones only
	reassemblyMemory = 512 << 20 // bytes, for each family
	memoryPart       = 8         // of the node's memory, the most for reassembly
)

// Names of the sets that hold each port's buckets.
const (
	fragmentsSet     = "fragments"
	fragmentBytesSet = "fragment-bytes"
)

// fragmentSet is a set of ports, each with a bucket. A port that has sent no fragment for a minute leaves it.
func fragmentSet(name string) *nftables.Set {
	return &nftables.Set{
		Table: table(), Name: name, KeyType: nftables.TypeIFName, KeyByteOrder: binaryutil.NativeEndian,
		Dynamic: true, HasTimeout: true, Timeout: time.Minute, Size: 65535,
	}
}

func fragmentRules(sets map[string]*nftables.Set) []guardRule {
	share := func(set *nftables.Set, l *expr.Limit) []expr.Any {
		l.Over, l.Unit = true, expr.LimitTimeSecond
		return []expr.Any{
			&expr.Meta{Key: expr.MetaKeyIIFNAME, Register: unix.NFT_REG_1},
			&expr.Dynset{
				SrcRegKey: unix.NFT_REG_1, SetName: set.Name, SetID: set.ID, Operation: unix.NFT_DYNSET_OP_UPDATE, Exprs: []expr.Any{l},
			},
			&expr.Verdict{Kind: expr.VerdictGoto, Chain: sharedChain},
		}
	}
	return []guardRule{
		{
			fmt.Sprintf("weir: more than the port's own %d fragments a second", portFragments),
			share(sets[fragmentsSet], &expr.Limit{Type: expr.LimitTypePkts, Rate: portFragments, Burst: portFragments}),
		},
		{
			fmt.Sprintf("weir: more than the port's own %d bytes a second in fragments", portBytes),
			share(sets[fragmentBytesSet], &expr.Limit{Type: expr.LimitTypePktBytes, Rate: portBytes}),
		},
	}
}

func sharedRules() []guardRule {
	drop := func(l *expr.Limit) []expr.Any {
		l.Over, l.Unit = true, expr.LimitTimeSecond
		return []expr.Any{l, &expr.Counter{}, verdict(expr.VerdictDrop)}
	}
	return []guardRule{
		{
			fmt.Sprintf("weir: more than the %d fragments a second that all ports share", sharedFragments),
			drop(&expr.Limit{Type: expr.LimitTypePkts, Rate: sharedFragments, Burst: sharedAtOnce}),
		},
		{
			fmt.Sprintf("weir: more than the %d bytes a second that all ports share in fragments", sharedBytes),
			drop(&expr.Limit{Type: expr.LimitTypePktBytes, Rate: sharedBytes}),
		},
	}
}

// isFragment4 goes on if more fragments follow, or the offset isn't 0 (RFC 791, section 3.1).
func isFragment4() []expr.Any {
	return []expr.Any{
		payload(expr.PayloadBaseNetworkHeader, 6, 2, unix.NFT_REG_1),
		&expr.Bitwise{
			SourceRegister: unix.NFT_REG_1, DestRegister: unix.NFT_REG_1, Len: 2, Mask: []byte{0x3f, 0xff}, Xor: []byte{0, 0},
		},
		&expr.Cmp{Op: expr.CmpOpNeq, Register: unix.NFT_REG_1, Data: []byte{0, 0}},
	}
}

// isFragment6 goes on if there is a fragment header (RFC 8200, section 4.5), wherever the kernel finds one.
func isFragment6() []expr.Any {
	return []expr.Any{
		&expr.Exthdr{
			DestRegister: unix.NFT_REG_1, Type: unix.IPPROTO_FRAGMENT, Len: 1, Flags: unix.NFT_EXTHDR_F_PRESENT, Op: expr.ExthdrOpIpv6,
		},
		&expr.Cmp{Op: expr.CmpOpEq, Register: unix.NFT_REG_1, Data: []byte{1}},
	}
}

// reassembly is what the node's reassembly of fragments must be set to: the time at most, the memory at least.
// Connection tracking has settings of its own for IPv6. Those of a family that the kernel hasn't loaded don't exist.
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

// SetReassembly brings the node's reassembly of fragments within its bounds, and writes only what isn't.
func SetReassembly() error {
	memory, err := NodeMemory()
	if err != nil {
		return err
	}
	return setAll(reassembly(memory))
}

// NodeMemory is how much the node has, in bytes.
//
// Equivalent to: free --bytes
func NodeMemory() (uint64, error) {
	var node unix.Sysinfo_t
	if err := unix.Sysinfo(&node); err != nil {
		return 0, fmt.Errorf("ask how much memory the node has: %w", err)
	}
	return node.Totalram * uint64(node.Unit), nil
}
