package drops

import (
	"encoding/binary"
	"math/rand/v2"
	"net/netip"
	"testing"
	"time"

	"github.com/weir-net/weir/agentapi"
	"github.com/weir-net/weir/netfilter/nflog"
)

func udp(prefix, src, dst string, port uint16) *nflog.Packet {
	b := make([]byte, 28)
	b[0], b[9] = 0x45, 17
	copy(b[12:], netip.MustParseAddr(src).AsSlice())
	copy(b[16:], netip.MustParseAddr(dst).AsSlice())
	binary.BigEndian.PutUint16(b[20:], 40000)
	binary.BigEndian.PutUint16(b[22:], port)
	return &nflog.Packet{Prefix: []byte(prefix), EtherType: 0x0800, Payload: b}
}

func sums() (s *Sums, tick func(time.Duration)) {
	s = NewSums()
	pods := netip.MustParsePrefix("10.0.0.0/8")
	s.IsPod = pods.Contains
	now := time.Unix(1e9, 0)
	s.At(now)
	return s, func(d time.Duration) {
		now = now.Add(d)
		s.At(now)
	}
}

func total(lines []Line) (n uint64) {
	for _, l := range lines {
		n += l.Count
	}
	return n
}

// TestFirstAtOnce: if packets of one kind come, the first packet makes a line at once, and the packets of the next
// second share a line.
func TestFirstAtOnce(t *testing.T) {
	s, tick := sums()
	send := func() { s.Add(udp("weir drop WEIR-IN-X", "10.0.0.1", "10.0.0.2", 53)) }
	send()
	if lines, more := s.Lines(nil); len(lines) != 1 || lines[0].Count != 1 || lines[0].Flow.SrcPort != 40000 || !more {
		t.Errorf("%+v, %v", lines, more)
	}
	for range 3 {
		tick(300 * time.Millisecond)
		send()
		if lines, _ := s.Lines(nil); len(lines) != 0 {
			t.Errorf("within a second: %+v", lines)
		}
	}
	tick(100 * time.Millisecond)
	if lines, _ := s.Lines(nil); len(lines) != 1 || lines[0].Count != 3 {
		t.Errorf("after a second: %+v", lines)
	}
	tick(time.Second)
	if lines, more := s.Lines(nil); len(lines) != 0 || more || len(s.flows) != 0 {
		t.Errorf("without packets: %+v, %v", lines, more)
	}
	tick(time.Minute)
	s.Lines(nil)
	if len(s.senders) != 0 {
		t.Errorf("%d senders", len(s.senders))
	}
}

// TestFairAndExact: if many senders flood Sums, another pod's single packet still gets its line, and each packet is
// counted in a line.
func TestFairAndExact(t *testing.T) {
	s, tick := sums()
	random := rand.New(rand.NewPCG(1, 2))
	address := func(network byte) string {
		return netip.AddrFrom4([4]byte{network, byte(random.Uint32()), byte(random.Uint32()), byte(random.Uint32())}).String()
	}
	var sent, counted uint64
	send := func(p *nflog.Packet) {
		s.Add(p)
		sent++
	}
	for round := range 200 {
		tick(50 * time.Millisecond)
		for range 1000 {
			send(udp("weir drop WEIR-EG-A", "10.0.0.1", address(11), uint16(random.Uint32())))
			send(udp("weir drop WEIR-IN-B", address(192), "10.0.0.3", uint16(random.Uint32())))
			peer := netip.AddrFrom4([4]byte{10, 2, byte(random.Uint32() % 16), byte(random.Uint32())}).String()
			send(udp("weir drop WEIR-IN-B", peer, "10.0.0.4", uint16(random.Uint32())))
		}
		other := netip.AddrFrom4([4]byte{10, 1, 0, byte(round)}).String()
		send(udp("weir drop WEIR-IN-B", other, "10.0.0.3", 80))
		if round%10 == 0 {
			s.Lost(7)
			sent += 7
		}
		lines, _ := s.Lines(nil)
		counted += total(lines)
		shown := false
		for _, l := range lines {
			shown = shown || l.Kind == agentapi.DropShown && l.Flow.Source().String() == other && l.Count == 1
		}
		if !shown {
			t.Fatalf("round %d: no line about %s", round, other)
		}
		if len(s.flows) > maxFlows || len(s.senders) > maxSenders || len(s.rests) > 2*maxRests {
			t.Fatalf("%d flows, %d senders, %d rests", len(s.flows), len(s.senders), len(s.rests))
		}
	}
	for range 5 {
		tick(time.Second)
		lines, _ := s.Lines(nil)
		counted += total(lines)
	}
	if counted != sent {
		t.Errorf("%d packets in lines, %d were sent", counted, sent)
	}
	if len(s.flows) > 0 || len(s.rests) > 0 {
		t.Errorf("%d flows and %d rests are left", len(s.flows), len(s.rests))
	}
}

func BenchmarkAdd(b *testing.B) {
	s, tick := sums()
	same := udp("weir drop WEIR-IN-B", "10.0.0.1", "10.0.0.2", 80)
	scan := make([]*nflog.Packet, 65536)
	for i := range scan {
		scan[i] = udp("weir drop WEIR-IN-B", "10.0.0.1", "10.0.0.2", uint16(i))
	}
	for name, packet := range map[string]func(int) *nflog.Packet{
		"same": func(int) *nflog.Packet { return same },
		"scan": func(i int) *nflog.Packet { return scan[i%len(scan)] },
	} {
		b.Run(name, func(b *testing.B) {
			b.ReportAllocs()
			var lines []Line
			for i := range b.N {
				s.Add(packet(i))
				if i%2500 == 0 { // this is 50,000 packets a second
					tick(50 * time.Millisecond)
					lines, _ = s.Lines(lines[:0])
				}
			}
		})
	}
}
