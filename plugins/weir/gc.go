package main

import (
	"encoding/json"
	"errors"
	"fmt"

	"github.com/containernetworking/cni/pkg/types"

	"github.com/weir-net/weir/attachment"
	"github.com/weir-net/weir/endpoint"
)

// gc takes away every attachment to this network that the runtime doesn't list as valid. If the runtime lists none,
// as cnitool does, none is valid. Like DEL it needs no configuration that is still valid, and it can be repeated. It
// takes away what it can, and then returns an error for the rest.
func gc(args *call) error {
	var c struct {
		Name  string               `json:"name"`
		Valid []types.GCAttachment `json:"cni.dev/valid-attachments"`
	}
	if err := json.Unmarshal(args.StdinData, &c); err != nil {
		return refuse(types.ErrDecodingFailure, "cni.dev/valid-attachments can't be read: %v", err)
	}
	valid := make(map[string]bool, len(c.Valid))
	for _, a := range c.Valid {
		id := endpoint.ID(a.ContainerID, a.IfName)
		err := endpoint.CheckID(id)
		if errors.Is(err, endpoint.ErrTooLong) { // ADD has refused it
			continue
		}
		if err != nil {
			return types.NewError(types.ErrInvalidNetworkConfig, fmt.Sprintf("cni.dev/valid-attachments: %v", err),
				"nothing was taken away: whose attachment that should be isn't known")
		}
		valid[id] = true
	}
	return cniError(attachment.NewNode().Collect(c.Name, valid))
}
