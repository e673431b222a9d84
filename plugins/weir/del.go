package main

import (
	"errors"
	"fmt"
	"io/fs"
	"net"
	"net/netip"

	"github.com/containernetworking/cni/pkg/skel"
	"github.com/containernetworking/cni/pkg/types"
	"github.com/containernetworking/plugins/pkg/netlinksafe"
	"golang.org/x/sys/unix"

	"github.com/weir-net/weir/bridge"
	"github.com/weir-net/weir/endpoint"
	"github.com/weir-net/weir/ipam"
	"github.com/weir-net/weir/policy/conntrack"
	"github.com/weir-net/weir/policy/ipset"
)

// del takes the attachment away. It goes by the endpoint record alone, so it needs neither the namespace nor the agent
// nor a configuration that is still valid, and it can be repeated. Step by step nothing opens: the port is forbidden to
// send, the addresses leave every set, and only what nothing refers to any more is freed.
func del(args *skel.CmdArgs) error {
	id := endpoint.ID(args.ContainerID, args.IfName)
	if err := endpoint.CheckID(id); err != nil {
		return types.NewError(types.ErrInvalidEnvironmentVariables, fmt.Sprintf("CNI_CONTAINERID, CNI_IFNAME: %v", err), "")
	}
	links, err := netlinksafe.NewHandle(unix.NETLINK_ROUTE)
	if err != nil {
		return ioError("open netlink", err)
	}
	defer links.Close()
	e, err := endpoint.Ending(id)
	if errors.Is(err, fs.ErrNotExist) {
		// Nothing is made before the record and the record goes last, so there is nothing left but perhaps a link of a
		// life before the record was lost.
		if err := bridge.Remove(links, bridge.PortName(id), nil); err != nil {
			return ioError("delete the pod's link", err)
		}
		return nil
	}
	if err != nil {
		return ioError("delete", err)
	}
	if err := detach(links, e); err != nil {
		return ioError("delete", err)
	}
	return nil
}

// detach takes the attachment away. What goes by addresses leaves out those that another holds by now: whoever detached
// it before has come as far as freeing them. The lock keeps others from taking them meanwhile.
func detach(links netlinksafe.Handle, e *endpoint.Endpoint) error {
	unlock, err := endpoint.Lock()
	if err != nil {
		return err
	}
	defer unlock()
	var addresses []endpoint.Address
	var addrs []netip.Addr
	for _, a := range e.Addresses {
		holder, err := ipam.Holder(a.Addr)
		if err != nil {
			return err
		}
		if holder == "" || holder == e.ID() {
			addresses, addrs = append(addresses, a), append(addrs, a.Addr)
		}
	}
	if mac, err := net.ParseMAC(e.MAC); err == nil && !e.Chained {
		if err := bridge.Forbid(bridge.Sender{HostIf: e.HostIf, MAC: mac, Addresses: e.Addresses}); err != nil {
			return err
		}
	}
	if err := purge(addrs); err != nil {
		return err
	}
	if !e.Chained { // whose link is another plugin's
		if err := bridge.Remove(links, e.HostIf, addresses); err != nil {
			return err
		}
	}
	if err := conntrack.Forget(addrs...); err != nil {
		return err
	}
	for _, a := range addrs {
		if err := ipam.Release(e.ID(), a); err != nil {
			return err
		}
	}
	return endpoint.Remove(e.ID())
}

// purge takes the addresses out of every set.
func purge(addrs []netip.Addr) error {
	sets, err := ipset.Open()
	if err != nil {
		return err
	}
	defer sets.Close()
	return sets.Purge(addrs...)
}
