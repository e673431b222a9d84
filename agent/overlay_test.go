package agent

import (
	"errors"
	"testing"

	"github.com/weir-net/weir/test/nodetest"
)

// TestRepairsBesideARefusedRoute: while the kernel refuses the route to one node, the agent counts repairs of the
// other parts of the overlay. It never counts the refused route as a repair, not even when the kernel accepts the
// route later.
func TestRepairsBesideARefusedRoute(t *testing.T) {
	if !nodetest.Isolated(t) {
		return
	}
	r := start(t)
	r.attach("web", "10.88.0.2")
	nodetest.Run(t, "ip", "route", "add", "10.88.2.0/24", "via", "192.0.2.1") // another program has a route there
	objects := healthy()
	objects.Nodes = append(objects.Nodes, node("other", "192.0.2.4", "10.88.2.0/24"))
	r.tell(objects, nil)
	const problems, repairs = `weir_problems{kind="Node"}`, `weir_node_repairs_total{kind="overlay"}`
	r.wantMetrics(map[string]float64{problems: 1, repairs: 0})
	nodetest.Run(t, "ip", "neigh", "del", "10.88.1.0", "dev", "weir-vxlan")
	r.wantMetrics(map[string]float64{problems: 1, repairs: 1})
	nodetest.Run(t, "ip", "addr", "del", "10.88.0.0/32", "dev", "weir-vxlan")
	r.eventually("the missing address is logged", func() error {
		if r.log.count("kind=overlay", "weir-vxlan lacks the address 10.88.0.0") == 0 {
			return errors.New("it isn't")
		}
		return nil
	})
	repaired := r.metrics()[repairs]
	nodetest.Run(t, "ip", "route", "del", "10.88.2.0/24", "via", "192.0.2.1")
	r.wantMetrics(map[string]float64{problems: 0, repairs: repaired})
	r.rounds()
	r.wantMetrics(map[string]float64{problems: 0, repairs: repaired})
}
