package main

import (
	"fmt"
	"time"

	"github.com/containernetworking/cni/pkg/types"

	"github.com/weir-net/weir/conf"
	"github.com/weir-net/weir/endpoint"
	"github.com/weir-net/weir/ipam"
)

// status says whether an ADD would succeed, as far as a few looks at files tell: containerd asks every five seconds, and
// kubelet has a node be not ready on each no. The agent isn't asked but goes by its heartbeat, so that a node stays ready
// while its agent is being replaced. Code 51 is for what limits pods that are there: nothing does, as the kernel goes on
// enforcing, with or without an agent.
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
	full, err := ipam.Full(c.Ranges)
	if err != nil {
		return ioError("status", err)
	}
	if full {
		return types.NewError(types.ErrPluginNotAvailable, "ranges: no address is left in one of their families",
			"one is free again when a pod goes; ls -l /run/weir/addresses shows who holds them")
	}
	return nil
}

// agentIsWell says so unless none was for as long as it may take to replace one.
func agentIsWell(now time.Time) error {
	beat, err := endpoint.LastBeat()
	if err != nil {
		return ioError("status", err)
	}
	if beat.IsZero() {
		return types.NewError(types.ErrPluginNotAvailable, "no weir-agent has been ready since the node was started",
			"enforcement is strict: no pod starts unless weir-agent has put it into its class")
	}
	if since := now.Sub(beat); since > endpoint.BeatLasts {
		return types.NewError(types.ErrPluginNotAvailable, fmt.Sprintf("weir-agent has not been ready for %s", since.Round(time.Second)),
			"enforcement is strict: no pod starts unless weir-agent has put it into its class")
	}
	return nil
}
