package main

import (
	"context"
	"errors"
	"fmt"

	"github.com/vishvananda/netlink/nl"
	"golang.org/x/sys/unix"

	"github.com/weir-net/weir/agent"
	"github.com/weir-net/weir/endpoint"
	"github.com/weir-net/weir/netfilter/iptables"
	"github.com/weir-net/weir/netfilter/nftables"
)

var (
	_ agent.Backend = (*iptables.Driver)(nil)
	_ agent.Backend = (*nftables.Driver)(nil)
)

func setBackend(o *agent.Options, name string) error {
	switch o.BackendName = endpoint.Backend(name); o.BackendName {
	case endpoint.Iptables:
		o.NewBackend = func(ctx context.Context) (agent.Backend, error) { return iptables.New(ctx) }
		o.RemoveOthers = removeNftables
	case endpoint.Nftables:
		o.NewBackend = func(context.Context) (agent.Backend, error) { return nftables.New(), nil }
		o.RemoveOthers = removeIptables
	default:
		return fmt.Errorf("--backend %s: must be iptables or nftables", name)
	}
	return nil
}

// A kernel without ipset or nf_tables has nothing to remove.
func removeIptables(ctx context.Context) error {
	d, err := iptables.New(ctx)
	if err != nil {
		return err
	}
	defer d.Close()
	err = d.Remove(ctx)
	if errors.Is(err, unix.EINVAL) || errors.Is(err, nl.IPSetError(nl.IPSET_ERR_PROTOCOL)) {
		return nil
	}
	return err
}

func removeNftables(ctx context.Context) error {
	d := nftables.New()
	defer d.Close()
	err := d.Remove(ctx)
	if errors.Is(err, unix.EINVAL) {
		return nil
	}
	return err
}
