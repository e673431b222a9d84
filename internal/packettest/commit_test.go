package packettest

import (
	"flag"
	"fmt"
	"net"
	"slices"
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
	nonePasses(t, name, n, rulesets, "10.88.0.2:99", "10.88.0.3:0")
}

// TestSlowPacketsDuringAChange is like TestPacketsDuringAChange, but pods get other labels, and the sender's packets
// meet many rules between the look-up of the sender and the look-up of the receiver. So a whole change often happens
// between these two look-ups of a packet.
func TestSlowPacketsDuringAChange(t *testing.T) {
	for _, name := range Names {
		t.Run(string(name), func(t *testing.T) { slowPacketsDuringAChange(t, name) })
	}
}

func slowPacketsDuringAChange(t *testing.T, name Name) {
	if !nodetest.Isolated(t) {
		return
	}
	const receiver, sender = 0, 1
	n, state := attached(t, nil, pod("x", "receiver", "10.88.0.2"), pod("z", "sender", "10.88.0.3"),
		// With these pods, no class is new in a change, so only entries of sets change.
		pod("x", "closed", "10.88.0.4"), pod("z", "slow", "10.88.0.5"), pod("z", "closed", "10.88.0.6"))
	n.Use(name)
	slow := "metadata: {name: slow, namespace: z}\n" +
		"spec:\n  podSelector: {matchLabels: {app: slow}}\n  policyTypes: [Egress]\n  egress:\n"
	const rules = 900
	for i := range rules { // no packet of the test matches these rules, but each rule looks up a packet's receiver
		slow += fmt.Sprintf("  - {to: [{ipBlock: {cidr: 192.0.2.%d/32}}], ports: [{protocol: UDP, port: %d, endPort: %d}]}\n",
			i%256, 1000+i, 2000+i)
	}
	slow += "  - {to: [{ipBlock: {cidr: 10.88.0.0/16}}], ports: [{protocol: UDP, port: 99, endPort: 5000}]}\n"
	for _, text := range []string{
		slow,
		"metadata: {name: deny, namespace: x}\nspec: {podSelector: {matchLabels: {app: closed}}, policyTypes: [Ingress]}",
		"metadata: {name: deny, namespace: z}\nspec: {podSelector: {matchLabels: {app: closed}}, policyTypes: [Egress]}",
	} {
		state.Policies = append(state.Policies, networkPolicy(t, text))
	}
	var rulesets [2]ruleset.Ruleset
	for i, apps := range [][]string{{receiver: "closed", sender: "slow"}, {receiver: "open", sender: "closed"}} {
		s := state
		s.Pods = slices.Clone(s.Pods)
		for j, app := range apps {
			s.Pods[j].Labels = map[string]string{"app": app}
		}
		rulesets[i] = n.Ruleset(s)
	}
	nonePasses(t, name, n, rulesets, "10.88.0.2:2000", "10.88.0.3:0")
}

// nonePasses sends packets from one address to another while the rules change back and forth between the rulesets. No
// packet may pass.
func nonePasses(t *testing.T, name Name, n *Node, rulesets [2]ruleset.Ruleset, to, from string) {
	t.Helper()
	apply := func(i int) {
		if _, err := n.Apply(t.Context(), rulesets[i%2], netfilter.Trust); err != nil {
			t.Fatal(err)
		}
	}
	apply(0)
	receiver, sender := dialBetween(t, n, to, from)
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
