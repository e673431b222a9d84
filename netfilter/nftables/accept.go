package nftables

import (
	"context"
	"errors"
	"fmt"
	"slices"

	"golang.org/x/sys/unix"

	"github.com/weir-net/weir/conf"
	"github.com/weir-net/weir/netfilter"
	"github.com/weir-net/weir/netfilter/nftnl"
	"github.com/weir-net/weir/policy/ruleset"
)

// This file writes weir's rules into the chain FORWARD of iptables-nft's tables "ip filter" and "ip6 filter", if the
// chain exists. Docker and many operating systems make this chain drop packets by default. So the chain would also drop
// packets that weir's own chains allow. weir's rules in the chain accept these packets. If the chain FORWARD of
// iptables-legacy drops packets, it gets the same rules (Driver.Legacy). Other chains that drop such packets are only
// reported.

const forwardChain = "FORWARD"

var filters = [len(conf.Families)]nftnl.Table{
	conf.IPv4: {Family: unix.NFPROTO_IPV4, Name: "filter"}, conf.IPv6: {Family: unix.NFPROTO_IPV6, Name: "filter"},
}

// concernsAccept reports whether the change is in a chain FORWARD of iptables-nft's tables filter, or is a change of
// such a table itself. Such a change may have removed weir's rules.
func concernsAccept(c nftnl.Change) bool {
	return c.Table == filters[0].Name && (c.Family == unix.NFPROTO_IPV4 || c.Family == unix.NFPROTO_IPV6) &&
		(c.Chain == "" || c.Chain == forwardChain)
}

// accepting is what the driver knows of one family's chain FORWARD.
type accepting struct {
	known bool // false if the driver must check the chain again
	rules []nftnl.Sum
	wrote bool     // true if the driver has changed weir's rules in the chain
	drops []string // a sentence for each chain of another program that drops pods' packets
}

// acceptRules returns weir's rules for the chain FORWARD. The rules can't look up weir's sets, because these are in
// another table. So there are two rules for each address of a chained pod.
//
// Equivalent to: iptables-nft -A FORWARD -i weir0 -m comment --comment "weir: …" -j ACCEPT, and the same with -o
// weir0, -s ADDRESS and -d ADDRESS
func acceptRules(want *table) (rules []nftnl.Rule) {
	for _, r := range accepted(want) {
		r.Action = ruleset.Accept
		s := &statement{family: want.family}
		s.shortLink(unix.NFT_META_IIFNAME, r.In)
		s.shortLink(unix.NFT_META_OIFNAME, r.Out)
		s.address("saddr", 0, r.Src)
		s.address("daddr", 1, r.Dst)
		s.e = s.e.Counter()
		s.act(rule{Rule: r})
		rules = append(rules, nftnl.Rule{Expressions: s.e, Comment: netfilter.AcceptComment})
	}
	return rules
}

// accepted returns rules whose conditions match the packets that the chain FORWARD must accept.
func accepted(want *table) []ruleset.Rule {
	var chained ruleset.Entries
	if s, ok := want.find(want.family.Set(conf.ChainedSet)); ok {
		chained = s.entries
	}
	return netfilter.Accepted(chained)
}

// shortLink compares a link's name in the form that iptables-nft uses: the name and one zero byte, without padding.
// Otherwise iptables-nft could not print the rule.
func (s *statement) shortLink(key uint32, name string) {
	if name != "" {
		s.e = s.e.Meta(key, 0).Compare(unix.NFT_CMP_EQ, append([]byte(name), 0))
	}
}

// keepAccepting makes sure that the chain FORWARD of each of these families has weir's wanted rules, and no other
// rules of weir's. If the parameter want has no table for a family, this family needs no rules. repaired is true if
// the wanted rules are the same as before, but the driver has changed weir's rules again: another program has changed
// the chain. Errors appear only in the notes: without weir's rules, the chain may drop pods' packets, but all denied
// packets stay denied.
func (d *Driver) keepAccepting(ctx context.Context, want lowered, families []conf.Family) (repaired bool) {
	for _, f := range families {
		var rules []nftnl.Rule
		var sums []nftnl.Sum
		var inLegacy []ruleset.Rule
		if want[f] != nil {
			rules, inLegacy = acceptRules(want[f]), accepted(want[f])
		}
		for _, r := range rules {
			sums = append(sums, r.Sum())
		}
		a := &d.accepting[f]
		same := slices.Equal(a.rules, sums)
		if d.Legacy != nil {
			lost := d.Legacy.Keep(ctx, f, inLegacy)
			repaired = repaired || lost
		}
		if a.known && same {
			continue
		}
		changed, err := d.accept(f, rules)
		repaired = repaired || changed && a.wrote && same
		a.rules, a.wrote, a.drops = sums, a.wrote || changed, nil
		if err == nil && want[f] != nil {
			a.drops, err = d.droppers(f)
		}
		if a.known = err == nil; err != nil {
			a.drops = []string{err.Error()}
		}
	}
	return repaired
}

func (d *Driver) forgetAccepting() {
	for f := range d.accepting {
		d.accepting[f].known = false
	}
}

// forgetLegacy makes the next Apply check iptables-legacy's rules: the kernel reports no changes of these rules.
func (d *Driver) forgetLegacy() {
	if d.Legacy != nil {
		d.Legacy.Forget()
	}
}

// accept puts weir's rules into the family's chain FORWARD: before the rules that refuse all new connections, or at the
// end if there are no such rules.
func (d *Driver) accept(f conf.Family, rules []nftnl.Rule) (changed bool, err error) {
	for range triesOfAChange {
		var b nftnl.Batch
		if err = d.planAccept(&b, f, rules); err != nil || b.Empty() {
			return false, err
		}
		if err = d.commit(&b); !errors.As(err, new(*nftnl.RefusedError)) {
			return err == nil, err
		}
	}
	return false, fmt.Errorf("accept packets of pods in chain %s of table filter: %w", forwardChain, err)
}

func (d *Driver) planAccept(b *nftnl.Batch, f conf.Family, rules []nftnl.Rule) error {
	o := &others{reader: d.reader, table: filters[f]}
	all, err := d.reader.List(filters[f], forwardChain)
	if nftnl.IsMissing(err) {
		return nil
	}
	if err != nil {
		return err
	}
	var own, foreign []nftnl.Listed
	first := 0 // how many rules of other programs precede weir's first rule
	for _, r := range all {
		if commentOf(r) != netfilter.AcceptComment {
			foreign = append(foreign, r)
			continue
		}
		if len(own) == 0 {
			first = len(foreign)
		}
		own = append(own, r)
	}
	to, err := o.refusesAt(foreign)
	if err != nil {
		return err
	}
	together := len(own) > 0 && all[min(first+len(own), len(all))-1].Handle == own[len(own)-1].Handle
	if len(own) == len(rules) && (len(own) == 0 || together && first == to) &&
		slices.EqualFunc(own, rules, func(a nftnl.Listed, b nftnl.Rule) bool { return a.Sum() == b.Sum() }) {
		return nil
	}
	for _, r := range rules {
		if to < len(foreign) {
			b.InsertRule(filters[f], forwardChain, r, foreign[to].Handle)
		} else {
			b.AddRule(filters[f], forwardChain, r, nil)
		}
	}
	for _, r := range own {
		b.DeleteRule(filters[f], forwardChain, r.Handle)
	}
	return nil
}

// droppers returns a sentence for each chain of another program that may drop forwarded packets. It leaves out chains
// whose table has a rule about weir0, because the table's owner has already decided about pods' packets.
func (d *Driver) droppers(f conf.Family) (all []string, err error) {
	chains, err := d.reader.BaseChains(unix.NF_INET_FORWARD)
	if err != nil {
		return nil, err
	}
	for _, c := range chains {
		own := c.Table == tables[f] || c.Table == filters[f] && c.Name == forwardChain
		if own || c.Family != tables[f].Family && (c.Family != unix.NFPROTO_INET || f != conf.IPv4) {
			continue
		}
		o := &others{reader: d.reader, table: c.Table}
		rules, err := o.rules(c.Name)
		if err != nil {
			return nil, err
		}
		at, err := o.refusesAt(rules)
		if err != nil {
			return nil, err
		}
		if c.Accepts && at == len(rules) {
			continue
		}
		named, err := d.reader.Mentions(c.Table, []byte(conf.Bridge+"\x00"))
		if err != nil {
			return nil, err
		}
		if named {
			continue
		}
		all = append(all, fmt.Sprintf("chain %s of the nftables table %s (owner: %s) "+
			"drops forwarded packets of pods that no rule of it accepts: accept them with: %s",
			c.Name, c.Table, d.ownerOf(c.Table), acceptHint(c)))
	}
	return all, nil
}

func acceptHint(c nftnl.BaseChain) string {
	if c.Table.Name == "firewalld" {
		return fmt.Sprintf("firewall-cmd --permanent --zone=trusted --add-interface=%s && firewall-cmd --reload",
			conf.Bridge)
	}
	at := fmt.Sprintf("nft insert rule %s %s", c.Table, c.Name)
	return fmt.Sprintf("%s iifname %s accept; %s oifname %s accept", at, conf.Bridge, at, conf.Bridge)
}

func (d *Driver) notes() (all []netfilter.Note) {
	for _, a := range d.accepting {
		for _, words := range a.drops {
			all = append(all, netfilter.Note{About: "host firewall", Message: words})
		}
	}
	if d.Legacy != nil {
		all = append(all, d.Legacy.Notes()...)
	}
	return append(all, d.lowering.lacks.notes()...)
}

func (d *Driver) removeAccepting() error {
	var errs []error
	for _, f := range conf.Families {
		_, err := d.accept(f, nil)
		errs = append(errs, err)
	}
	d.accepting = [len(conf.Families)]accepting{}
	return errors.Join(errs...)
}
