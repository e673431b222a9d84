package agent

import (
	"errors"
	"net"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/weir-net/weir/bridge"
	"github.com/weir-net/weir/conf"
	"github.com/weir-net/weir/endpoint"
)

// links has the links of pods with enforcement "closed", by endpoint ID. If such a pod starts while no agent runs, its
// link stays down until an agent brings it up.
type links struct {
	done map[string]bool   // the links that the agent need not bring up any more
	down map[string]string // why the agent leaves links down
}

func newLinks() links { return links{done: map[string]bool{}, down: map[string]string{}} }

func (a *agent) bringUpLinks() {
	for id, e := range a.records.endpoints {
		if e.Enforcement != conf.Closed || a.links.done[id] || !a.cluster.knows(e) {
			continue
		}
		if e.Chained { // the other plugin has set the link up
			a.links.done[id], a.enrolments.done[id] = true, true
			continue
		}
		// A running pod may have an address from before a change of the Node's podCIDRs. The link of such a pod stays
		// up.
		if why := a.foreign(e); why != "" {
			up, err := a.isUp(e)
			if err != nil {
				continue // the next round looks again
			}
			if a.links.down[id] != "" || !up {
				a.keepDown(id, e, why)
				continue
			}
		}
		delete(a.links.down, id)
		// A missing link is no fault: an ADD is running, and will make the link and bring it up.
		if err := bridge.SetLinkUp(e.HostIf); err == nil {
			a.links.done[id], a.enrolments.done[id] = true, true
		} else if !errors.Is(err, unix.ENODEV) {
			a.Log.Error("a pod stays closed: its link can't be brought up", "pod", e.Pod.String(), "error", err)
		}
	}
}

func (a *agent) keepDown(id string, e endpoint.Endpoint, why string) {
	if a.links.down[id] != why {
		a.Log.Error("a pod stays closed: the network configuration that it was made by is out of date",
			"pod", e.Pod.String(), "problem", why)
	}
	a.links.down[id] = why
}

// isUp reports whether the pod's link is up. A missing link counts as down.
func (a *agent) isUp(e endpoint.Endpoint) (bool, error) {
	link, err := a.netlink.LinkByName(e.HostIf)
	if errors.As(err, new(netlink.LinkNotFoundError)) {
		return false, nil
	}
	return err == nil && link.Attrs().Flags&net.FlagUp != 0, err
}
