package attachment

import (
	"errors"
	"net/netip"
	"os"
	"slices"
	"strings"
	"testing"

	"github.com/weir-net/weir/bridge"
	"github.com/weir-net/weir/endpoint"
	"github.com/weir-net/weir/ipam"
	"github.com/weir-net/weir/netfilter/ipset"
	"github.com/weir-net/weir/test/nodetest"
)

func (n *node) waiting(container string) (busy endpoint.BusyLock) {
	n.Helper()
	id := endpoint.ID(container, "eth0")
	busy = endpoint.LockBusy(id)
	n.must(os.Rename(record(container, ".json"), record(container, ".ending")))
	n.must(bridge.RemovePort(bridge.PortName(id), nil))
	busy.Wait()
	return busy
}

// TestEndTogether: a DEL that gets the node's lock also ends the attachments whose DELs wait for the lock or
// were killed. It leaves an attachment alone whose DEL is running and doesn't wait yet.
func TestEndTogether(t *testing.T) {
	if !nodetest.Isolated(t) {
		return
	}
	n := newNode(t)
	for _, name := range []string{"c1", "c2", "c3", "c4", "c5"} {
		n.add(name, "weir")
	}
	waits := n.waiting("c2")
	works := endpoint.LockBusy("c3:eth0")
	for _, name := range []string{"c3", "c4"} { // c3's DEL is running, and c4's DEL was killed
		n.must(os.Rename(record(name, ".json"), record(name, ".ending")))
	}
	n.must(NewNode().End("c1:eth0"))
	n.want("c1 ended", map[string][]string{"c3": whole, "c5": whole})
	if list := nodetest.Run(t, "ip", "neigh", "show", "nud", "permanent"); len(list) == 0 {
		t.Error("the neighbours of running pods are gone")
	}
	n.must(NewNode().End("c2:eth0")) // the DEL that has waited finds nothing to do
	n.must(waits.Close())
	n.must(works.Close())
	n.must(NewNode().End("c3:eth0"))
	n.want("c3 ended", map[string][]string{"c5": whole})
}

// TestReapLeavesWaitingDELs: the agent leaves an attachment alone while its DEL waits for the node's lock. If the DEL
// is killed, the agent ends the attachment.
func TestReapLeavesWaitingDELs(t *testing.T) {
	if !nodetest.Isolated(t) {
		return
	}
	n := newNode(t)
	n.add("c1", "weir")
	busy := n.waiting("c1")
	for _, killed := range []bool{false, true} {
		if killed {
			n.must(busy.Close())
		}
		ended, err := NewNode().Reap()
		if want := map[bool]int{false: 0, true: 1}[killed]; err != nil || len(ended) != want {
			t.Errorf("killed: %v: reaped %d, want %d; %v", killed, len(ended), want, err)
		}
	}
}

type failingSets struct {
	ipset.PodSets
	look func(addrs []netip.Addr)
	fail bool
}

func (s failingSets) Purge(addrs ...netip.Addr) error {
	s.look(addrs)
	if s.fail {
		return errors.New("the kernel refuses")
	}
	return s.PodSets.Purge(addrs...)
}

// TestEndTogetherInOrder: the guard first forbids the ports to send. Then the addresses leave the sets, and only then
// are the addresses released.
func TestEndTogetherInOrder(t *testing.T) {
	if !nodetest.Isolated(t) {
		return
	}
	n := newNode(t)
	for _, name := range []string{"c1", "c2", "c3"} {
		n.add(name, "weir")
	}
	locks := []endpoint.BusyLock{n.waiting("c1"), n.waiting("c2")}
	purged := 0
	look := func(addrs []netip.Addr) {
		senders, err := bridge.Senders()
		n.must(err)
		for _, a := range addrs {
			owner, err := ipam.AssignedTo(a)
			if owner == "" || err != nil {
				t.Errorf("%s is released before it leaves the sets: %v", a, err)
			}
			if slices.ContainsFunc(senders, func(s bridge.Sender) bool { return s.Addresses[0].Addr == a }) {
				t.Errorf("%s leaves the sets while a port may send from it", a)
			}
		}
		purged = max(purged, len(addrs))
	}
	if err := (Node{Sets: failingSets{look: look, fail: true}}).End("c3:eth0"); err == nil {
		t.Error("DEL succeeded without taking the address out of the sets")
	}
	left := []string{"3 sets", "address", "record"}
	n.want("after a failure", map[string][]string{"c1": left, "c2": left, "c3": left})
	n.must((Node{Sets: failingSets{look: look}}).End("c3:eth0"))
	n.want("all ended", map[string][]string{})
	if purged != 3 {
		t.Errorf("at most %d addresses left the sets together, want 3", purged)
	}
	for _, m := range locks {
		n.must(m.Close())
	}
}

// TestEndTogetherWithDamagedRecord: if a record is damaged while its DEL waits for the node's lock, the DEL
// still ends the attachment.
func TestEndTogetherWithDamagedRecord(t *testing.T) {
	if !nodetest.Isolated(t) {
		return
	}
	n := newNode(t)
	for _, name := range []string{"c1", "c2", "c3"} {
		n.add(name, "weir")
	}
	busy, other := n.waiting("c1"), n.waiting("c2")
	x := &ending{id: "c1:eth0", busy: true}
	e, err := endpoint.MarkEnding(x.id)
	n.must(err)
	x.setRecord(e)
	x.begun = true
	n.must(os.WriteFile(record("c1", ".ending"), []byte("{"), 0o600))
	unlock, err := endpoint.Lock()
	n.must(err)
	later, err := NewNode().endWaiting(x)
	unlock()
	later()
	n.must(err)
	n.must(NewNode().End("c2:eth0"))
	n.want("c1 and c2 ended", map[string][]string{"c3": whole})
	n.must(busy.Close())
	n.must(other.Close())
}

// TestEndTogetherAfterKill: the DEL of c1 was killed after it had released the address of c1, and c3 has got the
// address. The DEL of c2 also ends c1. It leaves the address of c3 assigned and in its sets.
func TestEndTogetherAfterKill(t *testing.T) {
	if !nodetest.Isolated(t) {
		return
	}
	n := newNode(t)
	released := n.add("c1", "weir").Addresses[0].Addr
	n.add("c2", "weir")
	n.must(n.waiting("c1").Close())
	n.must(ipam.Release("c1:eth0", released))
	n.must(ipam.AssignExternal("c3:eth0", released))
	n.must(NewNode().End("c2:eth0"))
	if owner, err := ipam.AssignedTo(released); owner != "c3:eth0" || err != nil {
		t.Errorf("%s is assigned to %q: %v", released, owner, err)
	}
	if sets := nodetest.Run(t, "ipset", "save"); strings.Count(sets, released.String()+" ") != 3 {
		t.Errorf("the new attachment's address left sets:\n%s", sets)
	}
	if endpoint.Exists("c1:eth0") {
		t.Error("the old record is left")
	}
}
