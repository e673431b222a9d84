package main

import (
	"errors"
	"fmt"
	"net/netip"
	"slices"

	"github.com/containernetworking/cni/pkg/types"
	current "github.com/containernetworking/cni/pkg/types/100"
	"github.com/containernetworking/plugins/pkg/netlinksafe"
	"golang.org/x/sys/unix"

	"github.com/weir-net/weir/bridge"
	"github.com/weir-net/weir/conf"
	"github.com/weir-net/weir/endpoint"
	"github.com/weir-net/weir/ipam"
	"github.com/weir-net/weir/netfilter/conntrack"
	"github.com/weir-net/weir/netfilter/ipset"
)

// Behind another plugin weir makes no interface, and enforces policy on the addresses that it finds in the previous
// result. The pod's link is up already, so what closes it until the agent has judged it is its place in the sets of all
// pods alone.

// findChained takes the pod's addresses from the previous result, and finds out whether policy holds on its link.
func (a *attaching) findChained() error {
	prev, err := current.NewResultFromResult(a.conf.PrevResult)
	if err != nil {
		return types.NewError(types.ErrDecodingFailure, "prevResult can't be read", err.Error())
	}
	e := &a.endpoint
	if e.Addresses, err = addressesOf(prev); err != nil {
		return err
	}
	for _, i := range prev.Interfaces {
		if i.Sandbox != "" && i.Name == e.IfName {
			e.MAC = i.Mac
		}
	}
	if e.Enforcement == conf.Off {
		return nil
	}
	// The name is for whoever looks, and for the agent, to which an attachment whose link is gone is over.
	links, err := netlinksafe.NewHandle(unix.NETLINK_ROUTE)
	if err != nil {
		return ioError("open netlink", err)
	}
	defer links.Close()
	e.HostIf, e.BridgeIf, err = bridge.FindPeer(links, a.netns, e.IfName)
	if err == nil && e.BridgeIf != "" {
		err = bridge.EnableBridgeNetfilter(links, e.BridgeIf)
	}
	if errors.Is(err, bridge.ErrBypassesForward) {
		return types.NewError(types.ErrInvalidNetworkConfig, fmt.Sprintf("prevResult: %v", err), "")
	}
	if err != nil {
		return ioError("find the pod's link", err)
	}
	return nil
}

// addressesOf are the pod's addresses in the result: those of its own interfaces, or of none.
func addressesOf(r *current.Result) ([]endpoint.Address, error) {
	var all []endpoint.Address
	for i, ip := range r.IPs {
		if n := ip.Interface; n != nil && *n >= 0 && *n < len(r.Interfaces) && r.Interfaces[*n].Sandbox == "" {
			continue
		}
		addr, ok := netip.AddrFromSlice(ip.Address.IP)
		addr = addr.Unmap()
		if !ok || addr.IsUnspecified() || addr.IsMulticast() || addr.IsLoopback() {
			return nil, types.NewError(types.ErrInvalidNetworkConfig, fmt.Sprintf("prevResult.ips[%d].address: %v can't be a pod's", i, ip.Address.IP), "")
		}
		if !slices.ContainsFunc(all, func(a endpoint.Address) bool { return a.Addr == addr }) {
			all = append(all, endpoint.Address{Addr: addr, Subnet: netip.PrefixFrom(addr, addr.BitLen())})
		}
	}
	if len(all) == 0 {
		return nil, types.NewError(types.ErrInvalidNetworkConfig, "prevResult.ips: there is no address of the pod's, which policy could go by", "")
	}
	return all, nil
}

// take writes the endpoint record and makes the pod the owner of its addresses. A pod that had them before, and whose end
// weir wasn't told of, leaves its places in the sets.
func (a *attaching) take() error {
	unlock, err := endpoint.Lock()
	if err != nil {
		return ioError("take the pod's addresses", err)
	}
	defer unlock()
	if a.making, err = a.endpoint.Begin(); err != nil {
		return ioError("take the pod's addresses", err)
	}
	var inherited []netip.Addr
	for _, addr := range a.endpoint.Addresses {
		before, err := ipam.AssignedTo(addr.Addr)
		if err == nil {
			err = ipam.AssignExternal(a.endpoint.ID(), addr.Addr)
		}
		if err != nil {
			return held("take the pod's addresses", err)
		}
		if before != "" {
			inherited = append(inherited, addr.Addr)
		}
	}
	if len(inherited) == 0 {
		return nil
	}
	sets, err := ipset.New()
	if err != nil {
		return ioError("take the pod's addresses from who had them", err)
	}
	defer sets.Close()
	if err := sets.Purge(inherited...); err != nil {
		return ioError("take the pod's addresses from who had them", err)
	}
	return nil
}

// forget ends what was opened before the pod was closed: by who had its addresses before, or through its link, which was up
// already. None of it was judged.
func (a *attaching) forget() error {
	var addrs []netip.Addr
	for _, addr := range a.endpoint.Addresses {
		addrs = append(addrs, addr.Addr)
	}
	if err := conntrack.Delete(addrs...); err != nil {
		return ioError("forget connections of the pod's addresses", err)
	}
	return nil
}

// stayClosed accepts a pod that no agent has judged, as enforcement "closed" does, if rules stand that go by the sets of
// all pods and so drop its packets. Where no agent has ever run there are none.
func (a *attaching) stayClosed(noAgent error) error {
	sets, err := ipset.New()
	if err != nil {
		return ioError("close the pod", err)
	}
	defer sets.Close()
	for _, addr := range a.endpoint.Addresses {
		set := conf.FamilyOf(addr.Addr).Set(conf.PodsSet)
		if used, err := sets.InUse(set); err != nil || !used {
			return types.NewError(types.ErrTryAgainLater, fmt.Sprintf("the pod can't be closed: no rule goes by ipset %s yet, and its link is another plugin's: %v",
				set, errors.Join(noAgent, err)), "weir-agent makes the rules when it starts")
		}
	}
	return nil
}

// prevResult is the previous plugin's result as it came.
func (a *attaching) prevResult() types.Result { return a.conf.PrevResult }

// checkChained verifies what weir made of another plugin's attachment.
func checkChained(e *endpoint.Endpoint, c *conf.NetConf) error {
	var errs []error
	if c.PrevResult != nil {
		prev, err := current.NewResultFromResult(c.PrevResult)
		if err != nil {
			return fmt.Errorf("read prevResult: %w", err)
		}
		now, err := addressesOf(prev)
		if err != nil {
			return err
		}
		same := func(a, b endpoint.Address) bool { return a.Addr == b.Addr }
		if !slices.EqualFunc(e.Addresses, now, same) {
			errs = append(errs, fmt.Errorf("prevResult has the addresses %v, but the pod was added with %v", now, e.Addresses))
		}
	}
	if e.BridgeIf != "" {
		if on, err := bridge.BridgeNetfilterEnabled(e.BridgeIf); err != nil || !on {
			errs = append(errs, errors.Join(fmt.Errorf("bridge %s passes packets between pods on without iptables (nf_call_iptables)", e.BridgeIf), err))
		}
	}
	return errors.Join(errs...)
}
