package nftnl

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"

	"github.com/vishvananda/netlink/nl"
	"golang.org/x/sys/unix"

	"github.com/weir-net/weir/conf"
	"github.com/weir-net/weir/netfilter/batch"

	netattrs "github.com/weir-net/weir/internal/attrs"
)

// ErrNotExist means that the kernel has no such table, chain, set or element.
var ErrNotExist = errors.New("nf_tables has no such object")

// IsMissing reports whether the error means that the kernel has no such object, or no nf_tables at all (EINVAL).
func IsMissing(err error) bool { return errors.Is(err, ErrNotExist) || errors.Is(err, unix.EINVAL) }

// Reader lists tables, chains, rules and sets of the kernel. Only one goroutine may use it.
type Reader struct{ dumper *batch.Dumper }

// NewReader returns a Reader. The caller must close it.
func NewReader() *Reader { return &Reader{batch.NewDumper(unix.NETLINK_NETFILTER)} }

func (r *Reader) Close() { r.dumper.Close() }

func request(kind int, flags int, t Table, body attrs) *nl.NetlinkRequest {
	req := nl.NewNetlinkRequest(unix.NFNL_SUBSYS_NFTABLES<<8|kind, flags)
	req.AddData(&nl.Nfgenmsg{NfgenFamily: t.Family, Version: nl.NFNETLINK_V0})
	req.AddRawData(body)
	return req
}

// triesOfAList is how often a list is read at most. If a list changes while it is read, it is read again.
const triesOfAList = 5

func (r *Reader) list(kind int, t Table, body attrs, again func(), each func(attrs []byte) bool) (err error) {
	for range triesOfAList {
		again()
		err = r.dumper.Dump(request(kind, unix.NLM_F_DUMP, t, body), func(msg []byte) bool {
			return len(msg) < sizeofGenmsg || each(msg[sizeofGenmsg:])
		})
		if !errors.Is(err, nl.ErrDumpInterrupted) {
			break
		}
	}
	return notExist(err)
}

func notExist(err error) error {
	if errors.Is(err, unix.ENOENT) {
		return ErrNotExist
	}
	return err
}

func (r *Reader) get(kind int, t Table, body attrs, doing string, args ...any) ([]byte, error) {
	var b batch.Batch
	missing := false
	b.Add(request(kind, 0, t, body), doing, args...).MapError = func(err error) error {
		if missing = errors.Is(err, unix.ENOENT); missing {
			return nil
		}
		return err
	}
	replies, err := r.dumper.Do(b)
	if err != nil {
		return nil, err
	}
	for _, m := range replies {
		if len(m) >= sizeofGenmsg {
			return m[sizeofGenmsg:], nil
		}
	}
	if missing {
		return nil, wrap(ErrNotExist, doing, args...)
	}
	return nil, fmt.Errorf("%s: the kernel's answer is empty", fmt.Sprintf(doing, args...))
}

func numberOf(value []byte) uint32 {
	if len(value) != 4 {
		return 0
	}
	return binary.BigEndian.Uint32(value)
}

type TableState struct {
	Flags   uint32 // such as Dormant
	Objects uint32 // number of chains, sets and other objects in the table
	// Owner is the netlink port ID, usually a process ID, of the program that owns the table, or 0 if none owns it.
	Owner uint32
}

// Dormant is the flag of a table that a program has switched off (NFT_TABLE_F_DORMANT in
// include/uapi/linux/netfilter/nf_tables.h).
const Dormant = 1

// Table returns the table's state. If there is no such table, the error is ErrNotExist.
//
// Equivalent to: nft list table FAMILY TABLE
func (r *Reader) Table(t Table) (s TableState, err error) {
	answer, err := r.get(unix.NFT_MSG_GETTABLE, t, attrs{}.text(unix.NFTA_TABLE_NAME, t.Name),
		"look up table %s of nf_tables", t.Name)
	if err != nil {
		return s, err
	}
	for kind, value := range netattrs.In(answer) {
		switch kind {
		case unix.NFTA_TABLE_FLAGS:
			s.Flags = numberOf(value)
		case unix.NFTA_TABLE_USE:
			s.Objects = numberOf(value)
		case nftaTableOwner:
			s.Owner = numberOf(value)
		}
	}
	return s, nil
}

func wrap(err error, doing string, args ...any) error {
	if err == nil {
		return nil
	}
	return fmt.Errorf("%s: %w", fmt.Sprintf(doing, args...), err)
}

// Hook returns the chain's hook, or nil if packets come only from rules of other chains. accepts is true if the chain
// accepts packets that reach its end.
//
// Equivalent to: nft list chain FAMILY TABLE CHAIN
func (r *Reader) Hook(t Table, chain string) (hook *Hook, accepts bool, err error) {
	answer, err := r.get(unix.NFT_MSG_GETCHAIN, t,
		attrs{}.text(unix.NFTA_CHAIN_TABLE, t.Name).text(unix.NFTA_CHAIN_NAME, chain),
		"look up chain %s of table %s", chain, t.Name)
	if err != nil {
		return nil, false, err
	}
	hook, accepts = hookIn(answer)
	return hook, accepts, nil
}

func hookIn(answer []byte) (hook *Hook, accepts bool) {
	kind, policy := "", uint32(1)
	for a, value := range netattrs.In(answer) {
		switch a {
		case unix.NFTA_CHAIN_TYPE:
			kind = netattrs.Text(value)
		case unix.NFTA_CHAIN_POLICY:
			policy = numberOf(value)
		case unix.NFTA_CHAIN_HOOK:
			hook = &Hook{}
			for a, value := range netattrs.In(value) {
				switch a {
				case unix.NFTA_HOOK_HOOKNUM:
					hook.Number = numberOf(value)
				case unix.NFTA_HOOK_PRIORITY:
					hook.Priority = int32(numberOf(value))
				}
			}
		}
	}
	if hook != nil {
		hook.Kind = kind
	}
	return hook, policy == 1
}

// Chains returns the names of the table's chains, including empty ones.
//
// Equivalent to: nft list chains FAMILY
func (r *Reader) Chains(t Table) (names []string, err error) {
	err = r.list(unix.NFT_MSG_GETCHAIN, t, nil, func() { names = nil }, func(answer []byte) bool {
		if table, name := chainIn(answer); table == t.Name {
			names = append(names, name)
		}
		return true
	})
	return names, wrap(err, "list the chains of nf_tables")
}

func chainIn(answer []byte) (table, name string) {
	for kind, value := range netattrs.In(answer) {
		switch kind {
		case unix.NFTA_CHAIN_TABLE:
			table = netattrs.Text(value)
		case unix.NFTA_CHAIN_NAME:
			name = netattrs.Text(value)
		}
	}
	return table, name
}

// Rules is a summary of the rules of a chain.
type Rules struct {
	Sums  []Sum    // in the order of the rules
	To    []string // the chains to which the rules lead
	Drops bool     // true if the last rule drops the packets that match it
	// Audits is true if the last two rules are those of audited policies: one that logs, and one that returns every
	// packet.
	Audits bool
	Last   string // the chain to which the last rule goes with every packet (goto), or empty
	logs   bool   // true if the last rule logs for audited policies
}

// Rules returns the rules of each chain of the table. It leaves out empty chains.
//
// Equivalent to: nft list table FAMILY TABLE
func (r *Reader) Rules(t Table) (chains map[string]Rules, err error) {
	err = r.dumpRules(t, "", func() { chains = map[string]Rules{} }, func(heard heardRule) bool {
		c := chains[heard.chain]
		c.add(sum(heard.expressions, heard.userdata), heard.expressions)
		chains[heard.chain] = c
		return true
	})
	return chains, err
}

// heardRule is a rule in a message of the kernel. Its slices are parts of the message.
type heardRule struct {
	table, chain string
	handle       uint64
	expressions  Expressions
	userdata     []byte
}

func ruleIn(answer []byte) (r heardRule) {
	for kind, value := range netattrs.In(answer) {
		switch kind {
		case unix.NFTA_RULE_TABLE:
			r.table = netattrs.Text(value)
		case unix.NFTA_RULE_CHAIN:
			r.chain = netattrs.Text(value)
		case unix.NFTA_RULE_HANDLE:
			if len(value) == 8 {
				r.handle = binary.BigEndian.Uint64(value)
			}
		case unix.NFTA_RULE_EXPRESSIONS:
			r.expressions = value
		case unix.NFTA_RULE_USERDATA:
			r.userdata = value
		}
	}
	return r
}

// dumpRules passes the rules of the chain to the function each, until that function returns false. An empty name stands
// for all chains of the table. dumpRules calls the function begin before each attempt.
func (r *Reader) dumpRules(t Table, chain string, begin func(), each func(heardRule) bool) error {
	body, of := attrs{}.text(unix.NFTA_RULE_TABLE, t.Name), "table "+t.Name
	if chain != "" {
		body, of = body.text(unix.NFTA_RULE_CHAIN, chain), "chain "+chain
	}
	err := r.list(unix.NFT_MSG_GETRULE, t, body, begin, func(answer []byte) bool {
		heard := ruleIn(answer)
		return heard.table != t.Name || chain != "" && heard.chain != chain || each(heard)
	})
	return wrap(err, "list the rules of %s", of)
}

func (c *Rules) Add(r Rule) { c.add(r.Sum(), r.Expressions) }

func (c *Rules) add(s Sum, expressions Expressions) {
	logged, others, returns, goes := c.logs, 0, false, ""
	c.Sums, c.Drops, c.logs = append(c.Sums, s), false, false
	for name, values := range expressions.All() {
		if string(name) != "immediate" {
			c.logs = c.logs || string(name) == "log" && bytes.Contains(values, []byte(conf.AuditLogPrefix))
			others++
			continue
		}
		switch v, ok := VerdictIn(values); {
		case v.Chain == "":
			c.Drops, returns = ok && v.Code == 0, ok && v.Code == unix.NFT_RETURN
		case v.Code == unix.NFT_GOTO:
			goes = v.Chain
			fallthrough
		default:
			c.To = append(c.To, v.Chain)
		}
	}
	c.Audits = logged && returns && others == 0
	if c.Last = goes; others > 0 {
		c.Last = ""
	}
}

// Generation returns the number of the last change of nf_tables in this network namespace. If the kernel has no
// nf_tables, it returns an error.
//
// Equivalent to: nft monitor, which shows the number as "new generation"
func (r *Reader) Generation() (uint32, error) {
	const doing = "ask for the generation of nf_tables"
	answer, err := r.get(unix.NFT_MSG_GETGEN, Table{}, nil, doing)
	if err != nil {
		return 0, err
	}
	for kind, value := range netattrs.In(answer) {
		if kind == unix.NFTA_GEN_ID {
			return numberOf(value), nil
		}
	}
	return 0, errors.New(doing + ": the kernel's answer has none")
}

// Generation returns the result of Reader.Generation, over a socket of its own.
func Generation() (uint32, error) {
	r := NewReader()
	defer r.Close()
	return r.Generation()
}
