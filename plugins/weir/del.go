package main

import (
	"errors"

	"github.com/weir-net/weir/attachment"
	"github.com/weir-net/weir/endpoint"
)

// del needs only the endpoint record: no namespace, no agent and no valid configuration. It can be repeated.
func del(args *call) error {
	err := endpoint.CheckID(args.id())
	if errors.Is(err, endpoint.ErrTooLong) {
		return nil // ADD refuses an ID that is too long, so there is nothing to delete
	}
	if err != nil {
		return badID(err)
	}
	return attachment.NewNode().End(args.id())
}
