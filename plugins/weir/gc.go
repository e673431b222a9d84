package main

import (
	"encoding/json"
	"errors"
	"fmt"

	"github.com/containernetworking/cni/pkg/types"

	"github.com/weir-net/weir/attachment"
	"github.com/weir-net/weir/endpoint"
)

// gc takes away every attachment to this network that the runtime doesn't list as valid; none is, if it lists none, as
// when cnitool calls. Like DEL it needs no configuration that is still valid, and it can be repeated. It frees what it can
// and then says what it couldn't.
func gc(args *call) error {
	var c struct {
		Name  string               `json:"name"`
		Valid []types.GCAttachment `json:"cni.dev/valid-attachments"`
	}
	if err := json.Unmarshal(args.StdinData, &c); err != nil {
		return types.NewError(types.ErrDecodingFailure, fmt.Sprintf("cni.dev/valid-attachments can't be read: %v", err), "")
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
	if err := attachment.NewNode().Collect(c.Name, valid); err != nil {
		return ioError("collect what is left of attachments", err)
	}
	return nil
}
