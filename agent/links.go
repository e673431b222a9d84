package agent

import (
	"errors"
	"net"

	"github.com/vishvananda/netlink"

	"github.com/weir-net/weir/bridge"
	"github.com/weir-net/weir/conf"
	"github.com/weir-net/weir/endpoint"
)

// links records which pods with enforcement "closed" need no more work on their links. If such a pod starts while no
// agent runs, its link stays down until the agent brings it up.
type links struct {
	// done has the IDs that need no more work: those of chained endpoints, of links that are up, and of links that
	// stay down for a logged reason.
	done map[string]bool
}

func newLinks() links { return links{done: map[string]bool{}} }

// bringUpLinks brings up the links of pods with enforcement "closed" that are in their classes now. It logs why a link
// stays down.
func (a *agent) bringUpLinks() {
	for id, e := range a.records.endpoints {
		if e.Enforcement != conf.Closed || a.links.done[id] || !a.cluster.knows(e) {
			continue
		}
		if e.Chained { // weir never sets a chained attachment's link down
			a.links.done[id], a.enrolments.done[id] = true, true
			continue
		}
		// A running pod may have an address from before a change of the Node's podCIDRs. The pod's link stays up.
		if why := a.misplaced(e); why != "" && !a.isUp(e) {
			a.Log.Error("a pod stays closed: the network configuration that it was made by is out of date",
				"pod", e.Pod.String(), "problem", why)
			a.links.done[id] = true
			continue
		}
		// If there is no link yet, the plugin will make it and bring it up. The plugin asks to enrol first.
		if err := bridge.SetLinkUp(e.HostIf); err == nil {
			a.links.done[id], a.enrolments.done[id] = true, true
		} else if !errors.As(err, &netlink.LinkNotFoundError{}) {
			a.Log.Error("a pod stays closed: its link can't be brought up", "pod", e.Pod.String(), "error", err)
		}
	}
}

func (a *agent) isUp(e endpoint.Endpoint) bool {
	link, err := a.netlink.LinkByName(e.HostIf)
	return err == nil && link.Attrs().Flags&net.FlagUp != 0
}
