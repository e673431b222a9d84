package ipset

import (
	"errors"
	"fmt"
	"net/netip"

	"github.com/weir-net/weir/conf"
)

// PodSets implements attachment.PodSets with ipsets: it puts pods' addresses into the sets of this node's pods, and
// removes them.
type PodSets struct{}

// Name returns the name of the set of all pods of the address's family, for messages.
func (PodSets) Name(addr netip.Addr) string { return "ipset " + podsSet(addr) }

func podsSet(addr netip.Addr) string { return conf.FamilyOf(addr).Set(conf.PodsSet) }

// Deny adds the addresses to the sets of all pods, with the pod's name as a comment. It creates missing sets, because
// the agent may not have run since the node started.
//
// Equivalent to: ipset add -exist weir-pods ADDR comment POD (weir-pods6 for IPv6)
func (PodSets) Deny(pod string, addrs ...netip.Addr) error {
	var changes []Change
	for _, a := range addrs {
		changes = append(changes, Change{Set: podsSet(a), Entry: Entry{
			Prefix: netip.PrefixFrom(a, a.BitLen()), Comment: conf.Comment(pod),
		}})
	}
	err := Apply(changes...)
	if !errors.Is(err, ErrNotExist) {
		return err
	}
	if err := createPodsSets(addrs); err != nil {
		return err
	}
	return Apply(changes...)
}

func createPodsSets(addrs []netip.Addr) error {
	h, err := New()
	if err != nil {
		return err
	}
	defer h.Close()
	for _, a := range addrs {
		if err := h.Create(Header{Name: podsSet(a), Type: HashIP, Family: conf.FamilyOf(a)}); err != nil {
			return err
		}
	}
	return nil
}

// Remove removes the addresses from the sets of all pods. If such a set is missing, the error is ErrNotExist.
//
// Equivalent to: ipset del -exist weir-pods ADDR (weir-pods6 for IPv6)
func (PodSets) Remove(addrs ...netip.Addr) error {
	var changes []Change
	for _, a := range addrs {
		e := Entry{Prefix: netip.PrefixFrom(a, a.BitLen())}
		changes = append(changes, Change{Set: podsSet(a), Entry: e, Delete: true})
	}
	return Apply(changes...)
}

// Purge deletes the addresses from all sets that may have entries of pods.
//
// Equivalent to: ipset del -exist SET ENTRY, for each set of pods and each of its entries with one of the addresses
func (PodSets) Purge(addrs ...netip.Addr) error {
	if len(addrs) == 0 {
		return nil
	}
	h, err := New()
	if err != nil {
		return err
	}
	defer h.Close()
	return h.Purge(addrs...)
}

// PurgeEarly does nothing, because Purge never waits for the kernel. With nftables, Purge may wait, and PurgeEarly
// avoids this (see nftnl.PodSets).
func (PodSets) PurgeEarly(...netip.Addr) (later func()) { return func() {} }

// Contains reports whether the address is in the set of all pods. If there is no such set, the error is ErrNotExist.
//
// Equivalent to: ipset test weir-pods ADDR (weir-pods6 for IPv6)
func (PodSets) Contains(addr netip.Addr) (bool, error) {
	return Has(podsSet(addr), addr)
}

// InUse reports whether a rule uses the set of all pods of this address's family. If there is no such set, the error is
// ErrNotExist.
//
// Equivalent to: ipset list -terse weir-pods | grep References (weir-pods6 for IPv6)
func (PodSets) InUse(addr netip.Addr) (bool, error) {
	h, err := New()
	if err != nil {
		return false, err
	}
	defer h.Close()
	return h.InUse(podsSet(addr))
}

// Check returns errors for the addresses that are missing in the set of all pods, that are in no class for ingress, or
// that are in no class for egress.
func (PodSets) Check(addrs ...netip.Addr) error {
	h, err := New()
	if err != nil {
		return err
	}
	defer h.Close()
	headers, err := h.Headers()
	if err != nil {
		return err
	}
	var errs []error
	for _, a := range addrs {
		if in, err := Has(podsSet(a), a); err != nil || !in {
			errs = append(errs, errors.Join(fmt.Errorf("%s is not in ipset %s", a, podsSet(a)), err))
		}
		for _, of := range []struct {
			name string
			kind conf.SetKind
		}{{conf.IngressMap, conf.SetOfIngress}, {conf.EgressMap, conf.SetOfEgress}} {
			if in, err := inClass(headers, of.kind, a); err != nil || !in {
				errs = append(errs, errors.Join(fmt.Errorf(
					"%s is in no class (ipset %s): its new connections are dropped until weir-agent enrols the pod",
					a, of.name), err))
			}
		}
	}
	return errors.Join(errs...)
}

func inClass(headers []Header, kind conf.SetKind, addr netip.Addr) (bool, error) {
	for _, s := range headers {
		if s.Family != conf.FamilyOf(addr) || conf.KindOfSet(s.Name) != kind {
			continue
		}
		// ErrNotExist means that the set was deleted after the headers were read. So the address isn't in the set.
		if in, err := Has(s.Name, addr); in || err != nil && !errors.Is(err, ErrNotExist) {
			return in, err
		}
	}
	return false, nil
}

// Addresses returns the addresses in all sets that contain only pods of this node.
//
// Equivalent to: ipset list SET, for weir-pods, for weir-in and weir-eg, and for the class sets; likewise for IPv6
func (PodSets) Addresses() ([]netip.Addr, error) {
	h, err := New()
	if err != nil {
		return nil, err
	}
	defer h.Close()
	headers, err := h.Headers()
	if err != nil {
		return nil, err
	}
	var all []netip.Addr
	for _, s := range headers {
		if !onlyThisNodes(s) {
			continue
		}
		set, err := h.List(s.Name)
		if errors.Is(err, ErrNotExist) { // the set was deleted after the headers were read
			continue
		}
		if err != nil {
			return nil, err
		}
		for _, e := range set.Entries {
			all = append(all, e.Prefix.Addr())
		}
	}
	return all, nil
}

func onlyThisNodes(s Header) bool {
	switch conf.KindOfSet(s.Name) {
	case conf.SetOfPods, conf.SetOfIngress, conf.SetOfEgress:
		return s.Type == HashIP
	}
	return false
}
