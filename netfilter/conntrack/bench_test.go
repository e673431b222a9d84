package conntrack

import (
	"encoding/binary"
	"net/netip"
	"runtime"
	"testing"
	"time"

	"github.com/vishvananda/netlink/nl"
	"github.com/vishvananda/netns"
	"golang.org/x/sys/unix"
)

// full fills a connection table with the entries of 50 pods. The table is in a network namespace that ends with the
// benchmark's thread. The benchmarks need root: go test ./netfilter/conntrack -run - -bench .
func full(b *testing.B, entries int) {
	b.Helper()
	runtime.LockOSThread()
	ns, err := netns.New()
	if err != nil {
		b.Fatal(err)
	}
	b.Cleanup(func() { _ = ns.Close() })
	socket, err := nl.Subscribe(unix.NETLINK_NETFILTER)
	if err != nil {
		b.Fatal(err)
	}
	defer socket.Close()
	for i := range entries {
		pod, other := netip.AddrFrom4([4]byte{100, 96, 0, byte(2 + i%50)}),
			netip.AddrFrom4([4]byte{10, byte(i >> 16), byte(i >> 8), byte(i)})
		req := request(nl.IPCTNL_MSG_CT_NEW, unix.NLM_F_ACK|unix.NLM_F_CREATE, unix.AF_INET)
		req.Sockets = map[int]*nl.SocketHandle{unix.NETLINK_NETFILTER: {Seq: uint32(i), Socket: socket}}
		req.AddData(udpTuple(nl.CTA_TUPLE_ORIG, pod, other, 4000, 53))
		req.AddData(udpTuple(nl.CTA_TUPLE_REPLY, other, pod, 53, 4000))
		req.AddData(nl.NewRtAttr(nl.CTA_TIMEOUT, nl.BEUint32Attr(3600)))
		req.AddData(nl.NewRtAttr(nl.CTA_STATUS, nl.BEUint32Attr(1<<1|1<<3)))
		if _, err := req.Execute(unix.NETLINK_NETFILTER, 0); err != nil {
			b.Fatal(err)
		}
	}
}

func udpTuple(kind int, src, dst netip.Addr, sport, dport uint16) *nl.RtAttr {
	t := nl.NewRtAttr(kind|unix.NLA_F_NESTED, nil)
	ip := t.AddRtAttr(nl.CTA_TUPLE_IP|unix.NLA_F_NESTED, nil)
	ip.AddRtAttr(nl.CTA_IP_V4_SRC, src.AsSlice())
	ip.AddRtAttr(nl.CTA_IP_V4_DST, dst.AsSlice())
	proto := t.AddRtAttr(nl.CTA_TUPLE_PROTO|unix.NLA_F_NESTED, nil)
	proto.AddRtAttr(nl.CTA_PROTO_NUM, []byte{unix.IPPROTO_UDP})
	proto.AddRtAttr(nl.CTA_PROTO_SRC_PORT, binary.BigEndian.AppendUint16(nil, sport))
	proto.AddRtAttr(nl.CTA_PROTO_DST_PORT, binary.BigEndian.AppendUint16(nil, dport))
	return t
}

func BenchmarkAll200000(b *testing.B) {
	full(b, 200_000)
	b.ReportAllocs()
	began := cpu(b)
	for b.Loop() {
		n := 0
		for _, err := range All() {
			if err != nil {
				b.Fatal(err)
			}
			n++
		}
		if n != 200_000 {
			b.Fatalf("%d connections", n)
		}
	}
	b.ReportMetric(float64((cpu(b)-began).Milliseconds())/float64(b.N), "cpu-ms/op")
}

// BenchmarkDelete200000 deletes the connections of an address without connections. Most addresses of pods that end
// have no connections.
func BenchmarkDelete200000(b *testing.B) {
	full(b, 200_000)
	b.ReportAllocs()
	for b.Loop() {
		if err := Delete(netip.MustParseAddr("100.96.99.99")); err != nil {
			b.Fatal(err)
		}
	}
}

// BenchmarkDump200000 receives the entries without reading them. The difference to BenchmarkAll200000 is what All costs
// beside the kernel.
func BenchmarkDump200000(b *testing.B) {
	full(b, 200_000)
	began := cpu(b)
	for b.Loop() {
		n := 0
		if err := receive(unix.AF_UNSPEC, nil, func([]byte) bool { n++; return true }); err != nil || n != 200_000 {
			b.Fatalf("%d entries, %v", n, err)
		}
	}
	b.ReportMetric(float64((cpu(b)-began).Milliseconds())/float64(b.N), "cpu-ms/op")
}

// cpu returns the processor time that the process has used.
func cpu(b *testing.B) time.Duration {
	b.Helper()
	var u unix.Rusage
	if err := unix.Getrusage(unix.RUSAGE_SELF, &u); err != nil {
		b.Fatal(err)
	}
	return time.Duration(u.Utime.Nano() + u.Stime.Nano())
}
