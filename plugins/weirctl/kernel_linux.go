package main

import (
	"errors"
	"maps"
	"os"
	"slices"

	"github.com/weir-net/weir/agentapi"
	"github.com/weir-net/weir/conf"
	"github.com/weir-net/weir/netfilter/ipset"
	"github.com/weir-net/weir/netfilter/nftnl"
)

// fromKernel returns what can be known of the status without an agent: the attached pods, and the sets in the
// kernel. It fails only if the user may not read the sets. Otherwise, the status says what can't be read.
func fromKernel(noAgent error) (*agentapi.Status, error) {
	s := &agentapi.Status{Errors: []string{noAgent.Error() + "; rules of weir that are in the kernel stay in force"}}
	pods, err := recorded()
	if err != nil {
		s.Errors = append(s.Errors, err.Error())
	}
	s.Pods = pods
	s.Sets, err = setsInKernel()
	if errors.Is(err, os.ErrPermission) && os.Geteuid() > 0 {
		return nil, err
	}
	if err != nil {
		s.Errors = append(s.Errors, "the sets in the kernel can't be read: "+err.Error())
	}
	return s, nil
}

func setsInKernel() ([]agentapi.SetStatus, error) {
	all, err := nativeSets()
	if err != nil {
		return nil, err
	}
	sets, err := ipset.New()
	if err != nil {
		return all, err
	}
	defer sets.Close()
	headers, err := sets.Headers()
	if err != nil && len(all) > 0 { // a node with nftables may have no ipset
		return all, nil
	}
	if err != nil {
		return nil, err
	}
	for _, h := range headers {
		set, err := sets.List(h.Name)
		if err != nil {
			return all, err
		}
		all = append(all, agentapi.SetStatus{Name: h.Name, Type: set.Type, Entries: len(set.Entries)})
	}
	return all, nil
}

// nativeSets returns the sets and maps of the backend nftables: first those for IPv4, then those for IPv6, each sorted
// by name.
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
