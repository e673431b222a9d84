package main

import (
	"encoding/json"
	"errors"
	"fmt"
	"slices"

	"github.com/containernetworking/cni/pkg/types"

	"github.com/weir-net/weir/attachment"
	"github.com/weir-net/weir/endpoint"
)

const validKeys = "cni.dev/valid-attachments or cni.dev/attachments"

// gc ends every attachment to this network that the runtime doesn't list as valid. If the list is empty or missing, gc
// ends all attachments to the network: cnitool's gc sends no list. The CNI specification 1.1.0 first called the list
// cni.dev/attachments. libcni sends the list under both keys, but another runtime may use only cni.dev/attachments.
func gc(args *call) error {
	var c struct {
		Name    string               `json:"name"`
		Valid   []types.GCAttachment `json:"cni.dev/valid-attachments"`
		Earlier []types.GCAttachment `json:"cni.dev/attachments"`
	}
	if err := json.Unmarshal(args.StdinData, &c); err != nil {
		return refuse(types.ErrDecodingFailure, "%s can't be read: %v", validKeys, err)
	}
	valid := make(map[string]bool, len(c.Valid))
	for _, a := range slices.Concat(c.Valid, c.Earlier) {
		id := endpoint.ID(a.ContainerID, a.IfName)
		err := endpoint.CheckID(id)
		if errors.Is(err, endpoint.ErrTooLong) { // ADD refuses an ID that is too long, so no attachment has this ID
			continue
		}
		if err != nil {
			return types.NewError(types.ErrInvalidNetworkConfig, fmt.Sprintf("%s: %v", validKeys, err),
				"nothing was removed: it isn't known which attachment this entry keeps")
		}
		valid[id] = true
	}
	return attachment.NewNode().Collect(c.Name, valid)
}
