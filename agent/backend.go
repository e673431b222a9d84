package agent

import (
	"context"
	"net/netip"

	"github.com/weir-net/weir/conf"
	"github.com/weir-net/weir/netfilter"
	"github.com/weir-net/weir/policy/ruleset"
)

// Backend writes rulesets to the kernel. It remembers the sets and rules that it last read or wrote. Any goroutine may
// call Sets, Watch and Inspect. Only the loop may call the other methods.
type Backend interface {
	// Tool returns the name of the tool that writes the rules. It is empty while the tool is unknown.
	Tool() string
	// Sets returns the sets and maps that the kernel has for the last ruleset.
	Sets(last ruleset.Ruleset) []netfilter.KernelSet
	// TellsOfChanges reports whether Watch reports every change of the rules, by any program.
	TellsOfChanges() bool

	// Read reads weir's state in the kernel. The caller must read the endpoint records afterwards and then compile.
	// In another order, Apply might undo changes of the plugin.
	Read(ctx context.Context) error
	// Refresh reads like Read, but in parts. It stops after a part if the function pause returns true, and then done is
	// false. The next Refresh goes on with the next part.
	Refresh(ctx context.Context, pause func() bool) (done bool, err error)
	// Unread reports whether the kernel's state is unknown. The next Apply then reads the state.
	Unread() bool
	// HasPods reports whether the family's set of all pods may have addresses. After HasPods has returned true, the
	// result stays true until the backend reads the set again, even if Apply has removed all addresses.
	HasPods(f conf.Family) bool
	// Reread reads which sets contain the addresses. It returns true if the plugin may have changed sets: a set differs
	// from the backend's memory, or can't be read.
	Reread(addrs ...netip.Addr) (changed bool)
	// Members returns the addresses that are in a class (ruleset.Class) according to the kernel. An earlier agent may
	// have put them there.
	Members() (map[ruleset.Direction]map[netip.Addr]bool, error)

	// Apply reads as much of the kernel as verify says, and makes the kernel's state equal to the ruleset. Meanwhile,
	// all packets that both the old and the new ruleset deny stay denied. After a *netfilter.UnknownError, only tables
	// that can't be read may differ from the ruleset. After a *netfilter.RefusedError, the caller must leave out the
	// refused parts. After any other error, a part may be applied, and the next Apply does the rest.
	Apply(ctx context.Context, want ruleset.Ruleset, verify netfilter.Verify) (netfilter.Result, error)
	// PutFirst puts weir's jumps before the rules of other programs, and changes nothing else. The agent calls it when
	// the kernel's state can't be read.
	PutFirst(ctx context.Context, want ruleset.Ruleset) error
	// KeepClosed protects the pods while no ruleset can be compiled yet. For a family with complete chains, it only
	// puts the family's jumps first. For any other family, it applies the parameter closed, a ruleset in which no pod
	// is in a class. fell lists these other families, also if applying that ruleset fails.
	KeepClosed(ctx context.Context, closed ruleset.Ruleset) (fell []conf.Family, err error)
	// Stands reads the kernel, and reports whether weir's chains are complete for all families of the parameter closed,
	// which is a ruleset. It changes nothing.
	Stands(ctx context.Context, closed ruleset.Ruleset) (bool, error)
	// CleanOtherFlavour removes weir's rules from the iptables flavour (nft or legacy) that isn't used. Call Apply
	// first, so that weir's rules are always in force.
	CleanOtherFlavour(ctx context.Context) error

	// Inspect compares the kernel's state for these packets with the ruleset. It changes nothing.
	Inspect(ctx context.Context, want ruleset.Ruleset, packets []ruleset.Packet) (netfilter.Inspection, error)

	// Watch calls the function heard for each new generation of the rules (nf_tables' number of a change) until ctx
	// ends. concerned is true if weir uses something that changed. Generation 0 means that messages were lost.
	Watch(ctx context.Context, heard func(generation uint32, concerned bool)) error
	Generation() (uint32, error)
	// Knows reports whether the backend already knows the change with this generation: the backend made the change
	// itself, or has read the rules since. The caller must pass, in ascending order, the generations for which Watch
	// has called heard with concerned true.
	Knows(generation uint32) bool

	// Close disconnects from the kernel. weir's rules stay in the kernel.
	Close()
}
