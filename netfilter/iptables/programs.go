package iptables

import (
	"github.com/weir-net/weir/conf"
	"github.com/weir-net/weir/policy/ruleset"
)

// programs are classic BPF programs. They match packets that iptables' own options can't match. Offsets count from the
// IP header. If a program reads beyond the packet's end, the rule doesn't match (bpf(4)).
//
// Equivalent to: iptables -m bpf --bytecode "PROGRAM"
var programs = [len(conf.Families)]map[ruleset.Shape]string{
	conf.IPv4: {ruleset.ToItself: itselfIPv4, ruleset.HonestICMP: honestIPv4, ruleset.NoICMPError: noErrorIPv4},
	conf.IPv6: {ruleset.ToItself: itselfIPv6, ruleset.HonestICMP: honestIPv6, ruleset.NoICMPError: noErrorIPv6},
}

const (
	itselfIPv4 = "6,32 0 0 12,7 0 0 0,32 0 0 16,29 0 1 0,6 0 0 65535,6 0 0 0"
	itselfIPv6 = "18,32 0 0 8,7 0 0 0,32 0 0 24,29 0 13 0,32 0 0 12,7 0 0 0,32 0 0 28,29 0 9 0," +
		"32 0 0 16,7 0 0 0,32 0 0 32,29 0 5 0,32 0 0 20,7 0 0 0,32 0 0 36,29 0 1 0,6 0 0 65535,6 0 0 0"

	// honestIPv4 matches ICMP packets that are not errors, and ICMP errors whose inner packet went from the error's
	// receiver to the error's sender. It never matches redirects or later fragments. In the program, P means that the
	// packet matches, N that it doesn't, and E is the check of an error.
	//
	//	ldh [6]; jset #0x1fff, N; ldx 4*([0]&0xf); ldb [x + 0]
	//	jeq #3, E; jeq #4, E; jeq #11, E; jeq #12, E; jeq #5, N, P
	//	E: ld [x + 24]; st M[0]; ld [x + 20]; st M[1]; ld [12]; ldx M[0]; jneq x, N; ld [16]; ldx M[1]; jneq x, N
	//	P: ret #65535
	//	N: ret #0
	honestIPv4 = "21,40 0 0 6,69 18 0 8191,177 0 0 0,80 0 0 0,21 4 0 3,21 3 0 4,21 2 0 11,21 1 0 12,21 11 10 5," +
		"64 0 0 24,2 0 0 0,64 0 0 20,2 0 0 1,32 0 0 12,97 0 0 0,29 0 4 0,32 0 0 16,97 0 0 1,29 0 1 0,6 0 0 65535,6 0 0 0"
	// honestIPv6 does for IPv6 what honestIPv4 does for IPv4. It begins with: ldb [6]; jneq #58, N; ldb [40];
	// jeq #137, N; jge #128, P. Then it compares the addresses, each in four words: ld [8]; tax; ld [72]; jneq x, N;
	// and so on.
	honestIPv6 = "39,48 0 0 6,21 0 36 58,48 0 0 40,21 34 0 137,53 32 0 128," +
		"32 0 0 8,7 0 0 0,32 0 0 72,29 0 29 0,32 0 0 12,7 0 0 0,32 0 0 76,29 0 25 0," +
		"32 0 0 16,7 0 0 0,32 0 0 80,29 0 21 0,32 0 0 20,7 0 0 0,32 0 0 84,29 0 17 0," +
		"32 0 0 24,7 0 0 0,32 0 0 56,29 0 13 0,32 0 0 28,7 0 0 0,32 0 0 60,29 0 9 0," +
		"32 0 0 32,7 0 0 0,32 0 0 64,29 0 5 0,32 0 0 36,7 0 0 0,32 0 0 68,29 0 1 0,6 0 0 65535,6 0 0 0"

	noErrorIPv4 = "11,40 0 0 6,69 8 0 8191,177 0 0 0,80 0 0 0,21 5 0 3,21 4 0 4,21 3 0 5,21 2 0 11,21 1 0 12," +
		"6 0 0 65535,6 0 0 0"
	noErrorIPv6 = "7,48 0 0 6,21 0 4 58,48 0 0 40,21 2 0 137,53 0 1 128,6 0 0 65535,6 0 0 0"
)
