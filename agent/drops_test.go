package agent

import (
	"context"
	"errors"
	"log/slog"
	"net/netip"
	"strings"
	"testing"
	"time"

	"github.com/containernetworking/plugins/pkg/netlinksafe"
	"golang.org/x/sys/unix"

	"github.com/weir-net/weir/agent/drops"
	"github.com/weir-net/weir/agentapi"
	"github.com/weir-net/weir/conf"
	"github.com/weir-net/weir/netfilter/iptables"
	"github.com/weir-net/weir/netfilter/nflog"
	"github.com/weir-net/weir/policy"
	"github.com/weir-net/weir/policy/ruleset"
)

var errLogGone = errors.New("the log is gone")

// brokenLog is a log with a fault: Read passes on two packets, says that three packets were lost, and returns an
// error.
type brokenLog struct{}

func (brokenLog) Close() error { return nil }

func (brokenLog) Read(_ context.Context, _ time.Duration, each func(*nflog.Packet)) (uint64, error) {
	p := &nflog.Packet{Prefix: []byte("weir drop WEIR-IN-X"), EtherType: 0x0800, Payload: make([]byte, 20)}
	each(p)
	each(p)
	return 3, errLogGone
}

// TestLogErrorLosesNoCount: if reading dropped packets fails, the packets that were counted before are still reported.
func TestLogErrorLosesNoCount(t *testing.T) {
	a := newAgent(Options{Log: slog.New(slog.DiscardHandler)}, &iptables.Driver{}, netlinksafe.Handle{})
	c := newDropCounter(a.drops.lines)
	open := func() (logReader, error) { return brokenLog{}, nil }
	count := func(lines []drops.Line) (n uint64) {
		for _, l := range lines {
			n += l.Count
		}
		return n
	}
	read := func() {
		if err := a.readDrops(t.Context(), c, open); !errors.Is(err, errLogGone) {
			t.Fatal(err)
		}
	}
	read()
	ctx, stop := context.WithCancel(t.Context())
	done := make(chan struct{})
	go func() {
		defer close(done)
		c.keepReporting(ctx, time.Hour)
	}()
	if n := count(receive(t, a.drops.lines)); n != 5 {
		t.Errorf("%d packets while the agent waits", n)
	}
	stop()
	receive(t, done)
	read()
	go c.end()
	var rest uint64
	for lines := range a.drops.lines {
		rest += count(lines)
	}
	if rest != 5 {
		t.Errorf("%d packets at the end", rest)
	}
}

// TestProtocolNames: a drop has the name of a protocol in protocolNames, and the number of any other protocol.
func TestProtocolNames(t *testing.T) {
	for number, want := range map[uint8]string{
		1: "icmp", 2: "igmp", 6: "tcp", 17: "udp", 47: "gre", 50: "esp", 51: "ah", 58: "icmpv6", 132: "sctp", 136: "udplite",
		0: "0", 200: "200", 255: "255",
	} {
		if got := protocolName(number); got != want {
			t.Errorf("protocol %d is %q, want %q", number, got, want)
		}
	}
}

// TestNodesOfDrops: a drop names the node that has an address, even if the address is in the node's podCIDR.
func TestNodesOfDrops(t *testing.T) {
	var view dropView
	view.load(&snapshot{nodes: []policy.Node{{
		Name: "n1", Addresses: []netip.Addr{netip.MustParseAddr("192.0.2.1")},
		PodCIDRs: []netip.Prefix{netip.MustParsePrefix("10.0.1.0/24"), netip.MustParsePrefix("fd00:1::/64")},
	}}})
	for address, want := range map[string]string{
		"192.0.2.1": "n1", "10.0.1.0": "n1", "10.0.1.1": "n1", "fd00:1::": "n1", "fd00:1::1": "n1",
		"192.0.2.2": "", "10.0.1.2": "", "10.0.2.0": "", "fd00:1::2": "",
	} {
		source := netip.MustParseAddr(address)
		etherType := uint16(unix.ETH_P_IP)
		if source.Is6() {
			etherType = unix.ETH_P_IPV6
		}
		line := drops.Line{
			Kind: agentapi.DropShown, Prefix: &drops.Prefix{}, Flow: nflog.Flow{Src: source.As16(), EtherType: etherType},
		}
		if got := view.drop(line, nil, "n2").Source.Node; got != want {
			t.Errorf("%s: node %q, want %q", address, got, want)
		}
	}
}

// TestDropsOfEndedPods: if a line about a pod's packets comes after the pod has ended, the line still has the pod's
// name and policies, provided that an earlier line had them less than lateFor ago. If the packets' address may be
// forged (ByNoPod), the line names no pod.
func TestDropsOfEndedPods(t *testing.T) {
	job := netip.MustParseAddr("10.88.0.3")
	const chain = conf.EgressClassChains + "NONE"
	running := &snapshot{
		endpoints: []policy.Endpoint{{
			Pod: policy.PodRef{Namespace: "shop", Name: "job"}, Addresses: []policy.Address{{Addr: job}},
		}},
		ruleset: ruleset.Ruleset{Classes: []ruleset.Class{{
			Direction: ruleset.Egress, Chain: chain, Pods: []string{"shop/job"}, Policies: []string{"shop/deny"},
		}}},
	}
	line := func(reason string) drops.Line {
		return drops.Line{
			Kind: agentapi.DropShown, Prefix: &drops.Prefix{Direction: ruleset.Egress, Reason: reason, Chain: chain},
			Flow: nflog.Flow{Src: job.As16(), EtherType: unix.ETH_P_IP},
		}
	}
	var view dropView
	said := func(reason string) string {
		d := view.drop(line(reason), nil, "n1")
		return d.Source.Pod + " " + strings.Join(d.Policies, ",")
	}
	view.load(running)
	for range 2 {
		if got := said(agentapi.ByPolicy); got != "shop/job shop/deny" {
			t.Errorf("%q", got)
		}
		view.load(&snapshot{}) // the pod has ended
	}
	if got := said(agentapi.ByNoPod); got != " " {
		t.Errorf("no pod has the address, and the drop names %q", got)
	}
	view.lately[job] = latePod{"shop/job", time.Now().Add(-lateFor)}
	if got := said(agentapi.ByPolicy); got != " " {
		t.Errorf("long after the pod's end: %q", got)
	}
}
