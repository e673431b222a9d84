package nftables

import (
	"encoding/binary"
	"errors"
	"fmt"

	"golang.org/x/sys/unix"

	"github.com/weir-net/weir/internal/attrs"
	"github.com/weir-net/weir/netfilter/nftnl"
)

type others struct {
	reader *nftnl.Reader
	table  nftnl.Table
	chains map[string][]nftnl.Listed // the rules of the chains that have been read
}

func (o *others) rules(chain string) ([]nftnl.Listed, error) {
	rules, ok := o.chains[chain]
	if ok {
		return rules, nil
	}
	rules, err := o.reader.List(o.table, chain)
	if err != nil && !errors.Is(err, nftnl.ErrNotExist) {
		return nil, err
	}
	if o.chains == nil {
		o.chains = map[string][]nftnl.Listed{}
	}
	o.chains[chain] = rules
	return rules, nil
}

// refusesAt returns the index at which weir's rules belong among a chain's rules: before the first rule that refuses
// every new connection. Directly before this rule, there may be rules that each refuse all packets of one protocol.
// Then weir's rules belong before these rules. If no rule refuses every new connection, refusesAt returns the number of
// rules.
func (o *others) refusesAt(rules []nftnl.Listed) (int, error) {
	for i, r := range rules {
		refuses, err := o.refuses(r, 0)
		if err != nil {
			return 0, err
		}
		if !refuses {
			continue
		}
		for i > 0 && effectOf(rules[i-1].Expressions).refusesProtocol() {
			i--
		}
		return i, nil
	}
	return len(rules), nil
}

const maxDepth = 8

func (o *others) refuses(r nftnl.Listed, depth int) (bool, error) {
	e := effectOf(r.Expressions)
	switch {
	case len(e.conditions) > 0 || depth > maxDepth:
		return false, nil
	case e.drops:
		return true, nil
	case e.chain == "":
		return false, nil
	}
	rules, err := o.rules(e.chain)
	if err != nil {
		return false, err
	}
	for _, r := range rules {
		refuses, err := o.refuses(r, depth+1)
		if refuses || err != nil {
			return refuses, err
		}
		if e := effectOf(r.Expressions); (e.drops || e.ends || e.chain != "") && !e.refusesProtocol() {
			return false, nil
		}
	}
	return false, nil
}

// effect describes a rule of another program, as far as weir needs to know it.
type effect struct {
	conditions []match
	drops      bool
	ends       bool   // true if the packet leaves the chain without being dropped, or if weir can't know the effect
	chain      string // the chain to which the rule leads
}

// match is an expression that may restrict the packets which a rule matches.
type match struct {
	name   string
	fields map[uint16][]byte
}

// refusesProtocol reports whether the rule refuses all packets of one protocol.
func (e effect) refusesProtocol() bool {
	if !e.drops || len(e.conditions) != 2 || e.conditions[1].name != "cmp" {
		return false
	}
	number := func(kind uint16) uint32 {
		if v := e.conditions[0].fields[kind]; len(v) == 4 {
			return binary.BigEndian.Uint32(v)
		}
		return ^uint32(0)
	}
	switch e.conditions[0].name {
	case "meta":
		return number(unix.NFTA_META_KEY) == unix.NFT_META_L4PROTO
	case "payload": // the byte with the protocol in the header of IPv4 or IPv6
		at := number(unix.NFTA_PAYLOAD_OFFSET)
		return number(unix.NFTA_PAYLOAD_BASE) == unix.NFT_PAYLOAD_NETWORK_HEADER &&
			number(unix.NFTA_PAYLOAD_LEN) == 1 && (at == 9 || at == 6)
	}
	return false
}

func effectOf(expressions nftnl.Expressions) (e effect) {
	for name, values := range expressions.All() {
		f := attrs.Map(values)
		switch string(name) {
		case "counter", "log":
		case "reject":
			e.drops = true
		case "immediate":
			e.verdict(values)
		case "target":
			switch attrs.Text(f[unix.NFTA_TARGET_NAME]) {
			case "REJECT", "DROP":
				e.drops = true
			case "LOG", "NFLOG", "ULOG":
			default:
				e.ends = true
			}
		case "match":
			if !always(f) {
				e.conditions = append(e.conditions, match{string(name), f})
			}
		default:
			e.conditions = append(e.conditions, match{string(name), f})
		}
	}
	return e
}

func (e *effect) verdict(immediate []byte) {
	switch v, ok := nftnl.VerdictIn(immediate); {
	case !ok:
	case v.Chain != "":
		e.chain = v.Chain
	case v.Code == 0:
		e.drops = true
	default:
		e.ends = true
	}
}

// always reports whether a match of xtables matches every first packet of a connection (struct xt_conntrack_mtinfo3).
func always(fields map[uint16][]byte) bool {
	const flagsAt, invertAt, statesAt, states, isNew = 146, 148, 150, 1, 1 << 3
	info := fields[unix.NFTA_MATCH_INFO]
	switch attrs.Text(fields[unix.NFTA_MATCH_NAME]) {
	case "comment":
		return true
	case "conntrack":
		at := func(i int) uint16 { return binary.NativeEndian.Uint16(info[i:]) }
		return len(info) >= statesAt+2 && at(flagsAt) == states && at(invertAt) == 0 && at(statesAt)&isNew != 0
	}
	return false
}

// commentOf returns the rule's comment, which nft and xtables store in different places.
func commentOf(r nftnl.Listed) string {
	if r.Comment != "" {
		return r.Comment
	}
	for name, values := range r.Expressions.All() {
		if f := attrs.Map(values); string(name) == "match" && attrs.Text(f[unix.NFTA_MATCH_NAME]) == "comment" {
			return attrs.Text(f[unix.NFTA_MATCH_INFO])
		}
	}
	return ""
}

var knownTables = map[string]string{
	"firewalld": "firewalld", "docker-bridges": "Docker", "kube-proxy": "kube-proxy", "libvirt_network": "libvirt",
	"filter": "perhaps /etc/nftables.conf",
}

func (d *Driver) ownerOf(t nftnl.Table) string {
	if s, err := d.reader.Table(t); err == nil && s.Owner != 0 {
		return fmt.Sprintf("the process with the netlink port %d", s.Owner)
	}
	if name, ok := knownTables[t.Name]; ok {
		return name
	}
	return "unknown"
}
