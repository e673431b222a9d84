package main

import (
	"net/netip"
	"slices"

	"github.com/containernetworking/cni/pkg/types"
	current "github.com/containernetworking/cni/pkg/types/100"

	"github.com/weir-net/weir/attachment"
	"github.com/weir-net/weir/bridge"
	"github.com/weir-net/weir/endpoint"
)

func readPrevResult(prev types.Result) (*current.Result, error) {
	r, err := current.NewResultFromResult(prev)
	if err != nil {
		return nil, types.NewError(types.ErrDecodingFailure, "prevResult can't be read", err.Error())
	}
	return r, nil
}

func chainedLink(prev types.Result, ifName string) (*attachment.Chained, error) {
	r, err := readPrevResult(prev)
	if err != nil {
		return nil, err
	}
	c := &attachment.Chained{}
	if c.Addresses, err = addressesOf(r); err != nil {
		return nil, err
	}
	for _, i := range r.Interfaces {
		if i.Sandbox != "" && i.Name == ifName {
			c.MAC = i.Mac
		}
	}
	return c, nil
}

func addressesOf(r *current.Result) ([]endpoint.Address, error) {
	var all []endpoint.Address
	for i, ip := range r.IPs {
		if n := ip.Interface; n != nil && *n >= 0 && *n < len(r.Interfaces) && r.Interfaces[*n].Sandbox == "" {
			continue
		}
		addr, ok := netip.AddrFromSlice(ip.Address.IP)
		addr = addr.Unmap()
		if !ok || addr.IsUnspecified() || addr.IsMulticast() || addr.IsLoopback() {
			return nil, refuse(types.ErrInvalidNetworkConfig,
				"prevResult.ips[%d].address: %v can't be a pod's address", i, ip.Address.IP)
		}
		if !slices.ContainsFunc(all, func(a endpoint.Address) bool { return a.Addr == addr }) {
			all = append(all, endpoint.Address{Addr: addr, Subnet: netip.PrefixFrom(addr, addr.BitLen())})
		}
	}
	if len(all) == 0 {
		return nil, refuse(types.ErrInvalidNetworkConfig,
			"prevResult.ips: there is no address of the pod, so policy can't be enforced on it")
	}
	return all, nil
}

func interfacesOf(r *current.Result, netns string) (onNode, inPod []bridge.Interface) {
	for n, i := range r.Interfaces {
		if i.Sandbox != "" && i.Sandbox != netns {
			continue
		}
		want := bridge.Interface{Name: i.Name, MAC: i.Mac, MTU: i.Mtu}
		for _, ip := range r.IPs {
			if ip.Interface != nil && *ip.Interface == n {
				want.Addresses = append(want.Addresses, &ip.Address)
			}
		}
		if i.Sandbox == "" {
			onNode = append(onNode, want)
		} else {
			inPod = append(inPod, want)
		}
	}
	return onNode, inPod
}
