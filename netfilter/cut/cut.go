// Package cut ends connections that the rules no longer allow. It marks them with a conntrack label, and a rule at the
// beginning of weir's rules drops their packets. If the rules allow a cut connection again, the package removes the
// label. To delete the connection's entry instead would not help: the server's next packet would begin a new connection
// in the opposite direction.
//
// Invariants:
//   - A walk is one pass through the kernel's connection table. If the rules change during a walk, the walk changes
//     no connection on which the old and the new rules disagree.
//   - A walk changes no connection that the node itself has opened, and none without a pod of the node.
//   - If a connection can't be changed, the walk continues, and returns an error at its end.
package cut

import (
	"cmp"
	"errors"
	"fmt"
	"net/netip"
	"strconv"

	"golang.org/x/sys/unix"

	"github.com/weir-net/weir/netfilter/conntrack"
	"github.com/weir-net/weir/policy/ruleset"
)

// Result counts what a walk through the connections has done.
type Result struct {
	Cut, Restored int // connections in use that this walk has cut or restored
	Standing      int // cut connections in the table at the end of the walk
	// Known has at most maxKnown of the cut connections. Restore can restore these without reading the whole
	// connection table.
	Known []conntrack.Edit
	// Examples has some of the connections that were cut or restored.
	Examples []Example
}

type Example struct {
	Src, Dst netip.Addr
	Proto    ruleset.Protocol
	Port     uint16
	Restored bool
}

const (
	maxExamples = 5
	maxErrors   = 3
	maxEdits    = 100
	maxKnown    = 1 << 10
)

// Evaluator evaluates connections by a ruleset. Only one goroutine may use it.
type Evaluator struct {
	rules  *ruleset.Index
	places map[netip.Addr]place
}

type place struct {
	link ruleset.Link
	pod  bool // true if the address belongs to a pod of the node, with this link
	own  bool // true if the address belongs to the node itself
}

// NewEvaluator returns an Evaluator of the ruleset. links has the link of each of the node's pods, by address. own has
// the node's own addresses.
func NewEvaluator(r ruleset.Ruleset, links map[netip.Addr]ruleset.Link, own []netip.Addr) Evaluator {
	e := Evaluator{ruleset.NewIndex(r), make(map[netip.Addr]place, len(links)+len(own))}
	for addr, link := range links {
		e.places[addr] = place{link: link, pod: true}
	}
	for _, addr := range own {
		p := e.places[addr]
		p.own = true
		e.places[addr] = p
	}
	return e
}

// allows reports whether the rules would allow the connection as a new one. It returns false for a midstream
// connection, because it is unknown which side opened the connection.
func (e Evaluator) allows(c *conntrack.Connection, src, dst place) bool {
	return !c.Midstream() && e.rules.Allows(packet(c, src, dst))
}

type walk struct {
	newest func() Evaluator
	edits  []conntrack.Edit
	errs   []error
	failed int // the number of entries that could not be changed
	Result
}

// Walk goes through the connections of the node's pods. It cuts connections that the rules would deny as new ones, and
// restores cut connections that the rules would allow. It leaves out connections that the node itself has opened.
//
// If a denied TCP connection has ended, Walk deletes its entry. Otherwise the kernel could reuse the entry for a new
// connection, whose packets would count as established.
//
// The rules may change during the walk. The function newest returns an evaluator of the newest rules. If that evaluator
// disagrees with the first one, Walk doesn't change the connection: another walk follows.
func Walk(by Evaluator, newest func() Evaluator) (Result, error) {
	w := walk{newest: newest}
	for c, err := range conntrack.All() {
		if err != nil {
			w.errs = append(w.errs, err)
			break
		}
		src, dst := by.places[c.Src], by.places[c.Dst]
		if src.own || (!src.pod && !dst.pod) {
			continue
		}
		if c.Cut {
			w.Standing++
		}
		if by.allows(&c, src, dst) == c.Cut {
			w.edit(c)
		} else if c.Cut {
			w.keep(c)
		}
	}
	return w.end()
}

// Restore restores the known cut connections that the newest rules allow. The caller can use Restore instead of Walk
// if the parameter known has all cut connections, and if the rules still allow everything that they allowed before.
func Restore(known []conntrack.Edit, newest func() Evaluator) (Result, error) {
	w := walk{newest: newest}
	w.Standing = len(known)
	for _, e := range known {
		w.edit(e.Connection)
	}
	return w.end()
}

func (w *walk) end() (Result, error) {
	w.apply()
	if w.failed > maxErrors {
		w.errs = append(w.errs, fmt.Errorf("%d more connections can't be changed", w.failed-maxErrors))
	}
	return w.Result, errors.Join(w.errs...)
}

func (w *walk) edit(c conntrack.Connection) {
	operation := conntrack.Cut
	switch {
	case c.Cut:
		operation = conntrack.Restore
	case c.Over():
		operation = conntrack.Forget
	}
	w.edits = append(w.edits, conntrack.NewEdit(c, operation))
	if len(w.edits) == maxEdits {
		w.apply()
	}
}

func (w *walk) keep(c conntrack.Connection) {
	if len(w.Known) < maxKnown {
		c.Cut = true
		w.Known = append(w.Known, conntrack.NewEdit(c, conntrack.Restore))
	}
}

func (w *walk) apply() {
	if len(w.edits) == 0 {
		return
	}
	now := w.newest()
	agreed := w.edits[:0]
	for _, e := range w.edits {
		if now.allows(&e.Connection, now.places[e.Src], now.places[e.Dst]) == e.Cut {
			agreed = append(agreed, e)
		} else if e.Cut {
			w.keep(e.Connection)
		}
	}
	errs := conntrack.Apply(agreed)
	for i := range agreed {
		e := &agreed[i]
		failed := errs != nil && errs[i] != nil
		if e.Operation == conntrack.Cut && !failed || e.Operation == conntrack.Restore && failed {
			w.keep(e.Connection)
		}
		if !failed {
			w.count(e)
			continue
		}
		if w.failed++; w.failed <= maxErrors {
			c := &e.Connection
			w.errs = append(w.errs,
				fmt.Errorf("label the connection from %s to %s port %d: %w", c.Src, c.Dst, c.Port, errs[i]))
		}
	}
	w.edits = w.edits[:0]
}

func (w *walk) count(e *conntrack.Edit) {
	switch e.Operation {
	case conntrack.Forget:
		return
	case conntrack.Cut:
		w.Standing++
	case conntrack.Restore:
		w.Standing--
	}
	if !e.Alive() {
		return
	}
	restored := e.Operation == conntrack.Restore
	if restored {
		w.Restored++
	} else {
		w.Cut++
	}
	if len(w.Examples) < maxExamples {
		w.Examples = append(w.Examples, Example{e.Src, e.Dst, protocol(e.Proto), e.Port, restored})
	}
}

// packet returns the connection's first packet as the hook FORWARD sees it. If the node itself is the destination, the
// packet is as the hook INPUT sees it.
func packet(c *conntrack.Connection, src, dst place) ruleset.Packet {
	p := ruleset.Packet{Src: c.Src, Dst: c.Dst, Port: c.Port, In: "-", Out: "-", Translated: c.Translated}
	p.Proto = protocol(c.Proto)
	if p.Proto != ruleset.TCP && p.Proto != ruleset.UDP && p.Proto != ruleset.SCTP {
		p.Port = 0
	}
	if src.pod {
		p.In, p.InPort = src.link.In, src.link.Port
	}
	if dst.pod {
		p.Out = cmp.Or(dst.link.In, "-")
	} else if dst.own {
		p.Out = ""
	}
	return p
}

func protocol(number uint8) ruleset.Protocol {
	switch number {
	case unix.IPPROTO_TCP:
		return ruleset.TCP
	case unix.IPPROTO_UDP:
		return ruleset.UDP
	case unix.IPPROTO_SCTP:
		return ruleset.SCTP
	}
	return ruleset.Protocol(strconv.Itoa(int(number)))
}
