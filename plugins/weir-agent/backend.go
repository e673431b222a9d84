package main

import (
	"context"
	"errors"
	"fmt"

	"github.com/vishvananda/netlink/nl"
	"golang.org/x/sys/unix"

	"github.com/weir-net/weir/agent"
	"github.com/weir-net/weir/conf"
	"github.com/weir-net/weir/netfilter/iptables"
	"github.com/weir-net/weir/netfilter/nftables"
)

var (
	_ agent.Backend = (*iptables.Driver)(nil)
	_ agent.Backend = (*nftables.Driver)(nil)
)

// automatic is the value of the flag --backend that lets the agent choose the backend itself.
const automatic = "auto"

func setBackend(o *agent.Options, name string) error {
	switch o.Backend = conf.Backend(name); o.Backend {
	case automatic:
		o.Backend = ""
	case conf.Iptables, conf.Nftables:
	default:
		return fmt.Errorf("--backend %s: must be %s, iptables or nftables", name, automatic)
	}
	if o.SettleChoice <= 0 {
		return fmt.Errorf("--backend-settle %v: must be more than 0", o.SettleChoice)
	}
	o.Backends = []agent.BackendKind{
		{
			Name:   conf.Iptables,
			New:    func(ctx context.Context) (agent.Backend, error) { return iptables.New(ctx) },
			Remove: removeIptables, Lacks: iptables.Lacks, KubeProxy: iptables.KubeProxy,
		},
		{
			Name:   conf.Nftables,
			New:    func(context.Context) (agent.Backend, error) { return newNftables(), nil },
			Remove: removeNftables, Lacks: nftables.Lacks, KubeProxy: nftables.KubeProxy,
		},
	}
	return nil
}

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

// removeIptablesAtLast repeats removeIptables while a set is in use. It is for a command that runs only once. A set
// stays in use until the kernel has freed the deleted rules that used it. On a busy machine, this may take longer than
// removeIptables waits (one second).
func removeIptablesAtLast(ctx context.Context) (err error) {
	for range 10 {
		if err = removeIptables(ctx); !errors.Is(err, nl.IPSetError(nl.IPSET_ERR_BUSY)) {
			break
		}
	}
	return err
}

func newNftables() *nftables.Driver {
	d := nftables.New()
	d.Legacy = &iptables.LegacyForward{}
	return d
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
