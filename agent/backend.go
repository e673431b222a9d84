package agent

import (
	"context"
	"net/netip"

	"github.com/weir-net/weir/netfilter"
	"github.com/weir-net/weir/policy/ruleset"
)

// Backend writes rulesets to the kernel. It remembers what the kernel has, as it was last read or written. The loop
// calls all methods but Watch, one at a time; Watch runs beside them.
type Backend interface {
	// Name of what it writes rules with; empty while that isn't known.
	Name() string
	// SetType is how the backend's tools name the kind of sets, such as "hash:ip".
	SetType(kind ruleset.SetKind) string
	// TellsOfChanges says whether Watch hears of every change of the rules, by any program.
	TellsOfChanges() bool

	// Read reads all that the kernel has of weir's. The caller computes what it should have after that, from records
	// that were read after it: each change by the plugin that was read then has a record.
	Read(ctx context.Context) error
	// Unread says that it isn't known what the kernel has: Apply would read it.
	Unread() bool
	// Reread reads which sets contain the addresses, and says whether they are others than the last Apply left: the
	// plugin has changed them.
	Reread(addrs ...netip.Addr) (changed bool)
	// Members are the addresses in classes of each direction, as the kernel has them, whichever agent put them there.
	Members() (map[ruleset.Direction]map[netip.Addr]bool, error)

	// Apply brings the ruleset into the kernel, in an order that allows nothing on the way that neither the old nor the
	// new one allows. After a *netfilter.UnknownError the kernel has it as far as its tables can be read. After a
	// *netfilter.RefusedError the ruleset must do without the refused parts. After any other error the kernel has
	// some of the old state and some of the new, and applying again goes on from there.
	Apply(ctx context.Context, want ruleset.Ruleset, verify netfilter.Verify) (netfilter.Result, error)
	// PutFirst puts weir's rules back before all others and changes nothing else: it isn't known what the kernel has.
	PutFirst(ctx context.Context, want ruleset.Ruleset) error
	// KeepClosed is for when no state is known yet. Weir's chains stay as they are and are put first; if one is gone or
	// was flushed, the kernel gets the ruleset, in which no pod is in a class, and changed is true.
	KeepClosed(ctx context.Context, closed ruleset.Ruleset) (changed bool, err error)
	// CleanOtherFlavour removes what weir may have left where this backend doesn't write. It comes after an Apply, so
	// that rules of weir's are in force all the time.
	CleanOtherFlavour(ctx context.Context) error

	// Watch calls heard of each generation of the rules until ctx ends, and whether it concerned weir's. Generation 0
	// means that some were missed.
	Watch(ctx context.Context, heard func(generation uint32, concerned bool)) error
	// Generation is the newest generation of the rules.
	Generation() (uint32, error)
	// Knows says that the backend made the generation's changes itself, or has read the rules since: another program's
	// change in it is known. It is called once for each generation that concerned weir's rules, in order.
	Knows(generation uint32) bool

	// Close disconnects. What was applied stays.
	Close()
}
