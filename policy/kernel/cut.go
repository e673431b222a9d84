package kernel

import (
	"errors"
	"fmt"
	"net/netip"

	"golang.org/x/sys/unix"

	"github.com/weir-net/weir/conf"
	"github.com/weir-net/weir/policy"
	"github.com/weir-net/weir/policy/conntrack"
)

// Cut goes through the connections of the node's pods. Those that would not be let through if they were opened now get
// the label that a rule ahead of all others drops, in both directions; those that carry it and would be let through
// lose it. Deleting the entry would not do: the next packet of the server's would open the connection anew, the other
// way round. own are the node's addresses: what the node itself opens isn't judged.
func Cut(judge *policy.Judge, pods, own map[netip.Addr]bool) (cut, restored int, err error) {
	all, err := conntrack.List()
	if err != nil {
		return 0, 0, err
	}
	var errs []error
	for _, c := range all {
		if own[c.Src] || (!pods[c.Src] && !pods[c.Dst]) {
			continue
		}
		allowed := judge.Allows(packet(c, pods, own))
		if allowed == !c.Cut {
			continue
		}
		if err := c.SetCut(!allowed); err != nil {
			errs = append(errs, fmt.Errorf("label the connection from %s to %s port %d: %w", c.Src, c.Dst, c.Port, err))
			continue
		}
		if allowed {
			restored++
		} else {
			cut++
		}
	}
	return cut, restored, errors.Join(errs...)
}

// packet is the first packet of the connection, as the FORWARD hook saw it; or INPUT, if the node answers.
func packet(c conntrack.Connection, pods, own map[netip.Addr]bool) policy.Packet {
	p := policy.Packet{Src: c.Src, Dst: c.Dst, Port: c.Port, In: "-", Out: "-"}
	switch c.Proto {
	case unix.IPPROTO_TCP:
		p.Proto = policy.TCP
	case unix.IPPROTO_UDP:
		p.Proto = policy.UDP
	case unix.IPPROTO_SCTP:
		p.Proto = policy.SCTP
	default:
		p.Proto, p.Port = policy.Protocol(fmt.Sprint(c.Proto)), 0
	}
	if pods[c.Src] {
		p.In = conf.Bridge
	}
	switch {
	case pods[c.Dst]:
		p.Out = conf.Bridge
	case own[c.Dst]:
		p.Out = ""
	}
	return p
}
