package ipset

import (
	"errors"
	"net/netip"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"

	"github.com/weir-net/weir/internal/nodetest"
)

func TestSets(t *testing.T) {
	if !nodetest.Isolated(t) {
		return
	}
	h, err := Open()
	if err != nil {
		t.Fatal(err)
	}
	defer h.Close()
	must := func(err error) {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
	}
	pod, net := netip.MustParsePrefix("10.88.0.2/32"), netip.MustParsePrefix("10.88.0.0/24")
	for range 2 { // each verb is safe to repeat
		must(h.Create("weir-pods", HashIP))
		must(h.Create("weir-networks", HashNet))
		must(h.Add("weir-pods", Entry{pod, "ns-1/a"}))
		must(h.Add("weir-networks", Entry{net, "pods of this node"}))
		must(h.Add("weir-networks", Entry{pod, "one address"}))
	}
	nodetest.Run(t, "ipset", "create", "somebody-elses", "hash:ip")
	nodetest.Run(t, "ipset", "add", "somebody-elses", "10.88.0.2")

	names, err := h.Names()
	must(err)
	if diff := cmp.Diff([]string{"weir-networks", "weir-pods"}, names, cmpopts.SortSlices(strings.Compare)); diff != "" {
		t.Errorf("names: %s", diff)
	}
	prefixes := cmp.Comparer(func(a, b netip.Prefix) bool { return a == b })
	got, err := h.List("weir-networks")
	must(err)
	want := Set{"weir-networks", HashNet, true, []Entry{{net, "pods of this node"}, {pod, "one address"}}}
	if diff := cmp.Diff(want, got, prefixes, cmpopts.SortSlices(func(a, b Entry) bool { return a.Comment > b.Comment })); diff != "" {
		t.Errorf("weir-networks: %s", diff)
	}
	if in, err := h.Has("weir-pods", pod.Addr()); !in || err != nil {
		t.Errorf("10.88.0.2 in weir-pods: %v, %v", in, err)
	}
	shown := nodetest.Run(t, "ipset", "list")
	for _, words := range []string{`comment "ns-1/a"`, `comment "pods of this node"`} {
		if !strings.Contains(shown, words) {
			t.Errorf("a person doesn't see %s in\n%s", words, shown)
		}
	}
	for range 2 {
		must(h.Purge(pod.Addr()))
	}
	if in, err := h.Has("weir-pods", pod.Addr()); in || err != nil {
		t.Errorf("10.88.0.2 in weir-pods after Purge: %v, %v", in, err)
	}
	if got, err := h.List("weir-networks"); err != nil || len(got.Entries) != 2 {
		t.Errorf("Purge touched a set of networks: %v, %v", got, err)
	}
	nodetest.Run(t, "ipset", "test", "somebody-elses", "10.88.0.2")

	if err := h.Create("weir-pods", HashNet); err == nil {
		t.Error("a set was taken for one of another type")
	}
	if err := h.Add("weir-none", Entry{Prefix: pod}); !errors.Is(err, ErrNotExist) {
		t.Errorf("add to a set that isn't there: %v", err)
	}
	for range 2 {
		must(h.Destroy("weir-networks"))
	}
}
