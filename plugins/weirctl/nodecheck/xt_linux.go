package nodecheck

import (
	"encoding/binary"
	"errors"
	"unsafe"

	"github.com/vishvananda/netlink/nl"
	"golang.org/x/sys/unix"
)

// tryXT asks the kernel for each match and target that weir's rules use, as iptables does. To answer, the kernel
// loads the modules of the matches and targets.
func (f *Facts) tryXT() {
	for _, flavour := range []struct {
		name string
		ask  func(u xtUse, family int) error
		// none is the kernel's answer if the kernel lacks the whole flavour.
		none error
	}{{"nft", askNFT, unix.EINVAL}, {"legacy", askLegacy, unix.ENOPROTOOPT}} {
		var all []Trial
		missing := 0
		for _, u := range xtUses {
			var err error
			for _, family := range []int{unix.AF_INET, unix.AF_INET6} {
				if u.family == 6 && family == unix.AF_INET || u.family == 4 && family == unix.AF_INET6 {
					continue
				}
				err = errors.Join(err, flavour.ask(u, family))
			}
			t := Trial{Feature: xtFeature(flavour.name, u)}
			if err != nil {
				t.Error = err.Error()
			}
			if errors.Is(err, flavour.none) {
				missing++
			}
			all = append(all, t)
		}
		if flavour.name == "nft" || missing < len(all) { // a kernel without iptables-legacy is no fault
			f.Trials = append(f.Trials, all...)
		}
	}
}

// These are NFNL_SUBSYS_NFT_COMPAT of linux/netfilter/nfnetlink.h, and the attributes NFTA_COMPAT_NAME,
// NFTA_COMPAT_REV and NFTA_COMPAT_TYPE of linux/netfilter/nf_tables_compat.h.
const (
	subsystemCompat = 11
	compatName      = 1
	compatRevision  = 2
	compatType      = 3
)

// askNFT asks the kernel for revision 0 of a match or target. If the kernel answers EPROTONOSUPPORT, it has another
// revision, and askNFT returns nil.
//
// Equivalent to: iptables-nft -m NAME (-j NAME for a target)
func askNFT(u xtUse, family int) error {
	request := nl.NewNetlinkRequest(subsystemCompat<<8, unix.NLM_F_ACK)
	request.AddData(&nl.Nfgenmsg{NfgenFamily: uint8(family)})
	kind := uint32(0)
	if u.target {
		kind = 1
	}
	request.AddData(nl.NewRtAttr(compatName, nl.ZeroTerminated(u.name)))
	request.AddData(nl.NewRtAttr(compatRevision, binary.BigEndian.AppendUint32(nil, 0)))
	request.AddData(nl.NewRtAttr(compatType, binary.BigEndian.AppendUint32(nil, kind)))
	_, err := request.Execute(unix.NETLINK_NETFILTER, 0)
	if errors.Is(err, unix.EPROTONOSUPPORT) {
		return nil
	}
	return err
}

// These options of getsockopt ask for the revision of a match: IPT_SO_GET_REVISION_MATCH
// (linux/netfilter_ipv4/ip_tables.h) and IP6T_SO_GET_REVISION_MATCH (linux/netfilter_ipv6/ip6_tables.h). Each
// option plus 1 asks for the revision of a target.
const (
	getRevision4 = 66
	getRevision6 = 68
)

// Equivalent to: iptables-legacy -m NAME (-j NAME for a target)
func askLegacy(u xtUse, family int) error {
	level, option := unix.SOL_IP, getRevision4
	if family == unix.AF_INET6 {
		level, option = unix.SOL_IPV6, getRevision6
	}
	if u.target {
		option++
	}
	socket, err := unix.Socket(family, unix.SOCK_RAW|unix.SOCK_CLOEXEC, unix.IPPROTO_RAW)
	if err != nil {
		return err
	}
	defer func() { _ = unix.Close(socket) }()
	var question [30]byte // struct xt_get_revision has the name and the revision
	copy(question[:len(question)-2], u.name)
	length := uint32(len(question))
	_, _, errno := unix.Syscall6(unix.SYS_GETSOCKOPT, uintptr(socket), uintptr(level), uintptr(option),
		uintptr(unsafe.Pointer(&question[0])), uintptr(unsafe.Pointer(&length)), 0)
	if errno != 0 && errno != unix.EPROTONOSUPPORT {
		return errno
	}
	return nil
}
