// Package netfilter has the words that the agent and each backend have in common: how much of the kernel to read, and
// what applying a ruleset came to. A backend (package iptables) writes a ruleset.Ruleset to the kernel; the interface
// that it implements is agent.Backend.
package netfilter

import (
	"errors"
	"fmt"
	"maps"
	"net/netip"
	"slices"
	"strings"

	"github.com/weir-net/weir/policy/ruleset"
)

// Verify says how much of the kernel to read before comparing it with a ruleset, instead of relying on what is known.
type Verify int

// The values, each of which reads what the one before reads, and more.
const (
	// Trust reads nothing.
	Trust Verify = iota
	// Rules reads the chains that drop: quick, but blind to the sets.
	Rules
	// All reads everything.
	All
)

// Result of applying a ruleset.
type Result struct {
	// Changed says that the kernel did not hold the ruleset already; sets that no rule uses don't count.
	Changed bool
	// Closes says that what was allowed before may not be any more. Without it, a change only allows more, or is about
	// pods that came or ended, which have no connections.
	Closes bool
	// Rules says that rules were changed, and not only sets.
	Rules bool
	// Left are sets that aren't wanted any more, and that the kernel doesn't let go of yet, as it is still deleting a rule
	// that used them. The next apply tries again.
	Left []string
	// Strays are addresses in the sets of all pods that are assigned to no pod. Applying leaves them there.
	Strays []netip.Addr
}

// UnknownError says which tables could not be read. All that can be written without reading them is written.
type UnknownError struct{ Why []error }

// Error names the tables and why they can't be read.
func (e *UnknownError) Error() string {
	return fmt.Sprintf("%v (weir's own chains and rules are written there all the same)", errors.Join(e.Why...))
}

// RefusedError says that the kernel refuses parts of a ruleset, and accepts the rest without them. What they would
// allow is closed then. policy.State takes them, so that the next ruleset is compiled without them.
type RefusedError struct{ Refused ruleset.Refused }

// Error names the parts and the kernel's reasons, in order.
func (e *RefusedError) Error() string {
	return "the kernel refuses " + strings.Join(slices.Sorted(maps.Values(e.Refused)), "; ")
}
