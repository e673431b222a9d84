package main

import (
	"net"

	"github.com/containernetworking/cni/pkg/types"
	current "github.com/containernetworking/cni/pkg/types/100"

	"github.com/weir-net/weir/attachment"
	"github.com/weir-net/weir/conf"
	"github.com/weir-net/weir/endpoint"
)

func add(args *call) error {
	c, r, err := parseAdd(args)
	if err != nil {
		return err
	}
	return attachment.NewNode().Make(r, func(made attachment.Made) error {
		if r.Chained != nil {
			return types.PrintResult(c.PrevResult, c.CNIVersion)
		}
		return types.PrintResult(result(made, c.DNS), c.CNIVersion)
	})
}

func parseAdd(args *call) (*conf.NetConf, attachment.Request, error) {
	var r attachment.Request
	c, err := conf.Parse(args.StdinData)
	if err != nil {
		return nil, r, err
	}
	chained, err := c.ForAdd()
	if err != nil {
		return nil, r, err
	}
	pod, err := conf.ParseArgs(args.Args)
	if err == nil {
		pod, err = c.Identify(pod)
	}
	if err != nil {
		return nil, r, err
	}
	if err := endpoint.CheckID(args.id()); err != nil {
		return nil, r, badID(err)
	}
	r = attachment.Request{
		ContainerID: args.ContainerID, IfName: args.IfName, Network: c.Name, Netns: args.Netns,
		Pod:         endpoint.Pod{Namespace: pod.Namespace, Name: pod.Name, UID: pod.UID},
		Enforcement: c.Enforcement,
	}
	if chained {
		r.Chained, err = chainedLink(c.PrevResult, args.IfName)
		return c, r, err
	}
	r.Link = attachment.Link{Ranges: c.Ranges, MAC: c.HardwareAddr(pod), MTU: c.MTU, Routes: c.Routes}
	r.Link.Addresses, err = c.Addresses(pod)
	return c, r, err
}

func badID(err error) error {
	return refuse(types.ErrInvalidEnvironmentVariables, "CNI_CONTAINERID, CNI_IFNAME: %v", err)
}

// result returns the result for an interface that weir made (CNI specification 1.1, "ADD Success").
func result(made attachment.Made, dns types.DNS) *current.Result {
	e := made.Record
	r := &current.Result{
		CNIVersion: current.ImplementedSpecVersion,
		Interfaces: []*current.Interface{
			{Name: conf.Bridge, Mac: made.BridgeMAC.String()},
			{Name: e.HostIf},
			{Name: e.IfName, Mac: e.MAC, Sandbox: e.Netns},
		},
		DNS: dns,
	}
	for _, addr := range e.Addresses {
		r.IPs = append(r.IPs, &current.IPConfig{
			Interface: current.Int(2), Gateway: addr.Gateway.AsSlice(),
			Address: net.IPNet{IP: addr.Addr.AsSlice(), Mask: net.CIDRMask(addr.Addr.BitLen(), addr.Addr.BitLen())},
		})
	}
	for _, route := range made.Routes {
		dst := route.Dst
		r.Routes = append(r.Routes, &types.Route{
			Dst: net.IPNet{IP: dst.Addr().AsSlice(), Mask: net.CIDRMask(dst.Bits(), dst.Addr().BitLen())},
			GW:  route.Gateway.AsSlice(), MTU: route.MTU, AdvMSS: route.AdvMSS, Priority: route.Priority,
			Table: route.Table, Scope: route.Scope,
		})
	}
	return r
}
