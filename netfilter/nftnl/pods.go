package nftnl

import (
	"errors"
	"fmt"
	"net/netip"

	"golang.org/x/sys/unix"

	"github.com/weir-net/weir/conf"

	netattrs "github.com/weir-net/weir/internal/attrs"
)

// PodSets implements attachment.PodSets with the sets of weir's tables "ip weir" and "ip6 weir".
type PodSets struct{}

func WeirTable(f conf.Family) Table {
	return Table{Family: [...]uint8{conf.IPv4: unix.NFPROTO_IPV4, conf.IPv6: unix.NFPROTO_IPV6}[f], Name: "weir"}
}

// PodSets and the backend nftables give weir's tables and the sets of all pods the same comments.
const (
	WeirTableComment = "weir: network policies of this node's pods"
	PodsComment      = "weir: this node's pods"
)

func podsSet(f conf.Family) Set {
	return Set{Name: f.Set(conf.PodsSet), Layout: Address, Comment: PodsComment}
}

func element(a netip.Addr) Element { return Element{Prefix: netip.PrefixFrom(a, a.BitLen())} }

// Name returns the name of the set of all pods of the address's family. It is meant for messages.
func (PodSets) Name(addr netip.Addr) string {
	return "set " + podsSet(conf.FamilyOf(addr)).Name + " of nftables"
}

// Deny adds the addresses to the sets of all pods, with the pod's name as a comment. weir's rules drop new connections
// of addresses that are in such a set and in no class. Deny creates missing sets, because the agent may not have run
// since the node started.
//
// Equivalent to: nft add element ip weir weir-pods { ADDR comment "POD" } (ip6 and weir-pods6 for IPv6)
func (PodSets) Deny(pod string, addrs ...netip.Addr) error {
	err := denyBatch(pod, addrs, false).Commit()
	if errors.Is(err, unix.ENOENT) {
		err = denyBatch(pod, addrs, true).Commit()
	}
	return wrap(err, "add %v to the sets of all pods of nftables", addrs)
}

func denyBatch(pod string, addrs []netip.Addr, missing bool) *Batch {
	b := &Batch{}
	for _, a := range addrs {
		t, s := WeirTable(conf.FamilyOf(a)), podsSet(conf.FamilyOf(a))
		if missing {
			b.AddTable(t, WeirTableComment)
			b.AddSet(t, s, nil)
		}
		e := element(a)
		e.Comment = Comment(conf.Comment(pod))
		b.AddElements(t, s, []Element{e}, nil, false)
	}
	return b
}

// Remove removes the addresses from the sets of all pods.
//
// Equivalent to: nft delete element ip weir weir-pods { ADDR } (ip6 and weir-pods6 for IPv6)
func (PodSets) Remove(addrs ...netip.Addr) error {
	var errs []error
	var s Sender
	defer s.Close()
	// Each address has its own transaction, because the kernel refuses a whole transaction if an element is missing.
	for _, a := range addrs {
		var b Batch
		b.DeleteElements(WeirTable(conf.FamilyOf(a)), podsSet(conf.FamilyOf(a)), []Element{element(a)})
		if err := s.Commit(&b); err != nil && !errors.Is(err, unix.ENOENT) {
			errs = append(errs, fmt.Errorf("take %s out of set %s: %w", a, podsSet(conf.FamilyOf(a)).Name, err))
		}
	}
	return errors.Join(errs...)
}

// triesOfAPurge is how often Purge tries. A try fails if the agent deletes some of the addresses at the same time.
const triesOfAPurge = 5

// Purge deletes the addresses from all sets and maps that contain pods.
//
// Equivalent to, for each set and map (ip6 for IPv6): nft delete element ip weir SET { ADDR }
func (PodSets) Purge(addrs ...netip.Addr) error {
	r, s := NewReader(), &Sender{}
	defer r.Close()
	defer s.Close()
	return purge(r, s, addrs)
}

// PurgeEarly deletes the addresses like Purge, but doesn't wait until the kernel has freed the elements. It is for a
// process that then deletes the pod's link, and after that calls Purge. When the link is deleted, the caller must call
// the returned function, which closes the sockets. By then the kernel has freed the elements, so closing needn't wait
// (see Sender). PurgeEarly ignores errors, because Purge deletes the addresses that are left.
func (PodSets) PurgeEarly(addrs ...netip.Addr) (later func()) {
	r, s := NewReader(), &Sender{}
	_ = purge(r, s, addrs)
	return func() {
		s.Close()
		r.Close()
	}
}

func purge(r *Reader, s *Sender, addrs []netip.Addr) error {
	var errs []error
	for _, f := range conf.Families {
		var own []netip.Addr
		for _, a := range addrs {
			if conf.FamilyOf(a) == f {
				own = append(own, a)
			}
		}
		var err error
		for range triesOfAPurge {
			if err = r.purge(s, f, own); !errors.Is(err, unix.ENOENT) {
				break
			}
		}
		errs = append(errs, wrap(err, "take %v out of the sets of nftables", own))
	}
	return errors.Join(errs...)
}

func (r *Reader) purge(with *Sender, f conf.Family, addrs []netip.Addr) error {
	if len(addrs) == 0 {
		return nil
	}
	t := WeirTable(f)
	sets, err := r.Sets(t)
	if IsMissing(err) {
		return nil
	}
	if err != nil {
		return err
	}
	var b Batch
	var questions []Question
	for _, s := range sets {
		switch {
		case !s.Known || !conf.KindOfSet(s.Name).MayHavePods():
		case s.Layout == Network || s.Layout == Link || s.Layout == Port:
		case s.Layout == AddressPort || s.Layout == AddressLink: // such a set may have several elements for one address
			found, err := r.elementsOf(t, s.Set, addrs)
			if err != nil {
				return err
			}
			b.DeleteElements(t, s.Set, found)
		default:
			for _, a := range addrs {
				questions = append(questions, Question{t, s.Set, element(a)})
			}
		}
	}
	found, err := r.Find(questions)
	if err != nil {
		return err
	}
	for i, q := range questions {
		if found[i] != nil {
			b.DeleteElements(t, q.Set, []Element{*found[i]})
		}
	}
	return with.Commit(&b)
}

func (r *Reader) elementsOf(t Table, s Set, addrs []netip.Addr) (found []Element, err error) {
	is := map[netip.Addr]bool{}
	for _, a := range addrs {
		is[a] = true
	}
	_, err = r.Each(t, s, func() { found = nil }, func(e Element) bool {
		if is[e.Prefix.Addr()] {
			found = append(found, e)
		}
		return true
	})
	if errors.Is(err, ErrNotExist) { // the set was deleted after it was listed
		return nil, nil
	}
	return found, err
}

// Contains reports whether the address is in the set of all pods. It returns false if there is no such set.
//
// Equivalent to: nft get element ip weir weir-pods { ADDR } (ip6 and weir-pods6 for IPv6)
func (PodSets) Contains(addr netip.Addr) (bool, error) { return in(podsSet(conf.FamilyOf(addr)), addr) }

func in(s Set, addr netip.Addr) (bool, error) {
	found, err := Find([]Question{{WeirTable(conf.FamilyOf(addr)), s, element(addr)}})
	return err == nil && found[0] != nil, err
}

// InUse reports whether a rule uses the set of all pods of this address's family.
//
// Equivalent to: nft list table ip weir | grep @weir-pods (ip6 and weir-pods6 for IPv6)
func (PodSets) InUse(addr netip.Addr) (used bool, err error) {
	r := NewReader()
	defer r.Close()
	t, name := WeirTable(conf.FamilyOf(addr)), podsSet(conf.FamilyOf(addr)).Name
	err = r.dumpRules(t, "", func() { used = false }, func(heard heardRule) bool {
		used = heard.expressions.lookUp(name)
		return !used
	})
	if errors.Is(err, ErrNotExist) {
		return false, nil
	}
	return used, wrap(err, "look for rules with set %s", name)
}

func (e Expressions) lookUp(set string) bool {
	for name, values := range e.All() {
		if string(name) != "lookup" {
			continue
		}
		for kind, value := range netattrs.In(values) {
			if kind == unix.NFTA_LOOKUP_SET && netattrs.Text(value) == set {
				return true
			}
		}
	}
	return false
}

// Check returns an error for each address that is missing in the set of all pods, or in one of the maps of classes.
func (PodSets) Check(addrs ...netip.Addr) error {
	var errs []error
	for _, a := range addrs {
		f := conf.FamilyOf(a)
		if found, err := in(podsSet(f), a); err != nil || !found {
			errs = append(errs, errors.Join(fmt.Errorf("%s is not in set %s of nftables", a, podsSet(f).Name), err))
		}
		for _, name := range []string{conf.IngressMap, conf.EgressMap} {
			if found, err := in(Set{Name: f.Set(name), Layout: Verdicts}, a); err != nil || !found {
				errs = append(errs, errors.Join(fmt.Errorf(
					"%s is in no class (map %s of nftables): its new connections are dropped until weir-agent enrols the pod",
					a, f.Set(name)), err))
			}
		}
	}
	return errors.Join(errs...)
}

// Addresses returns the addresses in the set of all pods and in the maps of classes.
//
// Equivalent to: nft list set ip weir weir-pods; nft list map ip weir weir-in; nft list map ip weir weir-eg (ip6 etc.)
func (PodSets) Addresses() (all []netip.Addr, err error) {
	r := NewReader()
	defer r.Close()
	for _, f := range conf.Families {
		for _, s := range []Set{
			podsSet(f), {Name: f.Set(conf.IngressMap), Layout: Verdicts}, {Name: f.Set(conf.EgressMap), Layout: Verdicts},
		} {
			var some []netip.Addr
			_, err := r.Each(WeirTable(f), s, func() { some = nil }, func(e Element) bool {
				some = append(some, e.Prefix.Addr())
				return true
			})
			if err != nil && !IsMissing(err) {
				return nil, err
			}
			all = append(all, some...)
		}
	}
	return all, nil
}
