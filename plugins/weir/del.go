package main

import (
	"errors"

	"github.com/weir-net/weir/attachment"
	"github.com/weir-net/weir/endpoint"
)

// del takes the attachment away. It goes by the endpoint record alone, so it needs neither the namespace nor the
// agent nor a configuration that is still valid, and it can be repeated.
func del(args *call) error {
	err := endpoint.CheckID(args.id())
	if errors.Is(err, endpoint.ErrTooLong) {
		return nil // ADD has refused it, so there is nothing to delete
	}
	if err != nil {
		return badID(err)
	}
	return cniError(attachment.NewNode().End(args.id()))
}
