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

// Walk is what a walk through the connections came to.
type Walk struct {
	Cut, Restored int
	Standing      int // connections that are cut when it ends
}

// Cut goes through the connections of the node's pods. Those that would not be let through if they were opened now get
// the label that a rule ahead of all others drops, in both directions; those that carry it and would be let through
// lose it. Deleting the entry would not do: the next packet of the server's would open the connection anew, the other
// way round. own are the node's addresses: what the node itself opens isn't judged.
func Cut(judge *policy.Judge, pods, own map[netip.Addr]bool) (w Walk, err error) {
	var errs []error
	for c, err := range conntrack.All() {
		if err != nil {
			errs = append(errs, err)
			break
		}
		if own[c.Src] || (!pods[c.Src] && !pods[c.Dst]) {
			continue
		}
		// Whose connection it is that nobody saw begin isn't known, so no policy lets it through.
		allowed := judge.Allows(packet(c, pods, own)) && !c.Midstream()
		if !allowed {
			w.Standing++
		}
		if allowed == !c.Cut {
			continue
		}
		if err := c.SetCut(!allowed); err != nil {
			errs = append(errs, fmt.Errorf("label the connection from %s to %s port %d: %w", c.Src, c.Dst, c.Port, err))
			continue
		}
		if allowed {
			w.Restored++
		} else {
			w.Cut++
		}
	}
	return w, errors.Join(errs...)
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
