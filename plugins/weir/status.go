package main

import (
	"fmt"
	"time"

	"github.com/containernetworking/cni/pkg/types"

	"github.com/weir-net/weir/agentapi"
	"github.com/weir-net/weir/conf"
)

// status says whether an ADD could succeed, as far as a look at a file tells: containerd asks every five seconds, and
// kubelet marks the node NotReady on each error. The agent isn't asked. Its heartbeat counts, so that a node stays
// ready while its agent is being replaced. Code 51 is for a fault that limits running pods. weir never reports
// it, because the kernel goes on enforcing without an agent.
//
// The specification wants an error too where no address is left (CNI specification 1.1, "STATUS: Check plugin status").
// weir deliberately reports none: kubelet would mark the node NotReady, and the control plane would then evict the pods
// that run there. ADD refuses the one pod that gets no address, and the agent reports the shortage.
func status(args *call) error {
	c, err := conf.Parse(args.StdinData)
	if err != nil {
		return err
	}
	if c.Enforcement == conf.Strict {
		if err := agentIsWell(time.Now()); err != nil {
			return err
		}
	}
	return nil
}

// agentIsWell says so unless none was for as long as it may take to replace one.
func agentIsWell(now time.Time) error {
	beat, err := agentapi.LastBeat()
	if err != nil {
		return ioError("status", err)
	}
	if beat.IsZero() {
		return types.NewError(types.ErrPluginNotAvailable, "no weir-agent has been ready since the node was started",
			"enforcement is strict: no pod starts unless weir-agent has put it into its class")
	}
	if since := now.Sub(beat); since > agentapi.BeatLasts {
		return types.NewError(types.ErrPluginNotAvailable, fmt.Sprintf("weir-agent has not been ready for %s", since.Round(time.Second)),
			"enforcement is strict: no pod starts unless weir-agent has put it into its class")
	}
	return nil
}
