package main

import (
	"github.com/containernetworking/cni/pkg/types"

	"github.com/weir-net/weir/attachment"
	"github.com/weir-net/weir/conf"
	"github.com/weir-net/weir/endpoint"
)

func check(args *call) error {
	c, err := conf.Parse(args.StdinData)
	if err != nil {
		return err
	}
	if c.PrevResult == nil {
		return types.NewError(types.ErrInvalidNetworkConfig, "prevResult is missing",
			"CHECK compares the node with the result of the last ADD")
	}
	if err := endpoint.CheckID(args.id()); err != nil {
		return badID(err)
	}
	e, err := attachment.Load(args.id())
	if err != nil {
		return err
	}
	prev, err := readPrevResult(c.PrevResult)
	if err != nil {
		return err
	}
	want := attachment.Expected{Netns: args.Netns, MTU: c.MTU, Routes: c.Routes}
	if e.Chained {
		want.Addresses, err = addressesOf(prev)
	} else {
		want.OnNode, want.InPod = interfacesOf(prev, args.Netns)
	}
	if err != nil {
		return err
	}
	return attachment.NewNode().Check(e, want)
}
