package agent

import (
	"context"
	"net/netip"

	"github.com/weir-net/weir/netfilter"
	"github.com/weir-net/weir/policy/ruleset"
)

// Backend writes rulesets to the kernel. It remembers the kernel's state as it last read or wrote it. SetType, Watch
// and Inspect may be called at any time. The loop calls all other methods, one at a time.
type Backend interface {
	// Name returns the name of the tool that writes the rules; empty while the tool is not known.
	Name() string
	// SetType returns the type by which the backend's tools know a kind of sets, such as "hash:ip".
	SetType(kind ruleset.SetKind) string
	// TellsOfChanges reports whether Watch hears of every change of the rules, by any program.
	TellsOfChanges() bool

	// Read reads all of weir's state in the kernel. Afterwards the caller must read the endpoint records, and then
	// compile. In another order, Apply might undo changes of the plugin.
	Read(ctx context.Context) error
	// Refresh does the same as Read, in parts. After a part it asks pause. If pause returns true, Refresh returns
	// with done false, and the next Refresh continues. Between the calls, all other methods may be called.
	Refresh(ctx context.Context, pause func() bool) (done bool, err error)
	// Unread reports whether the kernel's state is not known, so that Apply would have to read it.
	Unread() bool
	// Reread reads which sets contain the addresses, and reports whether the plugin has changed these sets since the
	// last Apply.
	Reread(addrs ...netip.Addr) (changed bool)
	// Members returns the addresses in the kernel's class sets, by direction. An earlier agent may have put them there.
	Members() (map[ruleset.Direction]map[netip.Addr]bool, error)

	// Apply makes the kernel have the ruleset. At no moment does it allow a packet that both the old and the new
	// ruleset deny. After a *netfilter.UnknownError the kernel has the ruleset, except in tables that can't be read.
	// After a *netfilter.RefusedError the caller must leave out the refused parts. After any other error the kernel
	// has some of the old state and some of the new. The next Apply continues from there.
	Apply(ctx context.Context, want ruleset.Ruleset, verify netfilter.Verify) (netfilter.Result, error)
	// PutFirst puts weir's rules back before all others and changes nothing else. The agent calls it when the kernel's
	// state can't be read.
	PutFirst(ctx context.Context, want ruleset.Ruleset) error
	// KeepClosed protects the pods while no ruleset can be compiled yet. If weir's chains are complete, it only puts
	// their jumps first. Otherwise it applies the ruleset closed, in which no pod is in a class. Then changed is
	// true.
	KeepClosed(ctx context.Context, closed ruleset.Ruleset) (changed bool, err error)
	// CleanOtherFlavour removes weir's rules from the flavour that this backend doesn't write to. The caller has
	// called Apply, so that weir's rules are in force all the time.
	CleanOtherFlavour(ctx context.Context) error

	// Inspect compares the kernel's state for these packets with the ruleset. It changes nothing, and may run beside
	// all other methods.
	Inspect(ctx context.Context, want ruleset.Ruleset, packets []ruleset.Packet) (netfilter.Held, error)

	// Watch calls heard for each generation of the rules until ctx ends. concerned is true if the generation changed
	// something that weir uses. Generation 0 means that messages were lost.
	Watch(ctx context.Context, heard func(generation uint32, concerned bool)) error
	// Generation returns the newest generation of the rules.
	Generation() (uint32, error)
	// Knows reports whether the backend knows what the generation has changed. Either the backend has made the change
	// itself, or it has read the rules since. The caller must pass the generations that Watch reports with concerned
	// true, in ascending order. It may pass one again.
	Knows(generation uint32) bool

	// Close disconnects. Applied rulesets stay in the kernel.
	Close()
}
