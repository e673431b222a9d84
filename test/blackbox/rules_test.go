package blackbox

import (
	"fmt"
	"net"
	"net/netip"
	"os"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/gopacket/gopacket"
	"github.com/gopacket/gopacket/layers"

	"github.com/weir-net/weir/test/nodetest"
)

const isolated = `
apiVersion: v1
kind: Namespace
metadata: {name: shop}
---
apiVersion: v1
kind: Pod
metadata: {name: server, namespace: shop, labels: {tenant: isolated}}
---
apiVersion: v1
kind: Pod
metadata: {name: client, namespace: shop, labels: {tenant: isolated}}
---
apiVersion: v1
kind: Pod
metadata: {name: other, namespace: shop}
---
apiVersion: v1
kind: Pod
metadata: {name: attacker, namespace: shop, labels: {app: attacker}}
---
apiVersion: networking.k8s.io/v1
kind: NetworkPolicy
metadata: {name: deny-all, namespace: shop}
spec: {podSelector: {matchLabels: {tenant: isolated}}, policyTypes: [Ingress, Egress]}
`

const hostPort = `CAP_ARGS={"portMappings":[{"hostPort":8080,"containerPort":80,"protocol":"tcp"}]}`

func TestControlPodsReachThemselves(t *testing.T)      { podsReachThemselves(t, "weir") }
func TestPodsReachThemselvesBehindPtp(t *testing.T)    { podsReachThemselves(t, "ptp") }
func TestPodsReachThemselvesBehindBridge(t *testing.T) { podsReachThemselves(t, "bridge") }

// podsReachThemselves checks that a pod reaches itself through a Service or a hostPort, even if its policies allow
// nothing.
func podsReachThemselves(t *testing.T, plugin string) {
	if !isolatedBehind(t, plugin) {
		return
	}
	n := attachedBy(t, plugin, isolated)
	server := n.AddPod("shop", "server", hostPort)
	other := n.AddPod("shop", "other")
	n.Serve(server.Netns, "tcp", ":80")
	nodetest.RunEach(t, // kube-proxy has such rules for a Service
		"iptables -t nat -I PREROUTING -d 10.96.0.10 -p tcp -j DNAT --to-destination "+server.IP,
		"iptables -t nat -I POSTROUTING -s "+server.IP+" -d "+server.IP+" -j MASQUERADE",
		"ip6tables -t nat -I PREROUTING -d fd00:10:96::a -p tcp -j DNAT --to-destination "+server.IP6,
		"ip6tables -t nat -I POSTROUTING -s "+server.IP6+" -d "+server.IP6+" -j MASQUERADE",
	)
	for _, address := range []string{"10.96.0.10:80", "[fd00:10:96::a]:80", "192.0.2.2:8080"} {
		n.Reach(server, address, true)
		n.Reach(other, address, false)
	}
}

func TestControlForgedSelf(t *testing.T)             { forgedSelf(t, "weir") }
func TestControlForgedSelfBehindPtp(t *testing.T)    { forgedSelf(t, "ptp") }
func TestControlForgedSelfBehindBridge(t *testing.T) { forgedSelf(t, "bridge") }

// forgedSelf checks that a packet with an isolated pod's address as both source and destination doesn't reach the pod
// if another pod or host sends it.
func forgedSelf(t *testing.T, plugin string) {
	if !isolatedBehind(t, plugin) {
		return
	}
	n := attachedBy(t, plugin, isolated)
	server, attacker := n.AddPod("shop", "server", hostPort), n.AddPod("shop", "attacker")
	nodetest.RunEach(t,
		"iptables -t nat -I PREROUTING -d 10.96.0.10 -p udp -j DNAT --to-destination "+server.IP,
		"ip6tables -t nat -I PREROUTING -d fd00:10:96::a -p udp -j DNAT --to-destination "+server.IP6,
	)
	inside := newForgery(t, attacker)
	outside := fromOutside(t, n)
	at := nodetest.Sniff(t, server.Netns, "eth0")
	for i, f := range []*forgery{inside, outside} {
		for j, x := range []struct{ self, service string }{{server.IP, "10.96.0.10"}, {server.IP6, "fd00:10:96::a"}} {
			for _, to := range []string{x.self, x.service} {
				words := fmt.Sprintf("forged %d %d to %s.", i, j, to)
				frame := f.datagram(flow(net.JoinHostPort(x.self, "4000"), net.JoinHostPort(to, "53")), words)
				nodetest.SendFrames(t, f.from.Netns, "eth0", frame)
				if got := heard(at, words); got != nil {
					t.Errorf("the isolated pod got %q", got)
				}
			}
		}
	}
}

// TestForgedSendersBehindPtp: if a pod behind ptp sends a packet with another source than its own address, the packet
// reaches neither the node, nor another pod, nor a host outside.
func TestForgedSendersBehindPtp(t *testing.T) {
	if !nodetest.IsolatedWithWeir(t, "main/ptp", "ipam/host-local") {
		return
	}
	n := attachedBy(t, "ptp", isolated)
	client, other := n.AddPod("shop", "client", hostPort), n.AddPod("shop", "other")
	for _, name := range []string{"all", "eth0"} {
		if err := os.WriteFile("/proc/sys/net/ipv4/conf/"+name+"/rp_filter", []byte("0"), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	f := newForgery(t, client)
	atOther, outside := nodetest.Sniff(t, other.Netns, "eth0"), nodetest.Sniff(t, n.Outside, "eth0")
	var atNode net.PacketConn
	nodetest.In(t, nodetest.Self, func() (err error) {
		atNode, err = net.ListenPacket("udp", ":7000")
		return err
	})
	t.Cleanup(func() { _ = atNode.Close() })
	for _, x := range []struct{ src, node, outside, other string }{
		{"10.99.0.77", "192.0.2.2", "192.0.2.1", other.IP},
		{"198.51.100.7", "192.0.2.2", "192.0.2.1", other.IP},
		{"127.0.0.1", "192.0.2.2", "192.0.2.1", other.IP},
		{"fd00:10:99::77", "2001:db8::2", "2001:db8::1", other.IP6},
		{"2001:db8:7::7", "2001:db8::2", "2001:db8::1", other.IP6},
	} {
		src := net.JoinHostPort(x.src, "4000")
		for _, to := range []string{x.outside, x.other, x.node} {
			frame := f.datagram(flow(src, net.JoinHostPort(to, "7000")), "forged by the client")
			nodetest.SendFrames(t, client.Netns, "eth0", frame)
		}
		if got := append(heard(atOther, "forged"), heard(outside, "forged")...); got != nil {
			t.Errorf("%d packets under the address %s arrived at another pod or outside", len(got), x.src)
		}
		_ = atNode.SetReadDeadline(time.Now().Add(50 * time.Millisecond))
		if _, from, err := atNode.ReadFrom(make([]byte, 100)); err == nil {
			t.Errorf("the node was reached under the address %v", from)
		}
	}
}

// TestForeignAddressesOfClosedPodsBehindPtp: before an agent has enrolled a pod behind ptp (has put its addresses into
// the set of a class), the pod's packets under its own addresses are dropped, but packets under other addresses reach
// the node. This is a known gap (docs/security-windows.md).
func TestForeignAddressesOfClosedPodsBehindPtp(t *testing.T) {
	if !isolatedBehind(t, "ptp") {
		return
	}
	n := attachedBy(t, "ptp", isolated)
	n.ConfigureList(otherPlugins["ptp"], nodetest.Conf{"type": "weir", "enforcement": "closed"})
	n.AddPod("shop", "other") // makes the agent write the rules that the next ADD needs
	n.KillAgent()
	server := n.AddPod("shop", "server")
	noReversePath(t)
	f := newForgery(t, server)
	service := listen(t, nodetest.Self, "udp", ":9999")
	send := func(src, dst string) {
		t.Helper()
		nodetest.SendFrames(t, server.Netns, "eth0", udpFrame(t, f.own, f.gateway, src, dst, 9999, []byte(src)))
	}
	foreign := map[string]string{
		"198.51.100.7": "192.0.2.2", "2001:db8:7::7": "2001:db8::2",
		hostOf(linkLocalOf(n, server.Netns, "eth0")): "2001:db8::2",
	}
	own := map[string]string{server.IP: "192.0.2.2", server.IP6: "2001:db8::2"}
	isOwn := func(src string) bool { return own[src] != "" } // ignores late packets from other addresses
	for src, dst := range foreign {
		n.Eventually("a packet from "+src+" arrives", func() error {
			send(src, dst)
			if got := service.heard(t, silence); !slices.Contains(got, src) {
				return fmt.Errorf("the node heard %q", got)
			}
			return nil
		})
	}
	for src, dst := range own {
		send(src, dst)
	}
	if got := service.heard(t, silence); slices.ContainsFunc(got, isOwn) {
		t.Errorf("without an agent, the node hears %q", got)
	}
	n.StartAgent()
	for src, dst := range foreign {
		n.Eventually("no packet from "+src+" arrives", func() error {
			send(src, dst)
			if got := service.heard(t, silence); len(got) > 0 {
				return fmt.Errorf("the node heard %q", got)
			}
			return nil
		})
	}
	for src, dst := range own {
		send(src, dst)
	}
	if got := service.heard(t, silence); slices.ContainsFunc(got, isOwn) {
		t.Errorf("with an agent, the node hears %q", got)
	}
}

// TestNotTracked: even if NodeLocal DNSCache turns off connection tracking for its address, pods reach the cache only
// if their policies allow the connection.
func TestNotTracked(t *testing.T) {
	if !nodetest.IsolatedWithWeir(t) {
		return
	}
	n := attachedBy(t, "weir", isolated+`
---
apiVersion: v1
kind: Pod
metadata: {name: resolves, namespace: shop, labels: {app: resolves}}
---
apiVersion: networking.k8s.io/v1
kind: NetworkPolicy
metadata: {name: dns, namespace: shop}
spec:
  podSelector: {matchLabels: {app: resolves}}
  policyTypes: [Ingress, Egress]
  egress: [{to: [{ipBlock: {cidr: 169.254.20.10/32}}], ports: [{protocol: TCP, port: 53}, {protocol: UDP, port: 53}]}]
`)
	nodetest.RunEach(t,
		"ip addr add 169.254.20.10/32 dev lo",
		"iptables -t raw -A PREROUTING -d 169.254.20.10/32 -p udp -m udp --dport 53 -j NOTRACK",
		"iptables -t raw -A PREROUTING -d 169.254.20.10/32 -p tcp -m tcp --dport 53 -j NOTRACK",
		"iptables -t raw -A OUTPUT -s 169.254.20.10/32 -p udp -m udp --sport 53 -j NOTRACK",
		"iptables -t raw -A OUTPUT -s 169.254.20.10/32 -p tcp -m tcp --sport 53 -j NOTRACK",
	)
	for _, network := range []string{"tcp", "udp"} {
		n.Serve(nodetest.Self, network, "169.254.20.10:53")
		n.Serve(nodetest.Self, network, "169.254.20.10:54")
	}
	other, resolves, client := n.AddPod("shop", "other"), n.AddPod("shop", "resolves"), n.AddPod("shop", "client")
	for _, p := range []*nodetest.Pod{other, resolves} {
		n.Reach(p, "169.254.20.10:53", true)
		dial(t, p.Netns, "169.254.20.10:53")
	}
	n.Reach(resolves, "169.254.20.10:54", false)
	n.Reach(client, "169.254.20.10:53", false)

	// Without connection tracking, policies must allow the packets of each direction.
	nodetest.RunEach(t,
		"iptables -t raw -A PREROUTING -p tcp -m tcp --dport 80 -j NOTRACK",
		"iptables -t raw -A PREROUTING -p tcp -m tcp --sport 80 -j NOTRACK",
	)
	server := n.AddPod("shop", "server")
	n.Serve(other.Netns, "tcp", ":80")
	n.Serve(server.Netns, "tcp", ":80")
	n.Reach(client, other.IP+":80", false)
	n.Reach(other, server.IP+":80", false)
	at := nodetest.Sniff(t, client.Netns, "eth0")
	f := newForgery(t, other)
	answer := &layers.TCP{SrcPort: 80, DstPort: 4000, SYN: true, ACK: true, Window: 1000}
	header := ip(netip.MustParseAddr(other.IP), netip.MustParseAddr(client.IP), layers.IPProtocolTCP, answer)
	frame := nodetest.Frame(t, f.ethernet(netip.MustParseAddr(client.IP)), header, answer,
		gopacket.Payload("not asked for"))
	nodetest.SendFrames(t, other.Netns, "eth0", frame)
	if got := heard(at, "not asked for"); got != nil {
		t.Error("a server's untracked answer came to a client that may receive nothing")
	}
}

func TestLoopbackOfTheNode(t *testing.T)             { loopback(t, "weir") }
func TestLoopbackOfTheNodeBehindPtp(t *testing.T)    { loopback(t, "ptp") }
func TestLoopbackOfTheNodeBehindBridge(t *testing.T) { loopback(t, "bridge") }

// loopback checks that a pod's packets to 127.0.0.0/8 reach no server of the node, even if portmap has set
// route_localnet. Packets that a DNAT rule leads to 127.0.0.0/8 must arrive.
func loopback(t *testing.T, plugin string) {
	if !isolatedBehind(t, plugin) {
		return
	}
	n := attachedBy(t, plugin, isolated)
	attacker := n.AddPod("shop", "attacker", hostPort)
	out := nodetest.Run(t, "sh", "-c", "cat /proc/sys/net/ipv4/conf/*/route_localnet")
	if !strings.Contains(out, "1") {
		t.Fatal("portmap hasn't set route_localnet on any link")
	}
	n.Serve(nodetest.Self, "tcp", "127.0.0.1:10000")
	f := newForgery(t, attacker)
	at := nodetest.Sniff(t, attacker.Netns, "eth0")
	for _, dst := range []string{"127.0.0.1", "127.1.2.3"} {
		n.Serve(nodetest.Self, "tcp", dst+":10001")
		syn := &layers.TCP{SrcPort: 4000, DstPort: 10001, SYN: true, Window: 1000}
		header := ip(netip.MustParseAddr(attacker.IP), netip.MustParseAddr(dst), layers.IPProtocolTCP, syn)
		nodetest.SendFrames(t, attacker.Netns, "eth0", nodetest.Frame(t, f.ethernet(netip.MustParseAddr(dst)), header, syn))
		for _, frame := range at.Frames(false, 100*time.Millisecond) {
			p := gopacket.NewPacket(frame, layers.LayerTypeEthernet, gopacket.Default)
			if h, ok := p.NetworkLayer().(*layers.IPv4); ok && h.SrcIP.IsLoopback() {
				t.Errorf("%s of the node answers the pod", h.SrcIP)
			}
		}
	}
	nodetest.RunEach(t,
		"iptables -t nat -I PREROUTING -d 10.96.0.99 -p tcp --dport 80 -j DNAT --to-destination 127.0.0.1:10000")
	n.Reach(attacker, "10.96.0.99:80", true)
}

func TestForwardThatRefusesAll(t *testing.T) {
	if !nodetest.IsolatedWithWeir(t) {
		return
	}
	forwardThatRefusesAll(t, "nft")
}

func TestForwardThatRefusesAllLegacy(t *testing.T) {
	if !nodetest.IsolatedWithWeir(t) {
		return
	}
	nodetest.AboutIptables(t)
	forwardThatRefusesAll(t, "legacy")
}

// TestForwardThatRefusesAllLegacyBesideNftables: with the backend nftables, packets pass if policies allow them, even
// if the chain FORWARD of iptables-legacy refuses all packets at its end.
func TestForwardThatRefusesAllLegacyBesideNftables(t *testing.T) {
	if !nodetest.IsolatedWithWeir(t) {
		return
	}
	t.Setenv("WEIR_BACKEND", "nftables")
	forwardThatRefusesAll(t, "legacy")
}

// forwardThatRefusesAll checks that packets pass if policies allow them, even if the chain FORWARD refuses all packets
// at its end. An earlier DROP rule of the chain must still apply.
func forwardThatRefusesAll(t *testing.T, flavour string) {
	t.Helper()
	n := nodetest.NewNode(t, dualStack)
	nodetest.Run(t, "ip", "-n", "outside", "route", "add", "10.88.0.0/24", "via", "192.0.2.2")
	four, six := "iptables-"+flavour+" -w", "ip6tables-"+flavour+" -w" // the agent may have locked the tables
	nodetest.RunEach(t,
		four+" -A FORWARD -p tcp --dport 8081 -j DROP",
		four+" -A FORWARD -j REJECT --reject-with icmp-host-prohibited",
		six+" -N ufw-reject-forward", six+" -A ufw-reject-forward -j REJECT",
		six+" -A FORWARD -j ufw-reject-forward",
	)
	n.Manifest("cluster.yaml", isolated)
	n.StartAgent()
	server, client, other := n.AddPod("shop", "attacker"), n.AddPod("shop", "client"), n.AddPod("shop", "other")
	for _, netns := range []string{server.Netns, n.Outside} {
		n.Serve(netns, "tcp", ":80")
		n.Serve(netns, "tcp", ":8081")
	}
	reach := func() {
		t.Helper()
		for _, address := range []string{server.IP + ":80", "[" + server.IP6 + "]:80", "192.0.2.1:80", "[2001:db8::1]:80"} {
			n.Reach(other, address, true)
			n.Reach(client, address, false)
		}
		n.Reach(other, server.IP+":8081", false)
		n.ReachFrom(n.Outside, server.IP+":80", true)
	}
	reach()
	// The script of a firewall may write the chain anew while weir runs.
	nodetest.RunEach(t, four+" -F FORWARD", four+" -A FORWARD -p tcp --dport 8081 -j DROP", four+" -A FORWARD -j REJECT")
	reach()
	if flavour == "nft" { // the kernel reports no changes of legacy tables, so weir repairs these tables later
		nodetest.RunEach(t, four+" -F FORWARD")
		n.Eventually("weir's rules are back before a slow script has added its own", func() error {
			if rules := nodetest.Run(t, "iptables-nft", "-S", "FORWARD"); !strings.Contains(strings.ToLower(rules), "weir") {
				return fmt.Errorf("the chain has %s", rules)
			}
			return nil
		})
		nodetest.RunEach(t, four+" -A FORWARD -p tcp --dport 8081 -j DROP", four+" -A FORWARD -j REJECT")
		reach()
	}
	// Scripts of other firewalls have a rule for each protocol, or reject packets in a chain that logs them.
	nodetest.RunEach(t, four+" -F FORWARD", four+" -A FORWARD -p tcp --dport 8081 -j DROP",
		four+" -A FORWARD -p tcp -j REJECT --reject-with tcp-reset", four+" -A FORWARD -j REJECT")
	reach()
	nodetest.RunEach(t, four+" -F FORWARD", four+" -A FORWARD -p tcp --dport 8081 -j DROP", four+" -N refuse",
		four+" -A refuse -m limit --limit 5/min -j LOG --log-prefix refused",
		four+" -A refuse -p tcp -j REJECT --reject-with tcp-reset",
		four+" -A refuse -j DROP", four+" -A FORWARD -j refuse")
	reach()
	// Docker makes the chain drop packets by default.
	nodetest.RunEach(t, four+" -F FORWARD", four+" -A FORWARD -p tcp --dport 8081 -j DROP", four+" -P FORWARD DROP",
		six+" -F FORWARD", six+" -P FORWARD DROP")
	reach()
}

// TestGlobalAddressesAreNotMasqueraded: hosts outside see a pod's global IPv6 address. Unique local addresses
// (fc00::/7) and IPv4 addresses are masqueraded.
func TestGlobalAddressesAreNotMasqueraded(t *testing.T) {
	if !nodetest.IsolatedWithWeir(t) {
		return
	}
	for _, tc := range []struct{ subnet, sees string }{{"fd00:10:88::/64", "2001:db8::2"}, {"2001:db8:88::/64", ""}} {
		t.Run(tc.subnet, func(t *testing.T) {
			n := nodetest.NewNode(t, rangesOf("10.88.0.0/24", tc.subnet))
			defer func() {
				n.KillAgent()
				nodetest.Run(t, "ip", "link", "del", "eth0")
				nodetest.DelNS(t, n.Outside)
			}()
			nodetest.Run(t, "ip", "-n", "outside", "route", "add", tc.subnet, "via", "2001:db8::2")
			n.Manifest("cluster.yaml", isolated)
			n.StartAgent()
			n.Serve(n.Outside, "tcp", ":80")
			other := n.AddPod("shop", "other")
			defer n.DelPod(other)
			want := "hello " + tc.sees
			if tc.sees == "" {
				want = "hello " + other.IP6
			}
			n.Eventually(want, func() error {
				if got, err := nodetest.Get(t, other.Netns, "[2001:db8::1]:80"); got != want {
					return fmt.Errorf("got %q, %w", got, err)
				}
				return nil
			})
			if got := nodetest.Greeting(t, other.Netns, "192.0.2.1:80"); got != "hello 192.0.2.2" {
				t.Errorf("IPv4: got %q", got)
			}
		})
	}
}

// TestControlIstioAmbient: if Istio's ambient mode translates the source of kubelet's probes, the probes still reach
// isolated pods.
func TestControlIstioAmbient(t *testing.T) {
	if !nodetest.IsolatedWithWeir(t) {
		return
	}
	n := attachedBy(t, "weir", isolated)
	server := n.AddPod("shop", "server")
	n.Serve(server.Netns, "tcp", ":80")
	n.Reach(n.AddPod("shop", "other"), server.IP+":80", false)
	nodetest.RunEach(t, // the rules of Istio's chain ISTIO_POSTRT
		"ipset create istio-inpod-probes-v4 hash:ip", "ipset add istio-inpod-probes-v4 "+server.IP,
		"ipset create istio-inpod-probes-v6 hash:ip family inet6", "ipset add istio-inpod-probes-v6 "+server.IP6,
		"iptables -t nat -A POSTROUTING -m owner --socket-exists -p tcp -m set --match-set istio-inpod-probes-v4 dst "+
			"-j SNAT --to-source 169.254.7.127",
		"ip6tables -t nat -A POSTROUTING -m owner --socket-exists -p tcp -m set --match-set istio-inpod-probes-v6 dst "+
			"-j SNAT --to-source fd16:9254:7127:1337:ffff:ffff:ffff:ffff",
	)
	for address, sees := range map[string]string{
		server.IP + ":80": "169.254.7.127", "[" + server.IP6 + "]:80": "fd16:9254:7127:1337:ffff:ffff:ffff:ffff",
	} {
		n.Eventually("the probe is answered", func() error {
			if got, err := nodetest.Get(t, nodetest.Self, address); got != "hello "+sees {
				return fmt.Errorf("got %q, %w", got, err)
			}
			return nil
		})
	}
}
