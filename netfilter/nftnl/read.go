package nftnl

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"net/netip"
	"slices"

	"github.com/vishvananda/netlink/nl"
	"golang.org/x/sys/unix"

	"github.com/weir-net/weir/netfilter/batch"

	netattrs "github.com/weir-net/weir/internal/attrs"
)

// ErrNotExist means that the kernel has no such table, set or element.
var ErrNotExist = errors.New("nf_tables has no such object")

// Reader lists what the kernel has. It is not safe for concurrent use.
type Reader struct{ dumper *batch.Dumper }

// NewReader returns a Reader. The caller closes it.
func NewReader() *Reader { return &Reader{batch.NewDumper(unix.NETLINK_NETFILTER)} }

// Close frees the Reader's socket.
func (r *Reader) Close() { r.dumper.Close() }

func request(kind int, flags int, t Table, body attrs) *nl.NetlinkRequest {
	req := nl.NewNetlinkRequest(unix.NFNL_SUBSYS_NFTABLES<<8|kind, flags)
	req.AddData(&nl.Nfgenmsg{NfgenFamily: t.Family, Version: nl.NFNETLINK_V0})
	req.AddRawData(body)
	return req
}

// triesOfALists is how often a list is asked for that changes while it is read.
const triesOfALists = 5

// list calls the function each with the attributes of every object in the list. It calls again first, before each
// attempt.
func (r *Reader) list(kind int, t Table, body attrs, again func(), each func(attrs []byte) bool) (err error) {
	for range triesOfALists {
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

// get returns the attributes of one object.
func get(kind int, t Table, body attrs) ([]byte, error) {
	msgs, err := request(kind, 0, t, body).Execute(unix.NETLINK_NETFILTER, 0)
	if err != nil {
		return nil, notExist(err)
	}
	for _, m := range msgs {
		if len(m) >= sizeofGenmsg {
			return m[sizeofGenmsg:], nil
		}
	}
	return nil, errors.New("the kernel's answer is empty")
}

func textOf(value []byte) string { return string(bytes.TrimRight(value, "\x00")) }

func numberOf(value []byte) uint32 {
	if len(value) != 4 {
		return 0
	}
	return binary.BigEndian.Uint32(value)
}

// TableState is what the kernel says of a table.
type TableState struct {
	Off     bool   // another program has switched the table off, so its rules check no packets
	Objects uint32 // how many chains, sets and other objects the table has
}

// Table returns the table's state; ErrNotExist if there is no such table.
//
// Equivalent to: nft list tables FAMILY
func (r *Reader) Table(t Table) (s TableState, err error) {
	answer, err := get(unix.NFT_MSG_GETTABLE, t, attrs{}.text(unix.NFTA_TABLE_NAME, t.Name))
	if err != nil {
		return s, wrap(err, "look up table %s of nf_tables", t.Name)
	}
	for kind, value := range netattrs.In(answer) {
		switch kind {
		case unix.NFTA_TABLE_FLAGS:
			s.Off = numberOf(value) != 0
		case unix.NFTA_TABLE_USE:
			s.Objects = numberOf(value)
		}
	}
	return s, nil
}

// wrap adds to an error what failed. It returns nil if err is nil.
func wrap(err error, doing string, args ...any) error {
	if err == nil {
		return nil
	}
	return fmt.Errorf("%s: %w", fmt.Sprintf(doing, args...), err)
}

// Hook returns the hook of a chain, which is nil if packets reach the chain by rules only, and whether the chain
// accepts what reaches its end.
//
// Equivalent to: nft list chain FAMILY TABLE CHAIN
func (r *Reader) Hook(t Table, chain string) (hook *Hook, accepts bool, err error) {
	answer, err := get(unix.NFT_MSG_GETCHAIN, t,
		attrs{}.text(unix.NFTA_CHAIN_TABLE, t.Name).text(unix.NFTA_CHAIN_NAME, chain))
	if err != nil {
		return nil, false, wrap(err, "look up chain %s of table %s", chain, t.Name)
	}
	kind, policy := "", uint32(1)
	for a, value := range netattrs.In(answer) {
		switch a {
		case unix.NFTA_CHAIN_TYPE:
			kind = textOf(value)
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
	return hook, policy == 1, nil
}

// Chains returns the names of the table's chains, with and without rules. The kernel lists the chains of all tables of
// the family for that, such as those of kube-proxy.
//
// Equivalent to: nft list chains FAMILY
func (r *Reader) Chains(t Table) (names []string, err error) {
	err = r.list(unix.NFT_MSG_GETCHAIN, t, nil, func() { names = nil }, func(answer []byte) bool {
		table, name := "", ""
		for kind, value := range netattrs.In(answer) {
			switch kind {
			case unix.NFTA_CHAIN_TABLE:
				table = textOf(value)
			case unix.NFTA_CHAIN_NAME:
				name = textOf(value)
			}
		}
		if table == t.Name {
			names = append(names, name)
		}
		return true
	})
	return names, wrap(err, "list the chains of nf_tables")
}

// Rules are the rules of a chain.
type Rules struct {
	Sums []Sum // in order
	// To are the chains that the rules lead to, in order.
	To []string
	// Drops is true if the last rule drops every packet that reaches its verdict.
	Drops bool
}

// Rules returns the rules of each chain of the table. Chains without rules are not among them.
//
// Equivalent to: nft list table FAMILY TABLE
func (r *Reader) Rules(t Table) (chains map[string]Rules, err error) {
	body := attrs{}.text(unix.NFTA_RULE_TABLE, t.Name)
	err = r.list(unix.NFT_MSG_GETRULE, t, body, func() { chains = map[string]Rules{} }, func(answer []byte) bool {
		var chain, table string
		var expressions, data []byte
		for kind, value := range netattrs.In(answer) {
			switch kind {
			case unix.NFTA_RULE_TABLE:
				table = textOf(value)
			case unix.NFTA_RULE_CHAIN:
				chain = textOf(value)
			case unix.NFTA_RULE_EXPRESSIONS:
				expressions = value
			case unix.NFTA_RULE_USERDATA:
				data = value
			}
		}
		if table == t.Name {
			c := chains[chain]
			c.add(sum(expressions, data), expressions)
			chains[chain] = c
		}
		return true
	})
	return chains, wrap(err, "list the rules of table %s", t.Name)
}

// Add appends a rule.
func (c *Rules) Add(r Rule) { c.add(r.Sum(), r.Expressions) }

func (c *Rules) add(s Sum, expressions []byte) {
	c.Sums, c.Drops = append(c.Sums, s), false
	for _, e := range netattrs.In(expressions) {
		var name string
		var immediate []byte
		for kind, value := range netattrs.In(e) {
			switch kind {
			case unix.NFTA_EXPR_NAME:
				name = textOf(value)
			case unix.NFTA_EXPR_DATA:
				immediate = value
			}
		}
		if name != "immediate" {
			continue
		}
		to, data := uint32(1), []byte(nil)
		for kind, value := range netattrs.In(immediate) {
			switch kind {
			case unix.NFTA_IMMEDIATE_DREG:
				to = numberOf(value)
			case unix.NFTA_IMMEDIATE_DATA:
				data = value
			}
		}
		if v := parseVerdict(data); v.Chain != "" {
			c.To = append(c.To, v.Chain)
		} else {
			c.Drops = to == unix.NFT_REG_VERDICT && v.Code == 0
		}
	}
}

// Sets returns the sets of the table. known is false for a set of a layout that this package doesn't have.
//
// Equivalent to: nft list sets FAMILY
func (r *Reader) Sets(t Table) (sets map[string]SetState, err error) {
	body := attrs{}.text(unix.NFTA_SET_TABLE, t.Name)
	err = r.list(unix.NFT_MSG_GETSET, t, body, func() { sets = map[string]SetState{} }, func(answer []byte) bool {
		table, s := parseSet(t.Family, answer)
		if table == t.Name {
			sets[s.Name] = s
		}
		return true
	})
	return sets, wrap(err, "list the sets of table %s", t.Name)
}

// SetState is a set as the kernel has it.
type SetState struct {
	Set
	Known bool // the package has the set's layout
}

func parseSet(family uint8, answer []byte) (table string, s SetState) {
	var kind, length, flags uint32
	data := uint32(0)
	for a, value := range netattrs.In(answer) {
		switch a {
		case unix.NFTA_SET_TABLE:
			table = textOf(value)
		case unix.NFTA_SET_NAME:
			s.Name = textOf(value)
		case unix.NFTA_SET_FLAGS:
			flags = numberOf(value)
		case unix.NFTA_SET_KEY_TYPE:
			kind = numberOf(value)
		case unix.NFTA_SET_KEY_LEN:
			length = numberOf(value)
		case unix.NFTA_SET_DATA_TYPE:
			data = numberOf(value)
		case unix.NFTA_SET_USERDATA:
			s.Comment = textOf(userdataIn(value, commentOfASet))
		}
	}
	s.Layout, s.Known = layoutOf(family, kind, length, flags)
	if s.Layout == Verdicts && data != unix.NFT_DATA_VERDICT {
		s.Known = false
	}
	return table, s
}

// Each calls the function each with the elements of the set. If each returns false, it ends early, without an error.
// It calls again before it begins, and once more each time when it has to begin anew because the set has changed. odd
// is true if the set has an element that the layout doesn't have. Of a network, each gets both ends: see Networks.
//
// Equivalent to: nft list set FAMILY TABLE SET
func (r *Reader) Each(t Table, s Set, again func(), each func(Element) bool) (odd bool, err error) {
	body := attrs{}.text(unix.NFTA_SET_ELEM_LIST_TABLE, t.Name).text(unix.NFTA_SET_ELEM_LIST_SET, s.Name)
	var ends []end
	start := func() { odd, ends = false, nil; again() }
	err = r.list(unix.NFT_MSG_GETSETELEM, t, body, start, func(answer []byte) bool {
		for kind, list := range netattrs.In(answer) {
			if kind != unix.NFTA_SET_ELEM_LIST_ELEMENTS {
				continue
			}
			for _, one := range netattrs.In(list) {
				e, last, ok := s.Layout.element(t.Family, one)
				switch {
				case !ok:
					odd = true
				case s.Layout == Network:
					ends = append(ends, end{e, last})
				case last:
					odd = true
				case !each(e):
					return false
				}
			}
		}
		return true
	})
	if err == nil && s.Layout == Network {
		odd = !networks(ends, each) || odd
	}
	return odd, wrap(err, "list set %s of table %s", s.Name, t.Name)
}

// end is one end of a network: its first address, or the first address behind it.
type end struct {
	Element
	last bool
}

// networks calls the function each with the networks. ok is false if some of the ends belong to no network.
func networks(ends []end, each func(Element) bool) (ok bool) {
	slices.SortFunc(ends, func(a, b end) int {
		if c := a.Prefix.Addr().Compare(b.Prefix.Addr()); c != 0 || a.last == b.last {
			return c
		}
		if a.last { // where two networks meet, one ends before the other begins
			return -1
		}
		return 1
	})
	ok = true
	for i := 0; i < len(ends); i++ {
		first := ends[i]
		if first.last {
			if !first.Prefix.Addr().IsUnspecified() { // nft marks the space before the first network
				ok = false
			}
			continue
		}
		var behind netip.Addr // none: the network reaches to the last address
		if i+1 < len(ends) && ends[i+1].last {
			behind = ends[i+1].Prefix.Addr()
			i++
		} else if i+1 < len(ends) {
			ok = false
			continue
		}
		p, is := between(first.Prefix.Addr(), behind)
		if !is {
			ok = false
			continue
		}
		if first.Prefix = p; !each(first.Element) {
			return ok
		}
	}
	return ok
}

// element parses an element. last is true if it only ends a network.
func (l Layout) element(family uint8, data []byte) (e Element, last, ok bool) {
	var verdict Verdict
	var words string
	for kind, value := range netattrs.In(data) {
		switch kind {
		case unix.NFTA_SET_ELEM_KEY:
			e, ok = l.parse(family, valueIn(value))
		case unix.NFTA_SET_ELEM_DATA:
			verdict = parseVerdict(value)
		case unix.NFTA_SET_ELEM_FLAGS:
			last = numberOf(value)&unix.NFT_SET_ELEM_INTERVAL_END != 0
			ok = ok && numberOf(value)&^unix.NFT_SET_ELEM_INTERVAL_END == 0
		case unix.NFTA_SET_ELEM_USERDATA:
			words = textOf(userdataIn(value, commentOfAnObject))
		}
	}
	e.Verdict, e.Comment = verdict, words
	return e, last, ok
}

// Generation returns the number of the last change of nf_tables in this network namespace. It returns an error if the
// kernel has no nf_tables.
//
// Equivalent to: nft -j list tables; nft monitor shows it as "new generation"
func Generation() (uint32, error) {
	answer, err := get(unix.NFT_MSG_GETGEN, Table{}, nil)
	if err != nil {
		return 0, wrap(err, "ask for the generation of nf_tables")
	}
	for kind, value := range netattrs.In(answer) {
		if kind == unix.NFTA_GEN_ID {
			return numberOf(value), nil
		}
	}
	return 0, errors.New("ask for the generation of nf_tables: the kernel's answer has none")
}
