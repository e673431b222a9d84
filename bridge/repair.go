package bridge

import (
	"errors"
	"fmt"

	"github.com/containernetworking/plugins/pkg/netlinksafe"
)

// Property is one thing that weir sets up on a node, and that is to stay so.
type Property interface {
	Kind() Kind
	// String says in words what is to be so.
	String() string
	// Command is the shell command that makes it so.
	Command() string
	// Check says what of it isn't so; nil if all is. An error that is ErrUnknown says that it couldn't be read. Of a
	// link that isn't there only the property that makes it has something to say: the others are made after it.
	Check(o *Observed) error
	// restore makes it so. What was observed may be older than the last thing that was restored.
	restore(h netlinksafe.Handle, o *Observed) error
}

// Difference is a property that isn't as it should be.
type Difference struct {
	Property Property
	// Was says how it was found.
	Was error
	// Failed says why it isn't put right; nil if it is.
	Failed error
}

// Unknown says that the property couldn't be read.
func (d Difference) Unknown() bool { return errors.Is(d.Was, ErrUnknown) }

func (d Difference) Error() string {
	if d.Failed != nil && !errors.Is(d.Failed, d.Was) {
		return fmt.Sprintf("%v: %v", d.Was, d.Failed)
	}
	return d.Was.Error()
}

// Compare names the properties that differ from what was observed, or are unknown.
func Compare(all []Property, o *Observed) []Difference {
	var differ []Difference
	for _, p := range all {
		if err := p.Check(o); err != nil {
			differ = append(differ, Difference{Property: p, Was: err})
		}
	}
	return differ
}

// attempts is how often one property is put right before it counts as failed: some depend on others, and some come
// about a moment after they were asked for, as a port's state does.
const attempts = 3

// Repair puts right what isn't as the properties say, one by one: what fails holds up nothing else. It returns what was
// found to differ, and of each whether it is right now. The caller holds endpoint.Lock, so that no attachment is made
// or freed meanwhile, and has taken the properties from records that it read under it.
func Repair(h netlinksafe.Handle, all []Property) []Difference {
	var found []Difference
	var tried []int
	at := map[string]int{} // where each is in these two
	for {
		for i := range found {
			found[i].Failed = nil
		}
		o := Observe(h)
		again := false
		for _, d := range Compare(all, o) {
			i, ok := at[d.Property.Command()]
			if !ok {
				i = len(found)
				at[d.Property.Command()] = i
				found, tried = append(found, d), append(tried, 0)
			}
			found[i].Failed = d.Was
			if d.Unknown() || tried[i] == attempts {
				continue
			}
			tried[i]++
			again = true
			if err := d.Property.restore(h, o); err != nil {
				found[i].Failed = err
			}
		}
		if !again {
			return found
		}
	}
}
