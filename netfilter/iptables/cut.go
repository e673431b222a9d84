package iptables

import (
	"cmp"
	"errors"
	"fmt"
	"net/netip"

	"golang.org/x/sys/unix"

	"github.com/weir-net/weir/netfilter/conntrack"
	"github.com/weir-net/weir/policy/ruleset"
)

// Walk is what a walk through the connections came to.
type Walk struct {
	Cut, Restored int // connections that lived
	Standing      int // entries of connections that are cut when it ends
}

// Judgement is what connections are judged by.
type Judgement struct {
	Judge *ruleset.Simulator
	Pods  map[netip.Addr]ruleset.Link // addresses of the node's pods
}

// allows says whether the connection would be let through if it were opened now. Whose connection it is that nobody saw
// begin isn't known, so no policy lets it through.
func (j Judgement) allows(c conntrack.Connection, own map[netip.Addr]bool) bool {
	return !c.Midstream() && j.Judge.Allows(packet(c, j.Pods, own))
}

// Cut goes through the connections of the node's pods. Those that would not be let through if they were opened now get
// the label that a rule ahead of all others drops, in both directions; those that carry it and would be let through
// lose it. Deleting the entry would not do: the next packet of the server's would open the connection anew, the other
// way round. own are the node's addresses: what the node itself opens isn't judged.
//
// The kernel's rules may change meanwhile. newest is what they are becoming, and a connection of which it says otherwise
// stays as it is: there will be another walk.
func Cut(by Judgement, newest func() (Judgement, error), own map[netip.Addr]bool) (w Walk, err error) {
	var errs []error
	for c, err := range conntrack.All() {
		if err != nil {
			errs = append(errs, err)
			break
		}
		_, from := by.Pods[c.Src]
		if _, to := by.Pods[c.Dst]; own[c.Src] || (!from && !to) {
			continue
		}
		if c.Cut {
			w.Standing++
		}
		allowed := by.allows(c, own)
		if allowed == !c.Cut {
			continue
		}
		now, err := newest()
		if err == nil && now.allows(c, own) != allowed {
			continue
		}
		if err == nil {
			err = c.SetCut(!allowed)
		}
		if err != nil {
			errs = append(errs, fmt.Errorf("label the connection from %s to %s port %d: %w", c.Src, c.Dst, c.Port, err))
			continue
		}
		// An entry of a connection that is over is marked all the same: both ends may go on against TCP's rules, and
		// the kernel takes their packets for established ones. Nobody has lost a connection by it, so it isn't counted.
		if !allowed {
			w.Standing++
		} else {
			w.Standing--
		}
		switch {
		case !c.Alive():
		case allowed:
			w.Restored++
		default:
			w.Cut++
		}
	}
	return w, errors.Join(errs...)
}

// packet is the first packet of the connection, as the FORWARD hook saw it; or INPUT, if the node answers.
func packet(c conntrack.Connection, pods map[netip.Addr]ruleset.Link, own map[netip.Addr]bool) ruleset.Packet {
	p := ruleset.Packet{Src: c.Src, Dst: c.Dst, Port: c.Port, In: "-", Out: "-", Translated: c.Translated}
	switch c.Proto {
	case unix.IPPROTO_TCP:
		p.Proto = ruleset.TCP
	case unix.IPPROTO_UDP:
		p.Proto = ruleset.UDP
	case unix.IPPROTO_SCTP:
		p.Proto = ruleset.SCTP
	default:
		p.Proto, p.Port = ruleset.Protocol(fmt.Sprint(c.Proto)), 0
	}
	if link, ok := pods[c.Src]; ok {
		p.In, p.InPort = link.In, link.Port
	}
	if link, ok := pods[c.Dst]; ok {
		p.Out = cmp.Or(link.In, "-")
	} else if own[c.Dst] {
		p.Out = ""
	}
	return p
}
