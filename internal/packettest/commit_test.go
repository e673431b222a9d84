package packettest

import (
	"flag"
	"fmt"
	"net"
	"sync/atomic"
	"testing"
	"time"

	networkingv1 "k8s.io/api/networking/v1"

	"github.com/weir-net/weir/netfilter"
	"github.com/weir-net/weir/policy/ruleset"
	"github.com/weir-net/weir/test/nodetest"
)

var commits = flag.Int("commits", 100, "how many changes each backend makes while packets flow")

// TestPacketsDuringAChange sends packets while the rules change back and forth. In one state, the receiver's policy
// denies the packets; in the other state, the sender's policy denies them. So no packet may pass at any moment: each
// backend must add the new denial before it removes the old one.
func TestPacketsDuringAChange(t *testing.T) {
	for _, name := range Names {
		t.Run(string(name), func(t *testing.T) { packetsDuringAChange(t, name) })
	}
}

func packetsDuringAChange(t *testing.T, name Name) {
	if !nodetest.Isolated(t) {
		return
	}
	n, state := attached(t, nil, pod("x", "receiver", "10.88.0.2"), pod("z", "sender", "10.88.0.3"))
	n.Use(name)
	var rulesets [2]ruleset.Ruleset
	for i, text := range []string{
		"metadata: {name: deny, namespace: x}\nspec: {podSelector: {}, policyTypes: [Ingress]}",
		"metadata: {name: deny, namespace: z}\nspec: {podSelector: {}, policyTypes: [Egress]}",
	} {
		s := state
		s.Policies = []*networkingv1.NetworkPolicy{networkPolicy(t, text)}
		rulesets[i] = n.Ruleset(s)
	}
	apply := func(i int) {
		if _, err := n.Apply(t.Context(), rulesets[i%2], netfilter.Trust); err != nil {
			t.Fatal(err)
		}
	}
	apply(0)
	receiver, sender := dialBetween(t, n, "10.88.0.2:99", "10.88.0.3:0")
	var sent, passed atomic.Int64
	go func() {
		buf := make([]byte, 64)
		for {
			if _, err := receiver.Read(buf); err != nil {
				return
			}
			passed.Add(1)
		}
	}()
	stop := make(chan struct{})
	stopped := make(chan struct{})
	go func() {
		defer close(stopped)
		for {
			select {
			case <-stop:
				return
			default:
				_, _ = sender.Write([]byte("x")) // ignored: the kernel returns no error for a dropped packet
				sent.Add(1)
			}
		}
	}()
	began := time.Now()
	for i := range *commits {
		apply(i + 1)
		before := sent.Load()
		for sent.Load() < before+20 { // lets some packets flow before the next change
			time.Sleep(50 * time.Microsecond)
		}
	}
	took := time.Since(began)
	close(stop)
	<-stopped
	fmt.Printf("changes-%s: %d changes in %v, %d packets sent, %d passed\n", name, *commits, took.Round(time.Millisecond),
		sent.Load(), passed.Load())
	if passed.Load() > 0 {
		t.Errorf("%d packets passed that the policies deny", passed.Load())
	}
}

// dialBetween returns two UDP sockets: a receiver in the pod with the address to, and a sender in the pod with the
// address from. The sender is connected to the receiver.
func dialBetween(t *testing.T, n *Node, to, from string) (receiver *net.UDPConn, sender net.Conn) {
	t.Helper()
	at, err := net.ResolveUDPAddr("udp", to)
	if err != nil {
		t.Fatal(err)
	}
	local, err := net.ResolveUDPAddr("udp", from)
	if err != nil {
		t.Fatal(err)
	}
	nodetest.In(t, n.hosts[at.AddrPort().Addr().Unmap()].netns, func() (err error) {
		receiver, err = net.ListenUDP("udp", at)
		return err
	})
	nodetest.In(t, n.hosts[local.AddrPort().Addr().Unmap()].netns, func() (err error) {
		sender, err = net.DialUDP("udp", local, at)
		return err
	})
	t.Cleanup(func() { _, _ = receiver.Close(), sender.Close() })
	return receiver, sender
}
