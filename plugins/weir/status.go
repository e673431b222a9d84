package main

import (
	"time"

	"github.com/weir-net/weir/attachment"
	"github.com/weir-net/weir/conf"
)

// status returns an error if the configuration is invalid, or if enforcement is strict and an ADD could not succeed
// because no agent is ready. It reads the agent's heartbeat file and doesn't ask the agent. containerd calls STATUS
// every five seconds, and kubelet marks the node NotReady on each error. With the heartbeat file, a node stays ready
// while its agent is being replaced.
//
// weir never returns code 51, which is for a fault that limits running pods: without an agent the kernel still enforces
// its rules. weir also returns no error if no address is left, though the specification wants one (CNI specification
// 1.1, "STATUS: Check plugin status"). With an error, kubelet would mark the node NotReady, and the control plane would
// then evict the pods that run there. Without the error, ADD refuses only the pod that gets no address, and the agent
// reports the shortage.
func status(args *call) error {
	c, err := conf.Parse(args.StdinData)
	if err != nil || c.Enforcement != conf.Strict {
		return err
	}
	return cniError(attachment.CheckAgent(time.Now()))
}
