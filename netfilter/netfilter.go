// Package netfilter has the types that the agent and each backend share: how much of the kernel to read, and the result
// of applying a ruleset. A backend, such as package iptables, writes a ruleset.Ruleset to the kernel.
//
// Invariants:
//   - The package itself neither reads nor changes the kernel.
//   - Neither a refusal of the kernel (RefusedError) nor a table that can't be read (UnknownError) counts as success.
package netfilter

import (
	"errors"
	"fmt"
	"maps"
	"net/netip"
	"slices"

	"github.com/weir-net/weir/internal/excerpt"
	"github.com/weir-net/weir/policy/ruleset"
)

// Verify says how much of weir's state in the kernel a backend reads before it compares this state with a
// ruleset. The rest is in the backend's memory.
type Verify int

const (
	// Trust reads only what isn't known.
	Trust Verify = iota
	// Rules reads the tables with the chains that drop packets. It is quick because it doesn't read the sets.
	Rules
	All
)

// AcceptComment is the comment of weir's rules in the chain FORWARD of the table filter.
const AcceptComment = "weir: no other default drops what policy let through"

type Result struct {
	// Changed is true if the kernel did not have the ruleset already.
	Changed bool
	// Closes is true if the ruleset may deny an established connection that was allowed before.
	Closes bool
	// Closed has the addresses that left sets of peers, if nothing else has changed. Otherwise it is nil.
	Closed []netip.Addr
	Rules  bool
	// Left has unneeded sets that still exist. Destroying a set may take milliseconds, so it waits for an Apply
	// that has nothing else to do.
	Left []string
	// Strays has the addresses that are in weir-pods (or its IPv6 set) and belong to no pod. They stay in the
	// sets.
	Strays []netip.Addr
	// Notes say what doesn't work, although the kernel has the ruleset.
	Notes []Note
}

// KernelSet is a set or map that a backend makes in the kernel.
type KernelSet struct {
	Name, Type string
	Entries    int
	// Classes are the class sets of the ruleset that the set or map replaces. It has all of their entries.
	Classes []string
}

// AddClass adds the class set to the set or map of that name, which replaces all class sets of a direction.
func AddClass(all []KernelSet, name, kind string, class ruleset.Set) []KernelSet {
	i := slices.IndexFunc(all, func(k KernelSet) bool { return k.Name == name })
	if i < 0 {
		i, all = len(all), append(all, KernelSet{Name: name, Type: kind})
	}
	all[i].Entries += class.Entries.Len()
	all[i].Classes = append(all[i].Classes, class.Name)
	return all
}

// Note says what on the node keeps the ruleset from working as a whole, such as another program's rules.
type Note struct {
	About   string // such as "host firewall"
	Message string
}

// Inspection says what the kernel has of a ruleset, as far as some packets are concerned.
type Inspection struct {
	// Ruleset has the compiled chains, whatever the kernel has. Its sets have only those of the kernel's entries
	// that the packets look up.
	Ruleset ruleset.Ruleset
	// Wrong says where the kernel's rules and sets differ from the ruleset's. Each element is one sentence.
	Wrong []string
	// Unread says why the kernel's rules could not be compared.
	Unread string
}

// UnknownError says which tables could not be read. The backend has written all that it can write without
// reading them.
type UnknownError struct{ Why []error }

func (e *UnknownError) Error() string {
	return fmt.Sprintf("%v (weir's own chains and rules are written there all the same)", errors.Join(e.Why...))
}

// RefusedError says that the kernel refuses parts of a ruleset and accepts the rest. Connections that need the
// refused parts are denied. The caller must compile the next ruleset without these parts.
type RefusedError struct{ Refused ruleset.Refused }

func (e *RefusedError) Error() string {
	return "the kernel refuses " + excerpt.List(slices.Sorted(maps.Values(e.Refused)), "; ")
}
