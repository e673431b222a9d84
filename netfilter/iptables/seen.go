package iptables

import (
	"bytes"
	"crypto/sha256"
	"encoding/binary"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"slices"
	"strings"

	"github.com/google/nftables"
	"github.com/vishvananda/netlink/nl"
	"golang.org/x/sys/unix"

	"github.com/weir-net/weir/conf"
	"github.com/weir-net/weir/internal/attrs"
	"github.com/weir-net/weir/netfilter"
)

// seen is a rule as nf_tables shows it. weir reads rules in this form if iptables-save can't print the table.
type seen struct {
	handle uint64
	target string
	audits bool // true if the rule logs what audited policies would drop
	always bool
	// accepts is true for weir's own rules in filter FORWARD, which the backend nftables writes.
	accepts bool
	sum     []byte // hash of the rule without its counters
}

func (s seen) parts() parts {
	p := parts{
		target: s.target, goes: s.target != "" && s.target != "DROP" && s.target != returns, audits: s.audits,
	}
	if !s.always {
		p.conditions = []string{""}
	}
	return p
}

func (s seen) jumpsTo(chain string) bool { return s.always && s.target == chain }

func sum(rules []seen) string {
	h := sha256.New()
	for _, r := range rules {
		h.Write(r.sum)
	}
	return string(h.Sum(nil))
}

var nfFamilies = [len(conf.Families)]uint8{conf.IPv4: unix.NFPROTO_IPV4, conf.IPv6: unix.NFPROTO_IPV6}

// exists reports whether the kernel has the family's table, and whether the table is switched off. It asks the kernel
// and not iptables: iptables-legacy would create the table, and iptables-nft shows a missing table as an empty one.
//
// Equivalent to: nft list table ip TABLE | head -n 2; for Legacy: grep '^TABLE$' /proc/net/ip_tables_names (ip6 for
// IPv6)
func (f Flavour) exists(family conf.Family, name string) (there, dormant bool, err error) {
	if f == Legacy {
		path := "/proc/thread-self/net/ip_tables_names"
		if family == conf.IPv6 {
			path = "/proc/thread-self/net/ip6_tables_names"
		}
		names, err := os.ReadFile(path)
		if errors.Is(err, fs.ErrNotExist) { // the kernel has no legacy tables
			return false, false, nil
		}
		if err != nil {
			return false, false, fmt.Errorf("list the tables of iptables-legacy: %w", err)
		}
		return slices.Contains(strings.Fields(string(names)), name), false, nil
	}
	err = dump(unix.NFT_MSG_GETTABLE, family, nil, func(attrs []byte) {
		if table := attributes(attrs); text(table[unix.NFTA_TABLE_NAME]) == name {
			const isDormant = 1 // NFT_TABLE_F_DORMANT in include/uapi/linux/netfilter/nf_tables.h
			flags := table[unix.NFTA_TABLE_FLAGS]
			there, dormant = true, len(flags) == 4 && binary.BigEndian.Uint32(flags)&isDormant != 0
		}
	})
	if errors.Is(err, unix.EINVAL) { // the kernel has no nf_tables
		return false, false, nil
	}
	if err != nil {
		return false, false, fmt.Errorf("list the tables of nf_tables: %w", err)
	}
	return there, dormant, nil
}

// wake switches on a table that another program has switched off.
//
// Equivalent to: nft add table ip TABLE (ip6 for IPv6)
func wake(f conf.Family, name string) error {
	conn, err := nftables.New()
	if err != nil {
		return fmt.Errorf("open nftables: %w", err)
	}
	conn.AddTable(&nftables.Table{Name: name, Family: libraryFamilies[f]})
	if err := conn.Flush(); err != nil {
		return fmt.Errorf("switch on table %s: %w", name, err)
	}
	return nil
}

// wake makes sure that packets pass the family's tables: it switches on tables, and deletes built-in chains at wrong
// hooks.
func (t tables) wake(f conf.Family) (any bool, err error) {
	for _, name := range tablesUsed {
		this := t[name]
		if !this.dormant && len(this.misplaced) == 0 {
			continue
		}
		if this.dormant {
			if err := wake(f, name); err != nil {
				return any, err
			}
		}
		if len(this.misplaced) > 0 {
			if err := deleteChains(f, name, this.misplaced); err != nil {
				return any, err
			}
			for _, chain := range this.misplaced {
				if this.unknown == nil {
					this.rules[chain] = nil
				} else if this.unknown.seen != nil {
					delete(this.unknown.seen, chain)
				}
			}
		}
		this.dormant, this.misplaced, any = false, nil, true
		t[name] = this
	}
	return any, nil
}

var libraryFamilies = [...]nftables.TableFamily{
	conf.IPv4: nftables.TableFamilyIPv4, conf.IPv6: nftables.TableFamilyIPv6,
}

// see returns the table's rules by chain, as nf_tables shows them. If a chain's name is given, see returns only the
// rules of this chain.
//
// Equivalent to: nft -a list table ip TABLE; nft -a list chain ip TABLE ONLY (ip6 for IPv6)
func see(family conf.Family, name string, only ...string) (map[string][]seen, error) {
	chains := map[string][]seen{}
	of := []*nl.RtAttr{nl.NewRtAttr(unix.NFTA_RULE_TABLE, nl.ZeroTerminated(name))}
	for _, chain := range only {
		of = append(of, nl.NewRtAttr(unix.NFTA_RULE_CHAIN, nl.ZeroTerminated(chain)))
	}
	err := dump(unix.NFT_MSG_GETRULE, family, of, func(attrs []byte) {
		rule := attributes(attrs)
		if text(rule[unix.NFTA_RULE_TABLE]) != name {
			return
		}
		r := readRule(rule[unix.NFTA_RULE_EXPRESSIONS])
		comment := []byte(netfilter.AcceptComment) // nft has comments in the rule's user data, and xtables in a match
		r.accepts = bytes.Contains(rule[unix.NFTA_RULE_USERDATA], comment) ||
			bytes.Contains(rule[unix.NFTA_RULE_EXPRESSIONS], comment)
		if handle := rule[unix.NFTA_RULE_HANDLE]; len(handle) == 8 {
			r.handle = binary.BigEndian.Uint64(handle)
		}
		chain := text(rule[unix.NFTA_RULE_CHAIN])
		chains[chain] = append(chains[chain], r)
	})
	if err != nil {
		return nil, fmt.Errorf("list the rules of table %s: %w", name, err)
	}
	return chains, nil
}

func readRule(expressions []byte) seen {
	r := seen{always: true}
	h := sha256.New()
	for _, value := range attrs.In(expressions) {
		e := attributes(value)
		name, data := text(e[unix.NFTA_EXPR_NAME]), e[unix.NFTA_EXPR_DATA]
		if name == "counter" {
			continue
		}
		_, _ = fmt.Fprintf(h, "%s %d %s", name, len(data), data)
		switch name {
		case "immediate":
			r.target = targetOf(data)
		case "match":
			r.always = r.always && text(attributes(data)[unix.NFTA_MATCH_NAME]) == "comment"
		case "log", "target": // newer versions of iptables-nft write the target NFLOG as "log"
			r.audits, r.always = r.audits || bytes.Contains(data, []byte(conf.AuditLogPrefix)), false
		default:
			r.always = false
		}
	}
	r.sum = h.Sum(nil)
	return r
}

func targetOf(immediate []byte) string {
	verdict := attributes(attributes(attributes(immediate)[unix.NFTA_IMMEDIATE_DATA])[unix.NFTA_DATA_VERDICT])
	code, chain := verdict[unix.NFTA_VERDICT_CODE], text(verdict[unix.NFTA_VERDICT_CHAIN])
	if chain == "" && len(code) == 4 {
		switch int32(binary.BigEndian.Uint32(code)) {
		case 0: // NF_DROP
			return "DROP"
		case unix.NFT_RETURN:
			return returns
		}
	}
	return chain
}

// deleteCopies deletes copies of weir's rules in a table that iptables can't print. Of the rules that lead from a
// built-in chain to the same chain of weir's, it keeps the first one without a condition.
//
// Equivalent to: nft delete rule ip TABLE CHAIN handle HANDLE (ip6 for IPv6)
func deleteCopies(f conf.Family, name string) error {
	chains, err := see(f, name)
	if err != nil {
		return err
	}
	conn, err := nftables.New()
	if err != nil {
		return fmt.Errorf("open nftables: %w", err)
	}
	table := &nftables.Table{Name: name, Family: libraryFamilies[f]}
	copies := 0
	for _, chain := range builtin[name] {
		stands := map[string]bool{}
		for _, r := range chains[chain] {
			if !conf.OwnChain(r.target) {
				continue
			}
			if r.always && !stands[r.target] {
				stands[r.target] = true
				continue
			}
			copies++
			err := conn.DelRule(&nftables.Rule{
				Table: table, Chain: &nftables.Chain{Name: chain, Table: table}, Handle: r.handle,
			})
			if err != nil {
				return fmt.Errorf("delete a copy of weir's rule in %s %s: %w", name, chain, err)
			}
		}
	}
	if copies == 0 {
		return nil
	}
	if err := conn.Flush(); err != nil {
		return fmt.Errorf("delete copies of weir's rules in table %s: %w", name, err)
	}
	return nil
}

// dump lists the objects of the kind in the family's tables, and passes each object's attributes to the function each.
// The filters limit the list, for example to one table. If the objects change during each of five attempts, dump
// returns nl.ErrDumpInterrupted.
func dump(kind int, family conf.Family, filters []*nl.RtAttr, each func(attrs []byte)) error {
	req := nl.NewNetlinkRequest(unix.NFNL_SUBSYS_NFTABLES<<8|kind, unix.NLM_F_DUMP)
	req.AddData(&nl.Nfgenmsg{NfgenFamily: nfFamilies[family], Version: nl.NFNETLINK_V0})
	for _, attr := range filters {
		req.AddData(attr)
	}
	var err error
	for range 5 { // objects may change during an attempt
		var msgs [][]byte
		if msgs, err = req.Execute(unix.NETLINK_NETFILTER, 0); errors.Is(err, nl.ErrDumpInterrupted) {
			continue
		}
		for _, m := range msgs {
			if len(m) >= nl.SizeofNfgenmsg {
				each(m[nl.SizeofNfgenmsg:])
			}
		}
		break
	}
	return err
}

func get(kind int, family conf.Family, of ...*nl.RtAttr) (map[uint16][]byte, error) {
	req := nl.NewNetlinkRequest(unix.NFNL_SUBSYS_NFTABLES<<8|kind, 0)
	req.AddData(&nl.Nfgenmsg{NfgenFamily: nfFamilies[family], Version: nl.NFNETLINK_V0})
	for _, attr := range of {
		req.AddData(attr)
	}
	msgs, err := req.Execute(unix.NETLINK_NETFILTER, 0)
	if err != nil {
		return nil, err
	}
	for _, m := range msgs {
		if len(m) >= nl.SizeofNfgenmsg {
			return attributes(m[nl.SizeofNfgenmsg:]), nil
		}
	}
	return nil, errors.New("the kernel's answer is empty")
}

func attributes(b []byte) map[uint16][]byte {
	all := map[uint16][]byte{}
	for kind, value := range attrs.In(b) {
		all[kind] = value
	}
	return all
}

func text(value []byte) string { return string(bytes.TrimRight(value, "\x00")) }
