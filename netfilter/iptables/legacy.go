package iptables

import (
	"crypto/sha256"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"slices"
	"strings"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"

	"github.com/weir-net/weir/conf"
	"github.com/weir-net/weir/internal/attrs"
)

// legacyExists reports whether the kernel has the table in iptables-legacy.
//
// Equivalent to: grep '^TABLE$' /proc/net/ip_tables_names (ip6_tables_names for IPv6)
func legacyExists(f conf.Family, name string) (bool, error) {
	path := [...]string{conf.IPv4: "ip_tables_names", conf.IPv6: "ip6_tables_names"}[f]
	names, err := os.ReadFile("/proc/thread-self/net/" + path)
	if errors.Is(err, fs.ErrNotExist) { // the kernel has no legacy tables
		return false, nil
	}
	if err != nil {
		return false, fmt.Errorf("list the tables of iptables-legacy: %w", err)
	}
	return slices.Contains(strings.Fields(string(names)), name), nil
}

// legacyPrint returns the table's fingerprint. It reads the table in the kernel's own form. With the rules of 4,000
// Services, this takes milliseconds, and iptables-save would take seconds.
func legacyPrint(family conf.Family, name string) (fingerprint, legacyInfo, error) {
	t, err := readLegacy(family, name)
	if err == nil {
		var p fingerprint
		if p, err = t.print(name == "nat"); err == nil {
			return p, t.legacyInfo, nil
		}
	}
	return "", legacyInfo{}, fmt.Errorf("read table %s of %s: %w", name, Legacy.program(family), err)
}

// legacyInfo is the kernel's struct ipt_getinfo, which is equal to struct ip6t_getinfo.
type legacyInfo struct {
	Name  [32]byte
	Valid uint32 // bits of the hooks at which the table has chains
	// Hooks has the offset of the first rule of each hook's chain. Ends has the offset of each chain's policy.
	Hooks, Ends [5]uint32
	Count, Size uint32
}

type legacyTable struct {
	legacyInfo
	legacyLayout
	entries []byte
}

type legacyLayout struct {
	domain, level int
	head, matches int
}

var legacyLayouts = [len(conf.Families)]legacyLayout{
	conf.IPv4: {unix.AF_INET, unix.SOL_IP, 84, 112},     // sizes of struct ipt_ip and struct ipt_entry
	conf.IPv6: {unix.AF_INET6, unix.SOL_IPV6, 136, 168}, // sizes of struct ip6t_ip6 and struct ip6t_entry
}

// getInfo and getEntries are options of getsockopt for x_tables, with equal numbers for both families
// (linux/netfilter_ipv4/ip_tables.h). sizeofGetEntries is the size of struct ipt_get_entries without the rules at its
// end.
const (
	getInfo          = 64
	getEntries       = 65
	sizeofGetEntries = 40
)

type legacySocket struct {
	legacyLayout
	fd int
}

func openLegacy(family conf.Family) (legacySocket, error) {
	l := legacyLayouts[family]
	fd, err := unix.Socket(l.domain, unix.SOCK_RAW|unix.SOCK_CLOEXEC, unix.IPPROTO_RAW)
	return legacySocket{l, fd}, err
}

func (s legacySocket) info(name string) (i legacyInfo, err error) {
	answer := make([]byte, binary.Size(i))
	copy(answer, name)
	if err := getsockopt(s.fd, s.level, getInfo, answer); err != nil {
		return i, err
	}
	_, err = binary.Decode(answer, binary.NativeEndian, &i)
	return i, err
}

// natEvery is the time after which the table nat is read again, even if its size and its number of rules haven't
// changed.
const natEvery = time.Minute

type natSeen struct {
	legacyInfo
	print fingerprint
	when  time.Time
}

// same reports whether the table nat probably has the same rules as at the last reading. It compares only the size, the
// number of rules and the built-in chains. If the last reading was natEvery or longer ago, same returns false.
func (n natSeen) same(family conf.Family) bool {
	s, err := openLegacy(family)
	if err != nil {
		return false
	}
	defer func() { _ = unix.Close(s.fd) }()
	now, err := s.info("nat")
	return err == nil && now == n.legacyInfo && time.Since(n.when) < natEvery
}

// readLegacy reads the table. If the table changes meanwhile, readLegacy reads the table again, at most four times.
func readLegacy(family conf.Family, name string) (legacyTable, error) {
	t := legacyTable{legacyLayout: legacyLayouts[family]}
	s, err := openLegacy(family)
	if err != nil {
		return t, err
	}
	fd := s.fd
	defer func() { _ = unix.Close(fd) }()
	for range 5 {
		if t.legacyInfo, err = s.info(name); err != nil {
			return t, err
		}
		answer := make([]byte, sizeofGetEntries+t.Size)
		copy(answer, name)
		binary.NativeEndian.PutUint32(answer[len(t.Name):], t.Size)
		t.entries = answer[sizeofGetEntries:]
		if err = getsockopt(fd, t.level, getEntries, answer); !errors.Is(err, unix.EAGAIN) {
			break
		}
	}
	return t, err
}

func getsockopt(fd, level, option int, value []byte) error {
	size := uint32(len(value))
	_, _, errno := unix.Syscall6(unix.SYS_GETSOCKOPT, uintptr(fd), uintptr(level), uintptr(option),
		uintptr(unsafe.Pointer(&value[0])), uintptr(unsafe.Pointer(&size)), 0)
	if errno != 0 {
		return errno
	}
	return nil
}

type legacyEntry struct {
	offset          uint32
	head            []byte // conditions: addresses, links and protocol
	matches, target []byte
	next            uint32 // offset of the next entry
}

var errLegacy = errors.New("the kernel's answer can't be understood")

func (t *legacyTable) entry(offset uint32) (legacyEntry, error) {
	rest := t.entries[offset:]
	if len(rest) < t.matches {
		return legacyEntry{}, errLegacy
	}
	target := int(binary.NativeEndian.Uint16(rest[t.head+4:]))
	next := int(binary.NativeEndian.Uint16(rest[t.head+6:]))
	if target < t.matches || next < target+sizeofTarget+4 || next > len(rest) {
		return legacyEntry{}, errLegacy
	}
	return legacyEntry{offset, rest[:t.head], rest[t.matches:target], rest[target:next], offset + uint32(next)}, nil
}

// sizeofTarget is the length of struct xt_entry_target, in which the target's name begins at nameOfTarget.
const (
	sizeofTarget = 32
	nameOfTarget = 2
)

func (e legacyEntry) begins() (chain string, ok bool) {
	if attrs.Text(e.target[nameOfTarget:sizeofTarget-1]) != "ERROR" {
		return "", false
	}
	return attrs.Text(e.target[sizeofTarget:]), true
}

// jumps returns the offset of the entry that the kernel compares next: the following entry, or the first entry of
// another chain. ok is false if the entry's target is a verdict (ACCEPT, DROP or RETURN) or an extension such as
// REJECT.
func (e legacyEntry) jumps() (offset uint32, ok bool) {
	verdict := int32(binary.NativeEndian.Uint32(e.target[sizeofTarget:]))
	return uint32(verdict), e.target[nameOfTarget] == 0 && verdict >= 0
}

// print returns the fingerprint of the table's rules. If the parameter few is true, the fingerprint covers only the
// chain POSTROUTING and weir's own chains. For a jump, it covers the other chain's name instead of the chain's offset,
// because other programs' rules change the offsets.
func (t *legacyTable) print(few bool) (fingerprint, error) {
	builtin := map[uint32]string{} // names of the built-in chains, by the offset of their first entry
	for i, offset := range t.Hooks {
		if t.Valid&(1<<i) != 0 {
			builtin[offset] = fmt.Sprint("hook ", i)
		}
	}
	postrouting := fmt.Sprint("hook ", unix.NF_INET_POST_ROUTING)
	type placed struct {
		legacyEntry
		chain string
	}
	var all []placed
	chains := map[uint32]string{} // names of other chains, by the offset of their first rule
	chain := ""
	for offset := uint32(0); offset < uint32(len(t.entries)); {
		e, err := t.entry(offset)
		if err != nil {
			return "", err
		}
		if name, ok := e.begins(); ok {
			chains[e.next], chain = name, name
		} else if name, ok := builtin[offset]; ok {
			chain = name
		}
		if !few || chain == postrouting || conf.OwnChain(chain) {
			all = append(all, placed{e, chain})
		}
		offset = e.next
	}
	h := sha256.New()
	for _, e := range all {
		e.print(h, e.chain, chains)
	}
	return fingerprint(h.Sum(nil)), nil
}

func (e legacyEntry) print(h io.Writer, chain string, chains map[uint32]string) {
	_, _ = fmt.Fprintf(h, "%s %d %d ", chain, len(e.matches), len(e.target))
	_, _ = h.Write(e.head)
	_, _ = h.Write(e.matches)
	switch offset, ok := e.jumps(); {
	case !ok:
		_, _ = h.Write(e.target)
	case offset == e.next:
		_, _ = fmt.Fprint(h, "nothing")
	default:
		_, _ = fmt.Fprintf(h, "chain %s", chains[offset])
	}
}
