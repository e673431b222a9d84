package bridge

import (
	"errors"
	"fmt"

	"github.com/containernetworking/plugins/pkg/netlinksafe"
)

// Property is one node setting (a sysctl, link, address, route or neighbour entry) that weir makes and repairs.
type Property interface {
	Kind() Kind
	// String describes the property as it should be.
	String() string
	// Command is the shell command that restores the property. It may say less than restore does.
	Command() string
	// Check returns an error that says what is wrong; nil if nothing is. The error wraps ErrUnknown if the property
	// couldn't be read. A missing link is reported only by the property that makes the link.
	Check(o *Observed) error
	// restore restores the property. o may be older than the repairs of the properties before this one.
	restore(h netlinksafe.Handle, o *Observed) error
}

// Difference is a property that is wrong or unknown.
type Difference struct {
	Property Property
	// Was is the error that Check returned before the repair.
	Was error
	// Failed is the error of the repair. It is nil if the property is right by now, or if Repair wasn't called.
	Failed error
}

// Unknown reports whether the property couldn't be read.
func (d Difference) Unknown() bool { return errors.Is(d.Was, ErrUnknown) }

func (d Difference) Error() string {
	if d.Failed != nil && !errors.Is(d.Failed, d.Was) {
		return fmt.Sprintf("%v: %v", d.Was, d.Failed)
	}
	return d.Was.Error()
}

// Compare returns the properties that differ from what was observed, or are unknown.
func Compare(all []Property, o *Observed) []Difference {
	var differ []Difference
	for _, p := range all {
		if err := p.Check(o); err != nil {
			differ = append(differ, Difference{Property: p, Was: err})
		}
	}
	return differ
}

// attempts is how often Repair restores one property. Some depend on others, or become right a moment later.
const attempts = 3

// Repair restores the properties that are wrong, and continues with the others if one fails. It compares again,
// until nothing is wrong or each wrong property was restored three times (attempts). It returns the properties that
// were wrong or unknown, each with the error of its repair.
//
// The caller must hold endpoint.Lock, and must have read the records for the properties under it. An attachment may
// begin to end meanwhile. A link that it has deleted is not wrong.
func Repair(h netlinksafe.Handle, all []Property) []Difference {
	var wrong []Difference
	var tried []int
	at := map[string]int{} // indices in wrong and tried, by command
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
