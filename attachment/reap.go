package attachment

import (
	"errors"
	"fmt"
	"io/fs"

	"github.com/weir-net/weir/bridge"
	"github.com/weir-net/weir/endpoint"
)

// Reap ends every attachment whose pod is gone without a DEL, or whose deletion was abandoned. It returns their
// records. The agent calls Reap because some runtimes never call GC.
func (n Node) Reap() ([]endpoint.Endpoint, error) { return n.endEach(isOver) }

// Collect does the work of CNI's GC. It ends the network's attachments whose IDs aren't keys of valid, except those
// that a process is making or ending. If a record is broken, its network is unknown: Collect ends that attachment only
// if Reap would. Then Collect removes everything that belongs to no attachment. If a step fails, Collect does the
// remaining steps. The error is a *StepError.
func (n Node) Collect(network string, valid map[string]bool) error {
	_, err := n.endEach(func(id string) (bool, error) {
		if valid[id] {
			return false, nil
		}
		e, _, err := endpoint.LoadAny(id)
		if errors.Is(err, endpoint.ErrBroken) { // the attachment's network is unknown
			return isOver(id)
		}
		if err != nil || e.Network != network {
			return false, ignoreNotExist(err)
		}
		busy, err := endpoint.Busy(id)
		return !busy, err
	})
	return failed("collect what is left of attachments", errors.Join(err, n.sweep(valid)))
}

// endEach ends the attachments for which the function ended returns true. It calls that function a second time under
// the node's lock, because the ID may meanwhile belong to a new attachment.
func (n Node) endEach(ended func(id string) (bool, error)) (done []endpoint.Endpoint, err error) {
	ids, err := endpoint.IDs()
	if err != nil {
		return nil, err
	}
	var errs []error
	for _, id := range ids {
		yes, err := ended(id)
		if yes && err == nil {
			var e *endpoint.Endpoint
			if e, err = n.endIf(id, ended); e != nil && err == nil {
				done = append(done, *e)
			}
		}
		if err != nil {
			errs = append(errs, fmt.Errorf("end attachment %s: %w", id, err))
		}
	}
	return done, errors.Join(errs...)
}

func (n Node) endIf(id string, ended func(string) (bool, error)) (*endpoint.Endpoint, error) {
	unlock, err := endpoint.Lock()
	if err != nil {
		return nil, err
	}
	defer unlock()
	if yes, err := ended(id); !yes || err != nil {
		return nil, err
	}
	return n.endLocked(&ending{id: id})
}

// isOver reports whether the attachment is over although no runtime has deleted it. It returns true in two
// cases:
//
//   - A process has begun to end the attachment, and has exited before the end was complete.
//   - No process is making the attachment, and the attachment's link on the node is gone: the kernel deletes the link
//     with the pod's namespace. If the record is broken, another plugin may have made the interface. So weir0 must
//     also have a neighbour entry for one of the addresses: weir makes such entries only for its own links.
func isOver(id string) (bool, error) {
	e, ending, err := endpoint.LoadAny(id)
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return false, nil
	case ending:
		return endpoint.Abandoned(id)
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
	if e.HostIf == "" { // weir doesn't know the chained attachment's link, so it can't see that the link is gone
		return false, nil
	}
	// Busy is asked before linkExists. A process that makes the attachment makes the link before it exits, so an
	// attachment that isn't busy and has no link is over.
	if busy, err := endpoint.Busy(id); busy || err != nil {
		return false, err
	}
	exists, err := linkExists(e)
	return !exists, err
}

func linkExists(e *endpoint.Endpoint) (bool, error) {
	if !e.Chained {
		return bridge.PortExists(e.HostIf)
	}
	own, err := stillAssigned(e)
	if err != nil {
		return false, err
	}
	return bridge.PeerExists(e.HostIf, e.HostIndex, own)
}

func ignoreNotExist(err error) error {
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	return err
}
