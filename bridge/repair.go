package bridge

import (
	"errors"
	"fmt"

	"github.com/containernetworking/plugins/pkg/netlinksafe"
)

// Property is one node setting (a sysctl, link, address, route or neighbour entry) that weir makes and repairs.
type Property interface {
	Kind() Kind
	String() string
	// Command is the shell command that restores the property. Repair may do more than this command.
	Command() string
	// Check returns an error if the property is wrong. The error wraps errUnknown if the property couldn't be read.
	// A missing link counts as wrong only for the property that makes this link.
	Check(o *Observed) error
	// restore makes the property right. o may be outdated, because Repair may have repaired other properties since it
	// observed o.
	restore(h netlinksafe.Handle, o *Observed) error
}

type Difference struct {
	Property Property
	// Was is the error of Check before the repair.
	Was error
	// Failed says why the property isn't right after Repair. It is nil if the property is right, and in Compare's
	// results.
	Failed error
}

func (d Difference) Unknown() bool { return errors.Is(d.Was, errUnknown) }

func (d Difference) Error() string {
	if d.Failed != nil && !errors.Is(d.Failed, d.Was) {
		return fmt.Sprintf("%v: %v", d.Was, d.Failed)
	}
	return d.Was.Error()
}

func Compare(all []Property, o *Observed) []Difference {
	var differ []Difference
	for _, p := range all {
		if err := p.Check(o); err != nil {
			differ = append(differ, Difference{Property: p, Was: err})
		}
	}
	return differ
}

// attempts is how often Repair tries to restore a property. Some properties depend on others, or become right a
// moment later.
const attempts = 3

// Repair restores the wrong properties. It goes on if a property can't be restored, and tries each one up to three
// times. It returns all properties that were wrong or unknown. The caller must have endpoint.Lock, and must have read
// the records while it had the lock.
func Repair(h netlinksafe.Handle, all []Property) []Difference {
	var wrong []Difference
	var tried []int
	at := map[string]int{} // the index of each property in wrong and tried, by the property's command
	for {
		for i := range wrong {
			wrong[i].Failed = nil
		}
		o := Observe()
		again := false
		for _, d := range Compare(all, o) {
			i, ok := at[d.Property.Command()]
			if !ok {
				i = len(wrong)
				at[d.Property.Command()] = i
				wrong, tried = append(wrong, d), append(tried, 0)
			}
			wrong[i].Failed = d.Was
			if d.Unknown() || tried[i] == attempts {
				continue
			}
			tried[i]++
			again = true
			if err := d.Property.restore(h, o); err != nil {
				wrong[i].Failed = err
			}
		}
		o.Close()
		if !again {
			return wrong
		}
	}
}
