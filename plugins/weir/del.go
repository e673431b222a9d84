package main

import (
	"errors"
	"fmt"

	"github.com/containernetworking/cni/pkg/types"

	"github.com/weir-net/weir/attachment"
	"github.com/weir-net/weir/endpoint"
)

// del takes the attachment away. It goes by the endpoint record alone, so it needs neither the namespace nor the agent
// nor a configuration that is still valid, and it can be repeated.
func del(args *call) error {
	id := endpoint.ID(args.ContainerID, args.IfName)
	err := endpoint.CheckID(id)
	if errors.Is(err, endpoint.ErrTooLong) {
		return nil // ADD has refused it, so there is nothing to delete
	}
	if err != nil {
		return types.NewError(types.ErrInvalidEnvironmentVariables, fmt.Sprintf("CNI_CONTAINERID, CNI_IFNAME: %v", err), "")
	}
	if err := attachment.NewNode().End(id); err != nil {
		return ioError("delete", err)
	}
	return nil
}
