package attachment

import (
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"golang.org/x/sys/unix"

	"github.com/weir-net/weir/bridge"
	"github.com/weir-net/weir/conf"
	"github.com/weir-net/weir/endpoint"
	"github.com/weir-net/weir/ipam"
	"github.com/weir-net/weir/netfilter/ipset"
	"github.com/weir-net/weir/test/nodetest"
)

type node struct{ *testing.T }

func newNode(t *testing.T) *node {
	t.Helper()
	sets, err := ipset.New()
	if err != nil {
		t.Fatal(err)
	}
	defer sets.Close()
	for _, set := range []string{conf.PodsSet, conf.IngressClasses + "x", "weir-sel-x"} {
		if err := sets.Create(ipset.Header{Name: set, Type: ipset.HashIP}); err != nil {
			t.Fatal(err)
		}
	}
	nodetest.Run(t, "ip", "link", "add", bridge.Name, "type", "bridge")
	return &node{t}
}

func (n *node) must(err error) {
	n.Helper()
	if err != nil {
		n.Fatal(err)
	}
}

func (n *node) begin(container, network string) (e *endpoint.Endpoint, making io.Closer) {
	n.Helper()
	e = &endpoint.Endpoint{ContainerID: container, IfName: "eth0", Network: network, Enforcement: conf.Strict}
	e.HostIf = bridge.PortName(e.ID())
	unlock, err := endpoint.Lock()
	n.must(err)
	defer unlock()
	ranges := []conf.Range{{
		Subnet: netip.MustParsePrefix("10.88.0.0/24"), Gateway: netip.MustParseAddr("10.88.0.1"),
		RangeStart: netip.MustParseAddr("10.88.0.2"), RangeEnd: netip.MustParseAddr("10.88.0.99"),
	}}
	n.must(ipam.Assign(e.ID(), ipam.Request{Ranges: ranges}, func(a []endpoint.Address) (err error) {
		e.Addresses, e.MAC = a, bridge.PodMAC(a).String()
		making, err = e.Begin()
		return err
	}))
	return e, making
}

func (n *node) add(container, network string) *endpoint.Endpoint {
	n.Helper()
	e, making := n.begin(container, network)
	nodetest.Run(n, "ip", "link", "add", e.HostIf, "type", "veth", "peer", "name", container)
	addr := e.Addresses[0].Addr
	mac, err := net.ParseMAC(e.MAC)
	n.must(err)
	n.must(bridge.AllowSender(bridge.Sender{HostIf: e.HostIf, MAC: mac, Addresses: e.Addresses}))
	nodetest.Run(n, "ip", "neigh", "add", addr.String(), "lladdr", e.MAC, "dev", bridge.Name, "nud", "permanent")
	for _, set := range []string{conf.PodsSet, conf.IngressClasses + "x", "weir-sel-x"} {
		n.must(ipset.Apply(
			ipset.Change{Set: set, Entry: ipset.Entry{Prefix: netip.PrefixFrom(addr, 32), Comment: container}}))
	}
	n.must(making.Close())
	return e
}

func (n *node) traces() map[string][]string {
	n.Helper()
	out := nodetest.Run(n, "sh", "-c",
		"ls /run/weir/endpoints /run/weir/addresses; ip -o link; ip neigh show nud permanent; ipset list; "+
			"readlink /run/weir/addresses/* || :")
	if guard, err := exec.Command("nft", "list", "table", "bridge", "weir").Output(); err == nil {
		out += string(guard)
	}
	all := map[string][]string{}
	for _, name := range []string{"c1", "c2", "c3", "c4", "c5"} {
		id := endpoint.ID(name, "eth0")
		for what, sign := range map[string]string{
			"record": id + ".", "address": id + "\n",
			"link": bridge.PortName(id) + "@", "guard": bridge.PortName(id) + "\"",
		} {
			if strings.Contains(out, sign) {
				all[name] = append(all[name], what)
			}
		}
		if k := strings.Count(out, `comment "`+name+`"`); k > 0 {
			all[name] = append(all[name], fmt.Sprint(k, " sets"))
		}
		slices.Sort(all[name])
	}
	for name := range all {
		if all[name] == nil {
			delete(all, name)
		}
	}
	return all
}

var whole = []string{"3 sets", "address", "guard", "link", "record"}

func (n *node) want(when string, want map[string][]string) {
	n.Helper()
	if diff := cmp.Diff(want, n.traces()); diff != "" {
		n.Errorf("%s: %s", when, diff)
	}
}

func record(container, suffix string) string {
	return "/run/weir/endpoints/" + endpoint.ID(container, "eth0") + suffix
}

func TestReap(t *testing.T) {
	if !nodetest.Isolated(t) {
		return
	}
	n := newNode(t)
	for _, name := range []string{"c1", "c2", "c3"} {
		n.add(name, "weir")
	}
	_, making := n.begin("c4", "weir") // a running ADD that has made no link yet
	held := []string{"address", "record"}
	all := map[string][]string{"c1": whole, "c2": whole, "c3": whole, "c4": held}
	reap := func(want ...string) {
		t.Helper()
		ended, err := NewNode().Reap()
		var got []string
		for _, e := range ended {
			got = append(got, e.ContainerID)
			delete(all, e.ContainerID)
		}
		if diff := cmp.Diff(want, got); diff != "" || err != nil {
			t.Errorf("reaped: %v %s", err, diff)
		}
		n.want(fmt.Sprintf("reaped %s", want), all)
	}
	reap()
	nodetest.Run(t, "ip", "link", "del", "c1") // the kernel deletes the link when the pod's namespace ends
	reap("c1")
	ending := endpoint.LockBusy("c2:eth0")
	n.must(os.Rename(record("c2", ".json"), record("c2", ".ending"))) // a running DEL
	reap()
	n.must(ending.Close()) // as if the DEL of c2 had been killed
	reap("c2")
	n.must(os.WriteFile(record("c3", ".json"), []byte("{"), 0o600))
	reap() // c3's pod still runs, so Reap leaves c3
	nodetest.Run(t, "ip", "link", "del", "c3")
	reap("c3")
	n.must(making.Close()) // as if the ADD of c4 had been killed
	reap("c4")
	n.must(NewNode().End("c1:eth0")) // a late DEL, when Reap has already ended the attachment
}

// TestReapAPodThatRunsOn: if a DEL of a chained attachment is killed, and the pod runs on in a network namespace that
// the agent can't see, Reap sets the pod's link down.
func TestReapAPodThatRunsOn(t *testing.T) {
	if !nodetest.Isolated(t) {
		return
	}
	newNode(t)
	nodetest.RunEach(t, "ip link add vpod type veth peer name eth0", "ip link set vpod up")
	link, err := net.InterfaceByName("vpod")
	if err != nil {
		t.Fatal(err)
	}
	e := &endpoint.Endpoint{
		ContainerID: "c1", IfName: "eth0", Network: "weir", Enforcement: conf.Strict, Netns: "/run/netns/unseen",
		Chained: true, HostIf: link.Name, HostIndex: link.Index,
	}
	if err := errors.Join(e.Save(), os.Rename(record("c1", ".json"), record("c1", ".ending"))); err != nil {
		t.Fatal(err)
	}
	if ended, err := NewNode().Reap(); err != nil || len(ended) != 1 {
		t.Fatalf("%d ended: %v", len(ended), err)
	}
	if link, err := net.InterfaceByName("vpod"); err != nil || link.Flags&net.FlagUp != 0 {
		t.Errorf("the pod's link is up: %v", err)
	}
}

func TestCollect(t *testing.T) {
	if !nodetest.Isolated(t) {
		return
	}
	n := newNode(t)
	for name, network := range map[string]string{"c1": "weir", "c2": "weir", "c3": "other", "c4": "weir"} {
		n.add(name, network)
	}
	_, making := n.begin("c5", "weir")
	nodetest.Run(t, "ip", "link", "del", "c3") // c3's pod is gone, but c3 is in another network
	over := []string{"3 sets", "address", "guard", "record"}
	n.must(os.WriteFile(record("c4", ".json"), []byte("{"), 0o600)) // with a broken record, c4's network is unknown
	valid := map[string]bool{"c1:eth0": true, "c9:eth0": true}
	for range 2 {
		n.must(NewNode().Collect("weir", valid))
		n.want("collected", map[string][]string{"c1": whole, "c3": over, "c4": whole, "c5": {"address", "record"}})
	}
	n.must(making.Close())
	n.must(NewNode().Collect("other", nil))
	n.want("the other network's", map[string][]string{"c1": whole, "c4": whole, "c5": {"address", "record"}})
	nodetest.Run(t, "ip", "link", "del", "c4")
	n.must(NewNode().Collect("weir", nil))
	n.want("with nothing valid", map[string][]string{})
}

// TestEvict: Evict removes an address only if it is in the set of all pods, belongs to no attachment, and is in no
// network namespace. Collect, too, leaves an address in the set if a network namespace has it.
func TestEvict(t *testing.T) {
	if !nodetest.Isolated(t) {
		return
	}
	n := newNode(t)
	e := n.add("c1", "weir")
	stray, over := netip.MustParseAddr("203.0.113.9"), netip.MustParseAddr("203.0.113.10")
	n.must(ipset.Apply(ipset.Change{Set: conf.PodsSet, Entry: ipset.Entry{Prefix: netip.PrefixFrom(stray, 32)}}))
	evicted, err := NewNode().Evict([]netip.Addr{e.Addresses[0].Addr, stray, over})
	if err != nil || !slices.Equal(evicted, []netip.Addr{stray}) {
		t.Errorf("evicted: %v, %v", evicted, err)
	}
	if in, err := ipset.Has(conf.PodsSet, stray); in || err != nil {
		t.Errorf("the stray is in the set: %v, %v", in, err)
	}
	n.want("evicted", map[string][]string{"c1": whole})
	nodetest.NewNS(t, "pod")
	nodetest.RunEach(t, "ip link add vpod type veth peer name eth0 netns pod",
		"ip -n pod address add "+over.String()+"/32 dev eth0")
	n.must(ipset.Apply(ipset.Change{Set: conf.PodsSet, Entry: ipset.Entry{Prefix: netip.PrefixFrom(over, 32)}}))
	if evicted, err := NewNode().Evict([]netip.Addr{over}); err == nil || len(evicted) > 0 {
		t.Errorf("a namespace has the address, and it was evicted: %v, %v", evicted, err)
	}
	n.must(NewNode().Collect("weir", map[string]bool{"c1:eth0": true}))
	if in, err := ipset.Has(conf.PodsSet, over); !in || err != nil {
		t.Errorf("the address is in the set: %v, %v", in, err)
	}
}

// TestLostRecords: Collect removes all traces of this node's attachments that have no record, except of attachments
// that the runtime lists. Entries of other nodes' pods stay in the sets.
func TestLostRecords(t *testing.T) {
	if !nodetest.Isolated(t) {
		return
	}
	n := newNode(t)
	for _, name := range []string{"c1", "c2"} {
		n.add(name, "weir")
	}
	stranger := ipset.Entry{Prefix: netip.MustParsePrefix("10.99.0.7/32"), Comment: "a pod of another node"}
	n.must(ipset.Apply(ipset.Change{Set: "weir-sel-x", Entry: stranger}))
	n.must(os.RemoveAll("/run/weir/endpoints"))
	n.must(os.Mkdir("/run/weir/endpoints", 0o700))
	n.must(NewNode().Collect("weir", map[string]bool{"c1:eth0": true}))
	n.want("collected", map[string][]string{"c1": {"3 sets", "address", "guard", "link"}})
	n.must(NewNode().Collect("weir", nil))
	n.want("with nothing valid", map[string][]string{})
	if neighbours := nodetest.Run(t, "ip", "neigh", "show", "nud", "permanent"); neighbours != "" {
		t.Errorf("neighbours left: %s", neighbours)
	}
	if in, err := ipset.Has("weir-sel-x", stranger.Prefix.Addr()); err != nil || !in {
		t.Errorf("%v: a pod of another node was taken out of its set", err)
	}
}

// TestAnIDThatCameBack: endEach ends an attachment only if a second look also finds that the attachment is over. A new
// attachment may have got the same ID between the looks.
func TestAnIDThatCameBack(t *testing.T) {
	if !nodetest.Isolated(t) {
		return
	}
	n := newNode(t)
	n.add("c1", "weir")
	looks := 0
	ended, err := NewNode().endEach(func(id string) (bool, error) {
		looks++
		if looks == 1 {
			return true, nil
		}
		return isOver(id)
	})
	if len(ended) > 0 || err != nil || looks != 2 {
		t.Errorf("%v, %v after %d looks", ended, err, looks)
	}
	n.want("after it came back", map[string][]string{"c1": whole})
}

func TestEndOfABrokenRecord(t *testing.T) {
	if !nodetest.Isolated(t) {
		return
	}
	n := newNode(t)
	n.add("c1", "weir")
	n.add("c2", "weir")
	n.must(os.WriteFile(record("c1", ".json"), []byte(`{"containerID": "c1", "ifName": "eth0", "hostInterface": 7`),
		0o600))
	// Without a link and a neighbour entry, the attachment looks like an attachment of another plugin, so Reap must
	// leave it.
	for _, command := range []string{
		"link del " + bridge.PortName("c1:eth0"),
		"neigh flush nud permanent dev " + bridge.Name,
	} {
		nodetest.Run(t, "ip", strings.Fields(command)...)
	}
	if ended, err := NewNode().Reap(); len(ended) > 0 || err != nil {
		t.Errorf("%v, %v: reaped", ended, err)
	}
	n.must(NewNode().Collect("weir", map[string]bool{"c2:eth0": true}))
	n.want("collected", map[string][]string{"c1": {"3 sets", "address", "guard", "record"}, "c2": whole})
	for range 2 {
		n.must(NewNode().End("c1:eth0"))
		n.want("ended", map[string][]string{"c2": whole})
	}
	// The record names a link that isn't the attachment's: End must not touch that link.
	e, err := endpoint.Load("c2:eth0")
	n.must(err)
	e.HostIf = "lo"
	n.must(e.Save())
	n.must(NewNode().End("c2:eth0"))
	n.want("ended", map[string][]string{})
	nodetest.Run(t, "ip", "link", "show", "lo")
	// The record can be decoded, but its address can't be used. End still ends the attachment.
	n.add("c3", "weir")
	n.must(os.WriteFile(record("c3", ".json"),
		[]byte(`{"containerID": "c3", "ifName": "eth0", "mac": "0a:58:0a:58:00:02", "addresses": [{}]}`), 0o600))
	n.must(NewNode().End("c3:eth0"))
	n.want("ended", map[string][]string{})
}

// earlySets records the addresses that PurgeEarly got. The field before is true if the link existed when PurgeEarly was
// called. The field after is true if the link existed when the function that PurgeEarly returned was called.
type earlySets struct {
	podSets
	link          string
	addrs         []netip.Addr
	before, after bool
}

func (s *earlySets) PurgeEarly(addrs ...netip.Addr) (later func()) {
	s.addrs = append(s.addrs, addrs...)
	s.before, _ = bridge.PortExists(s.link)
	return func() { s.after, _ = bridge.PortExists(s.link) }
}

// TestSetsBeforeTheLink: DEL takes an address out of the sets before it deletes the link, but only if no other process
// can release the address. Otherwise another attachment may already have the address.
func TestSetsBeforeTheLink(t *testing.T) {
	if !nodetest.Isolated(t) {
		return
	}
	n := newNode(t)
	for name, own := range map[string]bool{"c1": true, "c2": false, "c3": false} {
		e := n.add(name, "weir")
		a := e.Addresses[0].Addr
		if name == "c2" {
			n.must(ipam.Release(e.ID(), a))
			n.must(ipam.AssignExternal("c5:eth0", a))
		}
		sets := &earlySets{link: e.HostIf}
		x := &ending{id: e.ID(), busy: name != "c3"} // as if another process had locked c3's record
		n.must((Node{Sets: sets}).begin(x))
		if got := slices.Contains(sets.addrs, a); got != own {
			t.Errorf("%s: took the address out of sets early: %v, want %v", name, got, own)
		}
		if !sets.before || sets.after {
			t.Errorf("%s: the link existed before: %v, after: %v", name, sets.before, sets.after)
		}
		n.must(NewNode().End(e.ID()))
	}
}

// TestEndOnAReadOnlyDisk: if /run/weir can't be made or written, End of an attachment that was never made succeeds, and
// End of an attachment with a record fails.
func TestEndOnAReadOnlyDisk(t *testing.T) {
	if !nodetest.Isolated(t) {
		return
	}
	n := newNode(t)
	nodetest.Run(t, "mount", "-t", "tmpfs", "-o", "ro", "none", "/run")
	n.must(NewNode().End("never:eth0"))
	nodetest.Run(t, "umount", "/run")
	n.add("c1", "weir")
	n.add("c2", "weir")
	n.must(os.Rename(record("c2", ".json"), record("c2", ".ending")))
	nodetest.RunEach(t, "mount --bind /run/weir /run/weir", "mount -o remount,bind,ro /run/weir")
	n.must(NewNode().End("never:eth0"))
	for _, id := range []string{"c1:eth0", "c2:eth0"} {
		if err := NewNode().End(id); !errors.Is(err, unix.EROFS) {
			t.Errorf("%s: %v", id, err)
		}
	}
	nodetest.Run(t, "umount", "/run/weir")
	for _, id := range []string{"c1:eth0", "c2:eth0"} {
		n.must(NewNode().End(id))
	}
	n.want("on a disk that can be written", map[string][]string{})
}
