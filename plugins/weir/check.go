package main

import (
	"errors"
	"fmt"
	"io/fs"
	"net"

	"github.com/containernetworking/cni/pkg/skel"
	"github.com/containernetworking/cni/pkg/types"
	"github.com/containernetworking/plugins/pkg/netlinksafe"
	"golang.org/x/sys/unix"

	"github.com/weir-net/weir/bridge"
	"github.com/weir-net/weir/conf"
	"github.com/weir-net/weir/endpoint"
	"github.com/weir-net/weir/policy/ipset"
)

// check verifies that everything ADD made is there and right, and names what isn't.
func check(args *skel.CmdArgs) error {
	c, err := conf.Parse(args.StdinData)
	if err != nil {
		return err
	}
	id := endpoint.ID(args.ContainerID, args.IfName)
	e, err := endpoint.Load(id)
	if errors.Is(err, fs.ErrNotExist) {
		return types.NewError(types.ErrUnknownContainer, fmt.Sprintf("there is no endpoint record %s", id), "")
	}
	if err != nil {
		return ioError("check", err)
	}
	fd, err := openNetns(args.Netns)
	if err != nil {
		return err
	}
	defer func() { _ = fd.Close() }()
	if e.Chained {
		if err := errors.Join(checkChained(e, c), checkPodsSet(e)); err != nil {
			return ioError("check", err)
		}
		return nil
	}
	links, err := netlinksafe.NewHandle(unix.NETLINK_ROUTE)
	if err != nil {
		return ioError("open netlink", err)
	}
	defer links.Close()
	mac, err := net.ParseMAC(e.MAC)
	if err != nil {
		return ioError("check", fmt.Errorf("endpoint record %s: %w", id, err))
	}
	p := bridge.Port{HostIf: e.HostIf, IfName: e.IfName, Netns: fd, MAC: mac, Addresses: e.Addresses, Routes: c.Routes}
	if err := errors.Join(bridge.Check(links, p), checkGuard(p), checkPodsSet(e)); err != nil {
		return ioError("check", err)
	}
	return nil
}

func checkGuard(p bridge.Port) error {
	ok, err := bridge.Allowed(p.Sender())
	if err == nil && !ok {
		return fmt.Errorf("the spoof guard does not let %s send as %s", p.HostIf, p.MAC)
	}
	return err
}

func checkPodsSet(e *endpoint.Endpoint) error {
	if e.Enforcement == conf.Off {
		return nil
	}
	sets, err := ipset.Open()
	if err != nil {
		return err
	}
	defer sets.Close()
	for _, a := range e.Addresses {
		set := conf.FamilyOf(a.Addr).Set(conf.PodsSet)
		if in, err := sets.Has(set, a.Addr); err != nil || !in {
			return errors.Join(fmt.Errorf("%s is not in ipset %s", a.Addr, set), err)
		}
	}
	return nil
}
