package main

import (
	"time"

	"github.com/weir-net/weir/attachment"
	"github.com/weir-net/weir/conf"
)

// status returns an error if the configuration is invalid. It also returns one if enforcement is strict and no agent
// is ready.
//
// It reads the agent's heartbeat file, so a node stays ready while its agent is replaced. kubelet marks the node
// NotReady on each error.
//
// weir never returns code 51, which says that running pods are limited: without an agent the kernel still enforces
// its rules. The specification wants an error if no address is left (CNI specification 1.1, "STATUS: Check plugin
// status"). weir returns none: the node would become NotReady, and its running pods would be evicted.
func status(args *call) error {
	c, err := conf.Parse(args.StdinData)
	if err != nil || c.Enforcement != conf.Strict {
		return err
	}
	return cniError(attachment.CheckAgent(time.Now()))
}
