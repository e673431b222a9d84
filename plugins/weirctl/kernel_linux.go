package main

import (
	"errors"
	"maps"
	"slices"

	"github.com/weir-net/weir/agentapi"
	"github.com/weir-net/weir/conf"
	"github.com/weir-net/weir/netfilter/ipset"
	"github.com/weir-net/weir/netfilter/nftnl"
)

func fromKernel(noAgent error) (*agentapi.Status, error) {
	s := &agentapi.Status{Errors: []string{noAgent.Error() + "; rules of weir that are in the kernel stay in force"}}
	pods, err := recorded()
	if err != nil {
		s.Errors = append(s.Errors, err.Error())
	}
	s.Pods = pods
	native, err := nativeSets()
	if err != nil {
		return nil, err
	}
	s.Sets = native
	sets, err := ipset.New()
	if err != nil {
		return nil, err
	}
	defer sets.Close()
	headers, err := sets.Headers()
	if err != nil && len(native) > 0 { // a node with nftables may have no ipset
		return s, nil
	}
	if err != nil {
		return nil, err
	}
	for _, h := range headers {
		set, err := sets.List(h.Name)
		if err != nil {
			return nil, err
		}
		s.Sets = append(s.Sets, agentapi.SetStatus{Name: h.Name, Type: set.Type, Entries: len(set.Entries)})
	}
	return s, nil
}

// nativeSets returns the sets and maps of the backend nftables, IPv4's first, each family's in the order of their
// names.
func nativeSets() (all []agentapi.SetStatus, err error) {
	r := nftnl.NewReader()
	defer r.Close()
	for _, f := range conf.Families {
		t := nftnl.WeirTable(f)
		sets, err := r.Sets(t)
		if nftnl.IsMissing(err) {
			continue
		}
		if err != nil {
			return nil, err
		}
		for _, name := range slices.Sorted(maps.Keys(sets)) {
			set, n := sets[name], 0
			_, err := r.Each(t, set.Set, func() { n = 0 }, func(nftnl.Element) bool { n++; return true })
			if err != nil && !errors.Is(err, nftnl.ErrNotExist) { // the set may be deleted meanwhile
				return nil, err
			}
			all = append(all, agentapi.SetStatus{Name: name, Type: set.Layout.In(f), Entries: n})
		}
	}
	return all, nil
}
