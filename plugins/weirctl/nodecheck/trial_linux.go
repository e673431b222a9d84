package nodecheck

import (
	"context"
	"errors"
	"strings"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/weir-net/weir/bridge"
	"github.com/weir-net/weir/conf"
	"github.com/weir-net/weir/netfilter/ipset"
	"github.com/weir-net/weir/netfilter/nflog"
	"github.com/weir-net/weir/netfilter/nftables"
	"github.com/weir-net/weir/netfilter/probe"
)

// try tries each feature in a new network namespace. The kernel removes the namespace and its content afterwards.
//
// Equivalent to: unshare --net
func (f *Facts) try(ctx context.Context) {
	err := probe.InScratch(func() { f.tryAll(ctx) })
	switch {
	case errors.As(err, new(*probe.StuckError)):
		f.Unread = append(f.Unread, err.Error())
	case err != nil:
		f.NoTrials = err.Error()
	}
}

func (f *Facts) tryAll(ctx context.Context) {
	for _, t := range []struct {
		of  Feature
		try func() error
	}{
		{Bridge, tryBridge},
		{Veth, tryVeth},
		{Tunnel, tryTunnel},
		{Sets, trySets},
		{Marks, tryMarks},
		{Guard, tryGuard},
		{Conntrack, tryConntrack},
		{LogGroup, tryLogGroup},
		{Native, func() error { return tryNative(ctx) }},
	} {
		f.tried(t.of, t.try())
	}
	f.tryXT()
}

func (f *Facts) tried(of Feature, err error) {
	t := Trial{Feature: of}
	if err != nil {
		t.Error = err.Error()
	}
	f.Trials = append(f.Trials, t)
}

// Equivalent to:
//
//	ip link add weir0 type bridge; ip link add port type veth peer name pod
//	ip link set port master weir0; bridge link set dev port isolated on
func tryBridge() error {
	attrs := netlink.NewLinkAttrs()
	attrs.Name = conf.Bridge
	if err := netlink.LinkAdd(&netlink.Bridge{LinkAttrs: attrs}); err != nil {
		return err
	}
	port := netlink.NewLinkAttrs()
	port.Name = "port"
	pair := &netlink.Veth{LinkAttrs: port, PeerName: "pod"}
	if err := netlink.LinkAdd(pair); err != nil {
		return nil //nolint:nilerr // tryVeth reports that the kernel has no veth
	}
	of, err := netlink.LinkByName(conf.Bridge)
	if err != nil {
		return err
	}
	return errors.Join(netlink.LinkSetMaster(pair, of), netlink.LinkSetIsolated(pair, true))
}

// Equivalent to: ip link add a type veth peer name b
func tryVeth() error {
	attrs := netlink.NewLinkAttrs()
	attrs.Name = "a"
	return netlink.LinkAdd(&netlink.Veth{LinkAttrs: attrs, PeerName: "b"})
}

// Equivalent to: ip link add weir-vxlan type vxlan id 88 dstport 4789 nolearning
func tryTunnel() error {
	attrs := netlink.NewLinkAttrs()
	attrs.Name = conf.Tunnel
	return netlink.LinkAdd(&netlink.Vxlan{LinkAttrs: attrs, VxlanId: conf.OverlayVNI, Port: conf.OverlayPort})
}

func trySets() error {
	h, err := ipset.New()
	if err != nil {
		return err
	}
	defer h.Close()
	for _, kind := range []string{
		ipset.HashIP, ipset.HashNet, ipset.HashIPPort, ipset.HashNetIface, ipset.BitmapPort,
	} {
		for _, family := range conf.Families {
			if err := h.Create(ipset.Header{Name: family.Set(kind), Type: kind, Family: family}); err != nil {
				return err
			}
		}
	}
	return nil
}

func tryMarks() error {
	h, err := ipset.New()
	if err != nil {
		return err
	}
	defer h.Close()
	return h.Create(ipset.Header{Name: conf.TrialSet, Type: ipset.HashIP, Marks: true})
}

func tryNative(ctx context.Context) error {
	lacks, err := nftables.Lacks(ctx)
	if len(lacks) > 0 {
		err = errors.Join(errors.New(strings.Join(lacks, "; ")), err)
	}
	return err
}

func tryGuard() error {
	_, _, err := bridge.RepairGuard(func() ([]bridge.Sender, error) { return nil, nil })
	return err
}

// Equivalent to: conntrack -L
func tryConntrack() error {
	_, err := netlink.ConntrackTableList(netlink.ConntrackTable, unix.AF_INET)
	return err
}

func tryLogGroup() error {
	r, err := nflog.Open(conf.LogGroup)
	if err != nil {
		return err
	}
	return r.Close()
}
