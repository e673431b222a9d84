package main

import (
	"github.com/weir-net/weir/attachment"
	"github.com/weir-net/weir/conf"
)

// status returns an error if enforcement is strict and no agent has a recent heartbeat. kubelet then marks the node
// NotReady.
//
// weir never returns code 51, which says that running pods may have limited connectivity: without an agent, the kernel
// still enforces its rules. A lack of addresses is no error either, although the specification wants an error: the node
// would become NotReady, and its running pods would be evicted.
func status(args *call) error {
	c, err := conf.Parse(args.StdinData)
	if err != nil || c.Enforcement != conf.Strict {
		return err
	}
	return attachment.CheckAgent()
}
