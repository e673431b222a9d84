package batch

import (
	"errors"
	"strings"
	"testing"

	"github.com/vishvananda/netlink/nl"
	"github.com/vishvananda/netns"
	"golang.org/x/sys/unix"

	"github.com/weir-net/weir/test/nodetest"
)

func link(name string) *nl.NetlinkRequest {
	r := nl.NewNetlinkRequest(unix.RTM_GETLINK, 0)
	r.AddData(nl.NewIfInfomsg(unix.AF_UNSPEC))
	r.AddData(nl.NewRtAttr(unix.IFLA_IFNAME, nl.ZeroTerminated(name)))
	return r
}

// TestErrors: if a request fails, the error names the request and wraps the result of MapError. If MapError returns
// nil, Do succeeds.
func TestErrors(t *testing.T) {
	if !nodetest.Isolated(t) {
		return
	}
	other := errors.New("what it means")
	for at := range 3 {
		var b, accepted Batch
		for i := range 3 {
			if i == at {
				b.Add(link("none"), "look %s up", "none").MapError = MapError(unix.ENODEV, other)
				accepted.Add(link("none"), "look none up").MapError = MapError(unix.ENODEV, nil)
			} else {
				b.Add(link("lo"), "look lo up")
				accepted.Add(link("lo"), "look lo up")
			}
		}
		if _, err := b.Do(unix.NETLINK_ROUTE, netns.None()); !errors.Is(err, other) ||
			!strings.Contains(err.Error(), "look none up") {
			t.Errorf("failed at %d: %v", at, err)
		}
		if replies, err := accepted.Do(unix.NETLINK_ROUTE, netns.None()); err != nil || len(replies) != 2 {
			t.Errorf("failed at %d, which means nothing: %d replies, %v", at, len(replies), err)
		}
	}
}

// TestReplies: Do sends requests in the given namespace, and returns the reply to each request, and all entries of a
// list.
func TestReplies(t *testing.T) {
	if !nodetest.Isolated(t) {
		return
	}
	if replies, err := (Batch{}).Do(unix.NETLINK_ROUTE, netns.None()); len(replies) > 0 || err != nil {
		t.Errorf("nothing to do: %d replies, %v", len(replies), err)
	}
	path := nodetest.NewNS(t, "pod")
	nodetest.Run(t, "sh", "-c",
		"ip -n pod link set lo up; for i in $(seq 250); do ip -n pod addr add 10.0.$i.1/24 dev lo; done")
	ns, err := netns.GetFromPath(path)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = ns.Close() }()
	for where, want := range map[netns.NsHandle]int{netns.None(): 1, ns: 251} {
		var b Batch
		b.Add(link("lo"), "look lo up")
		list := nl.NewNetlinkRequest(unix.RTM_GETADDR, unix.NLM_F_DUMP)
		list.AddData(nl.NewIfAddrmsg(unix.AF_INET))
		b.Add(list, "list addresses")
		replies, err := b.Do(unix.NETLINK_ROUTE, where)
		if err != nil || len(replies) != 1+want {
			t.Errorf("%d replies, want %d, %v", len(replies), 1+want, err)
		}
	}
}
