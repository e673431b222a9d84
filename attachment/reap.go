package attachment

import (
	"errors"
	"fmt"
	"io/fs"

	"github.com/weir-net/weir/bridge"
	"github.com/weir-net/weir/endpoint"
)

// Reap ends every attachment that is over though nobody deletes it, and returns those: for runtimes that never call GC.
func Reap() ([]endpoint.Endpoint, error) {
	return endEach(isOver)
}

// Collect is CNI's GC: it ends every attachment of the network whose ID isn't in valid, and takes away what else is there
// of attachments that have no record. What it can't take away doesn't keep it from the rest.
func Collect(network string, valid map[string]bool) error {
	_, err := endEach(func(id string) (bool, error) {
		if valid[id] {
			return false, nil
		}
		e, _, err := endpoint.LoadAny(id)
		if errors.Is(err, endpoint.ErrBroken) { // of which network isn't known
			return isOver(id)
		}
		if err != nil || e.Network != network {
			return false, ignoreNotExist(err)
		}
		busy, err := endpoint.Busy(id)
		return !busy, err
	})
	return errors.Join(err, sweep(valid))
}

// endEach ends the attachments for which ended holds. Each is asked for once more under the lock: between the two it may
// have been deleted, and another of its ID be on its way.
func endEach(ended func(id string) (bool, error)) (done []endpoint.Endpoint, err error) {
	ids, err := endpoint.IDs()
	if err != nil {
		return nil, err
	}
	var errs []error
	for _, id := range ids {
		yes, err := ended(id)
		if yes && err == nil {
			var e *endpoint.Endpoint
			if e, err = endIf(id, ended); e != nil && err == nil {
				done = append(done, *e)
			}
		}
		if err != nil {
			errs = append(errs, fmt.Errorf("end attachment %s: %w", id, err))
		}
	}
	return done, errors.Join(errs...)
}

func endIf(id string, ended func(string) (bool, error)) (*endpoint.Endpoint, error) {
	unlock, err := endpoint.Lock()
	if err != nil {
		return nil, err
	}
	defer unlock()
	if yes, err := ended(id); !yes || err != nil {
		return nil, err
	}
	return end(id, nil)
}

// isOver says whether the attachment is, by what the node can tell for certain: the process that was deleting it has
// ended before it was done, or nobody is making it any more and its link on the node is gone, which the kernel deletes
// with the pod's namespace. The path of that namespace says nothing, as whoever asks may not see the runtime's mounts.
// Of a record that can't be understood the link's name is known too; but that there is none may mean that another
// plugin made it, if weir0 knows no way to its addresses.
func isOver(id string) (bool, error) {
	e, ending, err := endpoint.LoadAny(id)
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return false, nil
	case ending: // unless the process that deletes it is still at it
		busy, err := endpoint.Busy(id)
		return !busy, err
	case errors.Is(err, endpoint.ErrBroken):
		if e, err = salvage(id); err != nil {
			return false, err
		}
		if own, err := bridge.HasNeighbour(e.Addresses); !own || err != nil {
			return false, err
		}
	case err != nil:
		return false, err
	}
	if e.HostIf == "" { // there is nothing to tell it by
		return false, nil
	}
	// In this order: whoever was making it has made the link before that ended.
	if busy, err := endpoint.Busy(id); busy || err != nil {
		return false, err
	}
	exists, err := bridge.PortExists(e.HostIf)
	return !exists, err
}

func ignoreNotExist(err error) error {
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	return err
}
