package main

import (
	"time"

	"github.com/weir-net/weir/attachment"
	"github.com/weir-net/weir/conf"
)

// status returns an error if an ADD could not succeed because no agent is ready. It reads the agent's heartbeat file
// and doesn't ask the agent: containerd calls STATUS every five seconds, and kubelet marks the node NotReady on each
// error, so a node must stay ready while its agent is being replaced.
//
// weir never returns code 51, which is for a fault that limits running pods: the kernel goes on enforcing without an
// agent. weir returns no error if no address is left either, though the specification wants one (CNI specification 1.1,
// "STATUS: Check plugin status"): kubelet would mark the node NotReady, and the control plane would then evict the pods
// that run there. ADD refuses the one pod that gets no address, and the agent reports the shortage.
func status(args *call) error {
	c, err := conf.Parse(args.StdinData)
	if err != nil || c.Enforcement != conf.Strict {
		return err
	}
	return cniError(attachment.CheckAgent(time.Now()))
}
