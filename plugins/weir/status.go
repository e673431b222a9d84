package main

import (
	"time"

	"github.com/weir-net/weir/attachment"
	"github.com/weir-net/weir/conf"
)

// status says whether an ADD could succeed, as far as a look at a file tells: containerd asks every five seconds, and
// kubelet marks the node NotReady on each error. The agent isn't asked. Its heartbeat counts, so that a node stays
// ready while its agent is being replaced. Code 51 is for a fault that limits running pods. weir never reports
// it, because the kernel goes on enforcing without an agent.
//
// The specification wants an error too where no address is left (CNI specification 1.1, "STATUS: Check plugin
// status"). weir deliberately reports none: kubelet would mark the node NotReady, and the control plane would then
// evict the pods that run there. ADD refuses the one pod that gets no address, and the agent reports the shortage.
func status(args *call) error {
	c, err := conf.Parse(args.StdinData)
	if err != nil || c.Enforcement != conf.Strict {
		return err
	}
	return cniError(attachment.CheckAgent(time.Now()))
}
