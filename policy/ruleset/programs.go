package ruleset

import "github.com/weir-net/weir/conf"

// Program is a match that iptables has no words for: a program in classic BPF, which reads the packet from its IP
// header on and says whether the rule matches (xt_bpf; "iptables -m bpf --bytecode"). One that reads beyond the
// packet's end doesn't match (bpf(4)), so a rule with a program must let packets through, never drop them.
type Program string

// The programs for each family. An IPv6 address is compared in four parts.
const (
	// The Self programs match packets with the same sender and receiver.
	SelfIPv4 Program = "6,32 0 0 12,7 0 0 0,32 0 0 16,29 0 1 0,6 0 0 65535,6 0 0 0"
	SelfIPv6 Program = "18,32 0 0 8,7 0 0 0,32 0 0 24,29 0 13 0,32 0 0 12,7 0 0 0,32 0 0 28,29 0 9 0," +
		"32 0 0 16,7 0 0 0,32 0 0 32,29 0 5 0,32 0 0 20,7 0 0 0,32 0 0 36,29 0 1 0,6 0 0 65535,6 0 0 0"

	// The Honest programs are for ICMP packets. They match what is no error, and errors that answer a packet of their
	// receiver to their sender: the addresses of the packet inside are those of the packet outside, the other way
	// round. They don't match redirects, nor fragments behind the first. The errors are those that connection tracking
	// relates to connections: of ICMP, types 3 (destination unreachable), 4 (source quench), 11 (time exceeded) and 12
	// (parameter problem); of ICMPv6, all types below 128 (RFC 4443, section 2.1). IPv4's options are stepped over.
	// Behind an IPv6 extension header the program doesn't look for the type, and doesn't match.
	//
	// The one for IPv4 is this, with P as the label that matches, and N as the one that doesn't:
	//
	//	ldh [6]; jset #0x1fff, N; ldx 4*([0]&0xf); ldb [x + 0]
	//	jeq #3, E; jeq #4, E; jeq #11, E; jeq #12, E; jeq #5, N, P
	//	E: ld [x + 24]; st M[0]; ld [x + 20]; st M[1]; ld [12]; ldx M[0]; jneq x, N; ld [16]; ldx M[1]; jneq x, N
	//	P: ret #65535
	//	N: ret #0
	HonestIPv4 Program = "21,40 0 0 6,69 18 0 8191,177 0 0 0,80 0 0 0,21 4 0 3,21 3 0 4,21 2 0 11,21 1 0 12,21 11 10 5," +
		"64 0 0 24,2 0 0 0,64 0 0 20,2 0 0 1,32 0 0 12,97 0 0 0,29 0 4 0,32 0 0 16,97 0 0 1,29 0 1 0,6 0 0 65535,6 0 0 0"
	// The one for IPv6 begins with: ldb [6]; jneq #58, N; ldb [40]; jeq #137, N; jge #128, P. Then it compares the
	// addresses, by four words each: ld [8]; tax; ld [72]; jneq x, N; and so on.
	HonestIPv6 Program = "39,48 0 0 6,21 0 36 58,48 0 0 40,21 34 0 137,53 32 0 128," +
		"32 0 0 8,7 0 0 0,32 0 0 72,29 0 29 0,32 0 0 12,7 0 0 0,32 0 0 76,29 0 25 0," +
		"32 0 0 16,7 0 0 0,32 0 0 80,29 0 21 0,32 0 0 20,7 0 0 0,32 0 0 84,29 0 17 0," +
		"32 0 0 24,7 0 0 0,32 0 0 56,29 0 13 0,32 0 0 28,7 0 0 0,32 0 0 60,29 0 9 0," +
		"32 0 0 32,7 0 0 0,32 0 0 64,29 0 5 0,32 0 0 36,7 0 0 0,32 0 0 68,29 0 1 0,6 0 0 65535,6 0 0 0"
)

// The NoError programs match ICMP packets that are no errors. What the Honest ones say of fragments and extension
// headers holds for them too.
const (
	NoErrorIPv4 Program = "11,40 0 0 6,69 8 0 8191,177 0 0 0,80 0 0 0,21 5 0 3,21 4 0 4,21 3 0 5,21 2 0 11,21 1 0 12," +
		"6 0 0 65535,6 0 0 0"
	NoErrorIPv6 Program = "7,48 0 0 6,21 0 4 58,48 0 0 40,21 2 0 137,53 0 1 128,6 0 0 65535,6 0 0 0"
)

// The families' programs.
var (
	NoError = map[conf.Family]Program{conf.IPv4: NoErrorIPv4, conf.IPv6: NoErrorIPv6}
	Self    = map[conf.Family]Program{conf.IPv4: SelfIPv4, conf.IPv6: SelfIPv6}
	Honest  = map[conf.Family]Program{conf.IPv4: HonestIPv4, conf.IPv6: HonestIPv6}
)

// ErrorProtocol is the family's protocol of errors.
var ErrorProtocol = map[conf.Family]Protocol{conf.IPv4: ICMP, conf.IPv6: ICMPv6}

// matches says what the program says of a connection's first packet, which is no ICMP error.
func (m Program) matches(p Packet) bool {
	switch m {
	case "", HonestIPv4, HonestIPv6, NoErrorIPv4, NoErrorIPv6:
		return true
	case SelfIPv4, SelfIPv6:
		return p.Src == p.Dst
	}
	return false
}
