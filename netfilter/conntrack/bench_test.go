package conntrack

import (
	"net/netip"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/weir-net/weir/test/nodetest"
)

func full(b *testing.B, entries int) {
	b.Helper()
	nodetest.Fill(b, entries, func(i int) nodetest.Entry {
		return nodetest.Entry{
			Src: netip.AddrFrom4([4]byte{100, 96, 0, byte(2 + i%50)}),
			Dst: netip.AddrFrom4([4]byte{10, byte(i >> 16), byte(i >> 8), byte(i)}), Proto: unix.IPPROTO_UDP, Sport: 4000,
			Port: 53, Status: nodetest.Answered,
		}
	})
}

// BenchmarkAll200000 reads a table of 200,000 connections. It prints the kernel's own processor time for the list, and
// the additional time of All.
func BenchmarkAll200000(b *testing.B) {
	full(b, 200_000)
	b.ReportAllocs()
	var all, dump time.Duration
	for b.Loop() {
		before := nodetest.CPU(b)
		nodetest.Dump(b)
		between, n := nodetest.CPU(b), 0
		for _, err := range All() {
			if err != nil {
				b.Fatal(err)
			}
			n++
		}
		if n != 200_000 {
			b.Fatalf("%d connections", n)
		}
		dump, all = dump+between-before, all+nodetest.CPU(b)-between
	}
	b.ReportMetric(float64(dump.Milliseconds())/float64(b.N), "dump-cpu-ms")
	b.ReportMetric(float64((all-dump).Milliseconds())/float64(b.N), "beside-cpu-ms")
}

// BenchmarkDelete200000 measures Delete for an address without connections: most pods have none left when they end.
func BenchmarkDelete200000(b *testing.B) {
	full(b, 200_000)
	b.ReportAllocs()
	for b.Loop() {
		if err := Delete(netip.MustParseAddr("100.96.99.99")); err != nil {
			b.Fatal(err)
		}
	}
}
