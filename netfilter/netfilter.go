// Package netfilter has types that the agent and both backends use: how much of the kernel's state to read, and what
// applying a ruleset has done. A backend, such as package iptables, writes a ruleset.Ruleset to the kernel.
//
// Invariants:
//   - The package itself neither reads nor changes the kernel.
//   - A refusal by the kernel (RefusedError) and a table that can't be read (UnknownError) never count as success.
package netfilter

import (
	"errors"
	"fmt"
	"maps"
	"net/netip"
	"slices"

	"github.com/weir-net/weir/conf"
	"github.com/weir-net/weir/internal/excerpt"
	"github.com/weir-net/weir/policy/ruleset"
)

// Verify says how much of weir's state in the kernel a backend reads before it applies a ruleset. For the rest, the
// backend uses the state that it remembers.
type Verify int

const (
	// Trust reads only what the backend doesn't remember.
	Trust Verify = iota
	// Rules reads tables whose chains drop packets, unless such a table certainly hasn't changed. It doesn't read
	// sets, so it is quick.
	Rules
	// All reads all sets and tables, except those that certainly haven't changed.
	All
)

// AcceptComment is the comment of weir's rules in the chain FORWARD of the table filter.
const AcceptComment = "weir: no other default drops what policy let through"

// Accepted returns rules whose conditions match the packets that a chain FORWARD must accept. chained has the
// addresses of pods behind another plugin's bridge.
func Accepted(chained ruleset.Entries) []ruleset.Rule {
	rules := []ruleset.Rule{{In: conf.Bridge}, {Out: conf.Bridge}}
	for e := range chained.All() {
		rules = append(rules, ruleset.Rule{Src: e.Prefix}, ruleset.Rule{Dst: e.Prefix})
	}
	return rules
}

type Result struct {
	Changed bool
	// Closes is true if the new rules may deny an established connection that was allowed before.
	Closes bool
	// Closed has the addresses that were deleted from sets of peers, if nothing else has changed. Otherwise it is nil.
	Closed []netip.Addr
	// Rules is true if Apply has changed rules, and not only sets.
	Rules bool
	// Left has unneeded sets that still exist. Destroying a set may take milliseconds, so it is left to an Apply that
	// has nothing else to do.
	Left []string
	// Strays has addresses in weir-pods (or its IPv6 set) that belong to no known pod. Apply doesn't remove them.
	Strays []netip.Addr
	// Notes say what doesn't work although the kernel has the ruleset.
	Notes []Note
	// Late has the errors of programs that had made their changes before they failed. After such an error, the backend
	// has read the kernel's state again.
	Late []error
}

// KernelSet is a set or map that a backend makes in the kernel.
type KernelSet struct {
	Name, Type string
	Entries    int
	// Classes are the ruleset's class sets whose entries this set or map contains.
	Classes []string
}

// AddClass adds a class set to the list of kernel sets. The ruleset has a set for each class, but the kernel has one
// set or map for all classes of a direction. So AddClass counts the class's entries as entries of that set or map,
// which has the given name and kind. If the list lacks this set or map, AddClass appends it.
func AddClass(all []KernelSet, name, kind string, class ruleset.Set) []KernelSet {
	i := slices.IndexFunc(all, func(k KernelSet) bool { return k.Name == name })
	if i < 0 {
		i, all = len(all), append(all, KernelSet{Name: name, Type: kind})
	}
	all[i].Entries += class.Entries.Len()
	all[i].Classes = append(all[i].Classes, class.Name)
	return all
}

// Note says what doesn't work, and why: for example, another program's rules drop packets, or the kernel lacks a
// module.
type Note struct {
	About   string // such as "host firewall"
	Message string
}

// Inspection says which parts of a ruleset the kernel has. It covers only the families of the inspected packets, and
// only the set entries that rules look up for these packets.
type Inspection struct {
	// Ruleset has the chains of the compiled ruleset. Its sets contain only entries that are in the kernel and that
	// rules could look up for the packets.
	Ruleset ruleset.Ruleset
	// Wrong has a sentence for each chain, and for each whole set, that is missing in the kernel or differs from the
	// ruleset. If only entries of a set differ, only the field Ruleset shows that.
	Wrong []string
	// Unread says why the kernel's rules could not be compared with the ruleset.
	Unread string
}

// UnknownError says which tables could not be read. The backend has written its rules to these tables all the same.
type UnknownError struct{ Why []error }

func (e *UnknownError) Error() string {
	return fmt.Sprintf("%v (weir's own chains and rules are written there all the same)", errors.Join(e.Why...))
}

// RefusedError says that the kernel refuses parts of a ruleset. Connections that need these parts are denied. The
// caller must leave these parts out of the next ruleset.
type RefusedError struct{ Refused ruleset.Refused }

func (e *RefusedError) Error() string {
	return "the kernel refuses " + excerpt.List(slices.Sorted(maps.Values(e.Refused)), "; ")
}
