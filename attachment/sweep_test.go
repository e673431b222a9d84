package attachment

import (
	"maps"
	"net/netip"
	"os"
	"testing"
	"time"

	"github.com/weir-net/weir/conf"
	"github.com/weir-net/weir/endpoint"
	"github.com/weir-net/weir/ipam"
	"github.com/weir-net/weir/test/nodetest"
)

// commentedSets records the comments that Deny gets, and whether another process could take the node's lock during
// Deny.
type commentedSets struct {
	otherSets
	comments map[netip.Addr]string
	unlocked bool
}

func (s *commentedSets) Deny(pod string, addrs ...netip.Addr) error {
	if unlock, err := endpoint.LockWithin(time.Millisecond); err == nil {
		unlock()
		s.unlocked = true
	}
	for _, a := range addrs {
		s.comments[a] = pod
	}
	return nil
}

// TestDenyLost: DenyLost denies the addresses of lost and broken records, and of records that are ending. It does so
// under the node's lock, and fails if another process has the lock.
func TestDenyLost(t *testing.T) {
	if !nodetest.Isolated(t) {
		return
	}
	addrs := map[string]netip.Addr{}
	sets := &commentedSets{comments: map[netip.Addr]string{}}
	for i, name := range []string{"attached", "ending", "broken", "lost"} {
		addr := netip.AddrFrom4([4]byte{192, 0, 2, byte(i)})
		addrs[name] = addr
		sets.denied = append(sets.denied, addr, addr) // once for each backend
		e := &endpoint.Endpoint{
			ContainerID: name, IfName: "eth0", Enforcement: conf.Strict, Chained: true,
			Pod:       endpoint.Pod{Namespace: "ns-1", Name: name},
			Addresses: []endpoint.Address{{Addr: addr, Subnet: netip.PrefixFrom(addr, 32)}},
		}
		if err := e.Save(); err != nil {
			t.Fatal(err)
		}
	}
	for _, err := range []error{
		ipam.AssignExternal("broken:eth0", addrs["broken"]),
		os.Rename(record("ending", ".json"), record("ending", ".ending")),
		os.WriteFile(record("broken", ".json"), []byte("{"), 0o600),
		os.Remove(record("lost", ".json")),
	} {
		if err != nil {
			t.Fatal(err)
		}
	}
	n := Node{Sets: sets}
	unlock, err := endpoint.Lock()
	if err != nil {
		t.Fatal(err)
	}
	if err := n.DenyLost(); err == nil || len(sets.comments) > 0 {
		t.Errorf("while another process has the lock: %v, %v", sets.comments, err)
	}
	unlock()
	if err := n.DenyLost(); err != nil || sets.unlocked {
		t.Errorf("without the lock: %v, %v", sets.unlocked, err)
	}
	want := map[netip.Addr]string{
		addrs["ending"]: "ns-1/ending", addrs["broken"]: "unknown/broken:eth0", addrs["lost"]: "unknown",
	}
	if !maps.Equal(sets.comments, want) {
		t.Errorf("denied: %v, want %v", sets.comments, want)
	}
}
