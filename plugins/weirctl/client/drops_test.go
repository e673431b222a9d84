package client

import (
	"bytes"
	"encoding/json"
	"net/netip"
	"net/url"
	"strings"
	"testing"
	"time"
	"unicode"
	"unicode/utf8"

	"github.com/google/go-cmp/cmp"
	"github.com/gopacket/gopacket"
	"github.com/gopacket/gopacket/layers"
	"github.com/gopacket/gopacket/pcapgo"

	"github.com/weir-net/weir/agentapi"
)

func aDrop() *agentapi.Drop {
	return &agentapi.Drop{
		Kind: agentapi.DropShown, Time: time.Unix(1e9, 5e8), Count: 3, Node: "node-1", Reason: agentapi.ByPolicy,
		Direction: "ingress", Protocol: "tcp", Chain: "WEIR-IN-X", Policies: []string{"shop/db", "shop/deny"},
		Source:      agentapi.DropEnd{Pod: "shop/batch", Address: netip.MustParseAddr("10.88.0.3"), Port: 40000},
		Destination: agentapi.DropEnd{Pod: "shop/db", Address: netip.MustParseAddr("fd00::2"), Port: 5432},
	}
}

func TestDropLine(t *testing.T) {
	more, lost := aDrop(), aDrop()
	more.Kind, more.Source.Port, more.Destination = agentapi.DropMore, 0, agentapi.DropEnd{}
	lost.Kind = agentapi.DropLost
	passed := aDrop()
	passed.Reason = agentapi.ByAudit
	closed := aDrop()
	closed.Reason, closed.Source, closed.Protocol, closed.ICMP = agentapi.ByClosed, agentapi.DropEnd{
		Node: "node-2", Address: netip.MustParseAddr("192.0.2.1"),
	}, "icmp", "type 8 code 0"
	for _, tc := range []struct {
		d    *agentapi.Drop
		want string
	}{
		{
			aDrop(), "ingress  shop/batch (10.88.0.3:40000) -> shop/db ([fd00::2]:5432) tcp: " +
				"isolated by shop/db, shop/deny; class WEIR-IN-X; node node-1",
		},
		{
			more, "ingress  MORE: from shop/batch (10.88.0.3), to many addresses or ports: isolated by shop/db, shop/deny; " +
				"class WEIR-IN-X; node node-1",
		},
		{
			passed, "ingress  WOULD DROP: shop/batch (10.88.0.3:40000) -> shop/db ([fd00::2]:5432) tcp: " +
				"it passed; audited by shop/db, shop/deny; node node-1",
		},
		{lost, "LOST: the agent read too slowly, so only the number of these packets is known; node node-1"},
		{
			closed, "ingress  node node-2 (192.0.2.1) -> shop/db ([fd00::2]:5432) icmp type 8 code 0: " +
				"the pod is closed, because it is in no class; node node-1",
		},
	} {
		want := time.Unix(1e9, 5e8).Format("2006-01-02 15:04:05.000") + "      3x  " + tc.want
		if diff := cmp.Diff(want, dropLine(tc.d)); diff != "" {
			t.Error(diff)
		}
	}
}

// FuzzDropLine: if names have control characters, the drop is printed as one line without control characters, as text
// and as JSON.
func FuzzDropLine(f *testing.F) {
	f.Add("shop/\x1b[2Jdb", "shop/a\nb", "policy", "WEIR-\u202e", true)
	f.Add("shop/\u009b2Jdb", "shop/\x7f\u0085", "policy", "WEIR-\U000e0041", false)
	f.Fuzz(func(t *testing.T, pod, policy, reason, chain string, more bool) {
		d := aDrop()
		d.Source.Pod, d.Policies, d.Reason, d.Chain, d.Node = pod, []string{policy}, reason, chain, pod
		if more {
			d.Kind = agentapi.DropMore
		}
		for _, format := range []Format{Text, JSON} {
			out := &strings.Builder{}
			if err := DropPrinter(out, format)(d); err != nil {
				t.Fatal(err)
			}
			line, ok := strings.CutSuffix(out.String(), "\n")
			if !ok || strings.ContainsFunc(line, func(r rune) bool { return !unicode.IsPrint(r) }) {
				t.Errorf("%q", out)
			}
			var back agentapi.Drop
			if err := json.Unmarshal([]byte(line), &back); format == JSON && (err != nil ||
				utf8.ValidString(pod) && back.Source.Pod != pod) {
				t.Errorf("%v: %q isn't %q", err, back.Source.Pod, pod)
			}
		}
	})
}

// TestPcap: if a drop has a packet, another implementation of the file's format reads the packet.
func TestPcap(t *testing.T) {
	b := gopacket.NewSerializeBuffer()
	err := gopacket.SerializeLayers(b, gopacket.SerializeOptions{FixLengths: true},
		&layers.IPv4{Version: 4, Protocol: layers.IPProtocolUDP, SrcIP: []byte{10, 0, 0, 1}, DstIP: []byte{10, 0, 0, 2}},
		&layers.UDP{SrcPort: 1, DstPort: 53})
	if err != nil {
		t.Fatal(err)
	}
	out := &bytes.Buffer{}
	w, err := NewPcapWriter(out)
	if err != nil {
		t.Fatal(err)
	}
	d := aDrop()
	for _, packet := range [][]byte{b.Bytes(), nil, {0, 1, 8, 0}} { // nil and ARP aren't written
		d.Packet = packet
		if err := w.Write(d); err != nil {
			t.Fatal(err)
		}
	}
	r, err := pcapgo.NewReader(out)
	if err != nil {
		t.Fatal(err)
	}
	data, info, err := r.ReadPacketData()
	if err != nil || r.LinkType() != linkTypeNFLOG || !info.Timestamp.Equal(d.Time) {
		t.Fatalf("link type %d, %v, %v", r.LinkType(), info, err)
	}
	prefix := []byte("weir drop WEIR-IN-X\x00")
	if data[0] != familyIPv4 || !bytes.HasSuffix(data, b.Bytes()) || !bytes.Contains(data, prefix) {
		t.Errorf("% x", data)
	}
	if _, _, err := r.ReadPacketData(); err == nil {
		t.Error("a second packet")
	}
}

// FuzzDropsQuery: if a query is encoded in a URL and decoded again, it is unchanged.
func FuzzDropsQuery(f *testing.F) {
	f.Add(int64(time.Minute), true, false, "shop", "db", "a&b=c", uint16(80))
	f.Fuzz(func(t *testing.T, since int64, follow, packets bool, namespace, pod, policy string, port uint16) {
		q := agentapi.DropsQuery{
			Since: time.Duration(max(since, 0)), Follow: follow, Packets: packets, Namespace: namespace,
			Pod: pod, Policy: policy, Port: port,
		}
		u, err := url.Parse(q.Path())
		if err != nil {
			t.Fatal(err)
		}
		got, err := agentapi.ParseDropsQuery(u.Query())
		if diff := cmp.Diff(q, got); diff != "" || err != nil {
			t.Error(err, diff)
		}
	})
}

func TestMatches(t *testing.T) {
	for _, tc := range []struct {
		q    agentapi.DropsQuery
		want bool
	}{
		{agentapi.DropsQuery{}, true},
		{agentapi.DropsQuery{Namespace: "shop", Pod: "db", Policy: "deny", Port: 5432}, true},
		{agentapi.DropsQuery{Pod: "shop/batch", Policy: "shop/db"}, true},
		{agentapi.DropsQuery{Namespace: "sho"}, false},
		{agentapi.DropsQuery{Pod: "lab/db"}, false},
		{agentapi.DropsQuery{Policy: "batch"}, false},
		{agentapi.DropsQuery{Port: 40000}, false},
	} {
		if got := tc.q.Matches(aDrop()); got != tc.want {
			t.Errorf("%+v: %v", tc.q, got)
		}
		if !tc.q.Matches(&agentapi.Drop{Kind: agentapi.DropLost}) {
			t.Errorf("%+v: lost packets may be among those", tc.q)
		}
	}
	_, err := agentapi.ParseDropsQuery(url.Values{"port": {"0"}})
	if err == nil || !strings.Contains(err.Error(), "port") {
		t.Errorf("port 0: %v", err)
	}
	b, err := json.Marshal(aDrop())
	var back agentapi.Drop
	sameAddr := cmp.Comparer(func(a, b netip.Addr) bool { return a == b })
	if err != nil || json.Unmarshal(b, &back) != nil || !cmp.Equal(&back, aDrop(), sameAddr) {
		t.Errorf("%v\n%s", err, b)
	}
}
