package main

import (
	"github.com/weir-net/weir/agentapi"
	"github.com/weir-net/weir/netfilter/ipset"
)

func fromKernel(noAgent error) (*agentapi.Status, error) {
	s := &agentapi.Status{Errors: []string{noAgent.Error() + "; the kernel goes on enforcing what it holds"}}
	pods, err := recorded()
	if err != nil {
		s.Errors = append(s.Errors, err.Error())
	}
	s.Pods = pods
	sets, err := ipset.New()
	if err != nil {
		return nil, err
	}
	defer sets.Close()
	headers, err := sets.Headers()
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
