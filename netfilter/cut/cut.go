// Package cut ends connections that rules no longer allow. It marks such connections with a conntrack label. A rule
// ahead of all others drops packets of marked connections in both directions. A connection that is allowed again loses
// the label. Deleting the conntrack entry instead would not help: the server's next packet would begin a new
// connection in the opposite direction.
package cut

import (
	"cmp"
	"errors"
	"fmt"
	"net/netip"

	"golang.org/x/sys/unix"

	"github.com/weir-net/weir/netfilter/conntrack"
	"github.com/weir-net/weir/policy/ruleset"
)

// Result has the counts of a walk through the connections.
type Result struct {
	Cut, Restored int // connections that were alive
	Standing      int // entries of connections that are cut when the walk ends
}

// Evaluator evaluates connections by a ruleset.
type Evaluator struct {
	Simulator *ruleset.Simulator
	Links     map[netip.Addr]ruleset.Link // by address of the node's pods
}

// allows reports whether the rules would allow the connection if it began now. If the kernel didn't see the
// connection's first packet, it is unknown which side began the connection, and allows returns false.
func (e Evaluator) allows(c conntrack.Connection, own map[netip.Addr]bool) bool {
	return !c.Midstream() && e.Simulator.Allows(packet(c, e.Links, own))
}

// Walk goes through the connections of the node's pods. It cuts connections that would be denied if they began now,
// and restores cut connections that would be allowed. own has the node's addresses; connections that the node itself
// begins aren't evaluated.
//
// The kernel's rules may change during the walk. newest returns an evaluator with the newest rules. Walk changes
// nothing about a connection on which the two evaluators differ: another walk follows.
func Walk(by Evaluator, newest func() (Evaluator, error), own map[netip.Addr]bool) (r Result, err error) {
	var errs []error
	for c, err := range conntrack.All() {
		if err != nil {
			errs = append(errs, err)
			break
		}
		_, from := by.Links[c.Src]
		if _, to := by.Links[c.Dst]; own[c.Src] || (!from && !to) {
			continue
		}
		if c.Cut {
			r.Standing++
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
		r.count(c, allowed)
	}
	return r, errors.Join(errs...)
}

// count counts a connection that was cut or restored. Walk also labels the entries of connections that have ended,
// because both ends may still send against TCP's rules, and the kernel takes such packets for established. count
// doesn't count an ended connection as cut, because neither end has lost a connection.
func (r *Result) count(c conntrack.Connection, allowed bool) {
	if !allowed {
		r.Standing++
	} else {
		r.Standing--
	}
	switch {
	case !c.Alive():
	case allowed:
		r.Restored++
	default:
		r.Cut++
	}
}

// packet returns the connection's first packet as the FORWARD hook saw it; or as INPUT saw it, if it is sent to the
// node.
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
