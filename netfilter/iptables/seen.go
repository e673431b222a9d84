package iptables

import (
	"bytes"
	"crypto/sha256"
	"errors"
	"fmt"

	"golang.org/x/sys/unix"

	"github.com/weir-net/weir/conf"
	"github.com/weir-net/weir/internal/attrs"
	"github.com/weir-net/weir/netfilter"
	"github.com/weir-net/weir/netfilter/nftnl"
)

// seen is a rule as nf_tables shows it. weir reads rules in this form if iptables-save can't print a table, and for the
// fingerprint of a table.
type seen struct {
	handle uint64
	target string
	audits bool // true if the rule logs what audited policies would drop
	always bool
	// accepts is true for weir's rules in the chain FORWARD of the table filter that accept pods' packets. The backend
	// nftables also writes these rules, because the chain may drop packets by default.
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

func tableOf(f conf.Family, name string) nftnl.Table {
	return nftnl.Table{
		Family: [...]uint8{conf.IPv4: unix.NFPROTO_IPV4, conf.IPv6: unix.NFPROTO_IPV6}[f], Name: name,
	}
}

// exists reports whether the kernel has the family's table, and whether the table is switched off. It asks the kernel
// instead of the programs: iptables-legacy would create the table, and iptables-nft shows a missing table as an empty
// one.
//
// Equivalent to: nft list table ip TABLE | head -n 2 (ip6 for IPv6); for Legacy see legacyExists
func (f Flavour) exists(r *nftnl.Reader, family conf.Family, name string) (there, dormant bool, err error) {
	if f == Legacy {
		there, err := legacyExists(family, name)
		return there, false, err
	}
	s, err := r.Table(tableOf(family, name))
	if nftnl.IsMissing(err) {
		return false, false, nil
	}
	return err == nil, s.Flags&nftnl.Dormant != 0, err
}

// wake switches on a table that another program has switched off.
//
// Equivalent to: nft add table ip TABLE (ip6 for IPv6)
func wake(f conf.Family, name string) error {
	var b nftnl.Batch
	b.AddTable(tableOf(f, name), "")
	if err := b.Commit(); err != nil {
		return fmt.Errorf("switch on table %s: %w", name, err)
	}
	return nil
}

// wake makes sure that packets meet the rules of the family's tables: it switches tables on, and deletes built-in
// chains at wrong hooks. any is true if wake has changed a table.
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

// rulesOf returns the table's rules by chain, as nf_tables shows them.
//
// Equivalent to: nft -a list table ip TABLE (ip6 for IPv6)
func rulesOf(r *nftnl.Reader, f conf.Family, name string) (chains map[string][]seen, err error) {
	err = r.EachRule(tableOf(f, name), func() { chains = map[string][]seen{} }, func(chain string, rule nftnl.Listed) {
		chains[chain] = append(chains[chain], readRule(rule))
	})
	return chains, err
}

// rulesOfChain returns the chain's rules, as nf_tables shows them. It returns nil if there is no such chain.
func rulesOfChain(r *nftnl.Reader, f conf.Family, name, chain string) (rules []seen, err error) {
	listed, err := r.List(tableOf(f, name), chain)
	if errors.Is(err, nftnl.ErrNotExist) {
		return nil, nil
	}
	for _, rule := range listed {
		rules = append(rules, readRule(rule))
	}
	return rules, err
}

func readRule(rule nftnl.Listed) seen {
	r := seen{
		handle: rule.Handle, always: true,
		// A rule of nft has its comment in the user data. A rule of iptables has its comment in a match.
		accepts: rule.Comment == netfilter.AcceptComment ||
			bytes.Contains(rule.Expressions, []byte(netfilter.AcceptComment)),
	}
	h := sha256.New()
	for name, data := range rule.Expressions.All() {
		if string(name) == "counter" {
			continue
		}
		_, _ = fmt.Fprintf(h, "%s %d %s", name, len(data), data)
		switch string(name) {
		case "immediate":
			r.target = targetOf(data)
		case "match":
			r.always = r.always && attrs.Text(attrs.Map(data)[unix.NFTA_MATCH_NAME]) == "comment"
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
	switch v, ok := nftnl.VerdictIn(immediate); {
	case !ok || v.Chain != "":
		return v.Chain
	case v.Code == 0: // NF_DROP
		return "DROP"
	case v.Code == unix.NFT_RETURN:
		return returns
	}
	return ""
}

// deleteCopies deletes copies of weir's rules in a table that iptables can't print. If several rules lead from a
// built-in chain to the same chain of weir's, deleteCopies keeps only the first rule that has no condition.
//
// Equivalent to: nft delete rule ip TABLE CHAIN handle HANDLE (ip6 for IPv6)
func deleteCopies(r *nftnl.Reader, f conf.Family, name string) error {
	chains, err := rulesOf(r, f, name)
	if err != nil {
		return err
	}
	var b nftnl.Batch
	for _, chain := range builtin[name] {
		stands := map[string]bool{}
		for _, rule := range chains[chain] {
			switch {
			case !conf.OwnChain(rule.target):
			case rule.always && !stands[rule.target]:
				stands[rule.target] = true
			default:
				b.DeleteRule(tableOf(f, name), chain, rule.handle)
			}
		}
	}
	if err := b.Commit(); err != nil {
		return fmt.Errorf("delete copies of weir's rules in table %s: %w", name, err)
	}
	return nil
}
