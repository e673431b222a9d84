package attachment

import (
	"errors"
	"net/netip"
	"os"
	"slices"
	"testing"

	"github.com/weir-net/weir/agentapi"
	"github.com/weir-net/weir/bridge"
	"github.com/weir-net/weir/conf"
	"github.com/weir-net/weir/endpoint"
	"github.com/weir-net/weir/ipam"
	"github.com/weir-net/weir/test/nodetest"
)

type otherSets struct {
	denied []netip.Addr
	err    error // the error that Deny returns
	used   bool
}

func (o *otherSets) Name(netip.Addr) string { return "map pods" }

func (o *otherSets) Deny(_ string, addrs ...netip.Addr) error {
	o.denied = append(o.denied, addrs...)
	return o.err
}

func (o *otherSets) Remove(addrs ...netip.Addr) error {
	o.denied = slices.DeleteFunc(o.denied, func(a netip.Addr) bool { return slices.Contains(addrs, a) })
	return nil
}

func (o *otherSets) Purge(addrs ...netip.Addr) error { return o.Remove(addrs...) }
func (o *otherSets) PurgeEarly(...netip.Addr) func() { return func() {} }
func (o *otherSets) Contains(addr netip.Addr) (bool, error) {
	return slices.Contains(o.denied, addr), nil
}
func (o *otherSets) InUse(netip.Addr) (bool, error)       { return o.used, nil }
func (o *otherSets) Check(...netip.Addr) error            { return nil }
func (o *otherSets) Addresses() (a []netip.Addr, _ error) { return o.denied, nil }

func request(netns string, enforcement conf.Enforcement) Request {
	return Request{
		ContainerID: "c1", IfName: "eth0", Network: "weir", Netns: netns, Enforcement: enforcement,
		Pod: endpoint.Pod{Namespace: "ns-1", Name: "a"},
		Link: Link{Ranges: []conf.Range{{
			Subnet: netip.MustParsePrefix("10.88.0.0/24"), Gateway: netip.MustParseAddr("10.88.0.1"),
			RangeStart: netip.MustParseAddr("10.88.0.2"), RangeEnd: netip.MustParseAddr("10.88.0.99"),
		}}},
	}
}

func wantNothingLeft(t *testing.T, when string, sets *otherSets) {
	t.Helper()
	assigned, err := ipam.Assignments()
	senders, err2 := bridge.Senders()
	link, err3 := bridge.PortExists(bridge.PortName("c1:eth0"))
	if err := errors.Join(err, err2, err3); err != nil {
		t.Fatal(err)
	}
	if endpoint.Exists("c1:eth0") || len(assigned)+len(senders)+len(sets.denied) > 0 || link {
		t.Errorf("%s: left are addresses %v, guard entries %v, denied %v, link %v, record %v",
			when, assigned, senders, sets.denied, link, endpoint.Exists("c1:eth0"))
	}
}

// TestMake: if a step or the report fails, Make undoes the earlier steps, and returns the error.
func TestMake(t *testing.T) {
	if !nodetest.Isolated(t) {
		return
	}
	netns := nodetest.NewNS(t, "pod")
	unreported, refused := errors.New("stdout is closed"), errors.New("refused")
	ok := func(Made) error { return nil }
	for _, tc := range []struct {
		name        string
		enforcement conf.Enforcement
		setUp       func(*Request, *otherSets)
		report      func(Made) error
		is          func(error) bool
	}{
		{
			"a set that refuses the address", conf.Strict,
			func(_ *Request, s *otherSets) { s.err = refused }, ok,
			func(err error) bool {
				var step *StepError
				return errors.As(err, &step) && errors.Is(err, refused)
			},
		},
		{
			"no agent", conf.Strict, nil, ok,
			func(err error) bool {
				var enrol *EnrolError
				return errors.As(err, &enrol) && errors.Is(err, agentapi.ErrNoAgent)
			},
		},
		{
			"an interface that exists", conf.Closed,
			func(r *Request, _ *otherSets) { r.IfName = "lo" }, ok,
			func(err error) bool {
				var link *LinkError
				return errors.As(err, &link) && errors.Is(err, bridge.ErrInterfaceExists)
			},
		},
		{
			"an address that another attachment has", conf.Closed,
			func(r *Request, _ *otherSets) { r.Link.Addresses = []netip.Addr{netip.MustParseAddr("10.88.0.7")} }, ok,
			func(err error) bool {
				var assigned *ipam.AssignedError
				return errors.As(err, &assigned)
			},
		},
		{
			"the node's own namespace", conf.Closed,
			func(r *Request, _ *otherSets) { r.Netns = nodetest.Self }, ok,
			func(err error) bool {
				var netns *NetnsError
				return errors.As(err, &netns)
			},
		},
		{
			"a result that can't be printed", conf.Closed, nil, func(Made) error { return unreported },
			func(err error) bool { return errors.Is(err, unreported) },
		},
	} {
		sets, r := &otherSets{}, request(netns, tc.enforcement)
		if tc.setUp != nil {
			tc.setUp(&r, sets)
		}
		other := len(r.Link.Addresses) > 0
		if other {
			if err := os.Symlink("c2:eth0", "/run/weir/addresses/10.88.0.7"); err != nil {
				t.Fatal(err)
			}
		}
		if err := (Node{Sets: sets}).Make(r, tc.report); err == nil || !tc.is(err) {
			t.Errorf("%s: %v", tc.name, err)
		}
		if other {
			if err := os.Remove("/run/weir/addresses/10.88.0.7"); err != nil {
				t.Fatal(err)
			}
		}
		wantNothingLeft(t, tc.name, sets)
	}
}

// TestMakeAndEnd: Make and End work with an implementation of PodSets that belongs to no backend.
func TestMakeAndEnd(t *testing.T) {
	if !nodetest.Isolated(t) {
		return
	}
	netns := nodetest.NewNS(t, "pod")
	sets := &otherSets{}
	n, r := Node{Sets: sets}, request(netns, conf.Closed)
	var made Made
	if err := n.Make(r, func(m Made) error { made = m; return nil }); err != nil {
		t.Fatal(err)
	}
	address := netip.MustParseAddr("10.88.0.2")
	if e := made.Record; len(e.Addresses) != 1 || e.Addresses[0].Addr != address || e.MAC != "0a:58:0a:58:00:02" {
		t.Errorf("made: %+v", made)
	}
	if len(made.BridgeMAC) == 0 || len(made.Routes) == 0 || !slices.Equal(sets.denied, []netip.Addr{address}) {
		t.Errorf("made: %+v, denied: %v", made, sets.denied)
	}
	var exists *ExistsError
	if err := n.Make(r, func(Made) error { return nil }); !errors.As(err, &exists) {
		t.Errorf("made again: %v", err)
	}
	stray := netip.MustParseAddr("203.0.113.9")
	sets.denied = append(sets.denied, stray)
	if evicted, err := n.Evict([]netip.Addr{address, stray}); err != nil || !slices.Equal(evicted, []netip.Addr{stray}) {
		t.Errorf("evicted: %v, %v", evicted, err)
	}
	for range 2 {
		if err := n.End("c1:eth0"); err != nil {
			t.Fatal(err)
		}
		wantNothingLeft(t, "ended", sets)
	}
	var none *NoRecordError
	if _, err := Load("c1:eth0"); !errors.As(err, &none) {
		t.Errorf("load after the end: %v", err)
	}
}
