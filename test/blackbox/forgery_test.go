package blackbox

import (
	"encoding/json"
	"net"
	"net/netip"
	"testing"
	"time"

	"github.com/gopacket/gopacket"
	"github.com/gopacket/gopacket/layers"

	"github.com/weir-net/weir/test/nodetest"
)

type forgery struct {
	*testing.T
	from         *nodetest.Pod
	own, gateway net.HardwareAddr // MACs of the sender and of its gateway
}

func newForgery(t *testing.T, from *nodetest.Pod) *forgery {
	t.Helper()
	return &forgery{
		T:       t,
		from:    from,
		own:     macOf(t, from.Netns, "eth0"),
		gateway: neighbour(t, from.Namespace+"."+from.Name),
	}
}

func fromOutside(t *testing.T, n *nodetest.Node) *forgery {
	return &forgery{
		T:       t,
		from:    &nodetest.Pod{Netns: n.Outside},
		own:     net.HardwareAddr{2, 0, 0, 0, 0, 1},
		gateway: net.HardwareAddr{2, 0, 0, 0, 0, 2},
	}
}

// neighbour returns the MAC of the pod's gateway. If the pod doesn't know this MAC yet, neighbour sends a packet, so
// that the pod asks for the MAC.
func neighbour(t *testing.T, name string) net.HardwareAddr {
	t.Helper()
	var routes []struct{ Gateway string }
	out := nodetest.Run(t, "ip", "-n", name, "-j", "route", "show", "default")
	if err := json.Unmarshal([]byte(out), &routes); err != nil || len(routes) != 1 {
		t.Fatalf("the pod's default route: %v, %v", routes, err)
	}
	for end := time.Now().Add(time.Minute); time.Now().Before(end); {
		var all []struct{ Dst, Lladdr string }
		if err := json.Unmarshal([]byte(nodetest.Run(t, "ip", "-n", name, "-j", "neigh", "show")), &all); err != nil {
			t.Fatal(err)
		}
		for _, e := range all {
			if e.Dst == routes[0].Gateway && e.Lladdr != "" {
				mac, err := net.ParseMAC(e.Lladdr)
				if err != nil {
					t.Fatal(err)
				}
				return mac
			}
		}
		nodetest.In(t, "/run/netns/"+name, func() error {
			c, err := net.Dial("udp", routes[0].Gateway+":9")
			if err == nil {
				_, _ = c.Write([]byte("x"))
				err = c.Close()
			}
			return err
		})
		time.Sleep(10 * time.Millisecond)
	}
	t.Fatalf("%s doesn't find its gateway %s", name, routes[0].Gateway)
	return nil
}

func (f *forgery) inside(u udp, payload string) []byte {
	f.Helper()
	return nodetest.Frame(f, u.packet(payload)...)
}

func (f *forgery) datagram(u udp, payload string) []byte {
	f.Helper()
	return nodetest.Frame(f, layersOf(f.ethernet(u.dst.Addr()), u.packet(payload)...)...)
}

// kind is a kind of ICMP error. v4 and v6 are its type and code in each family. The second word of its header is info4
// in IPv4, and mtu in IPv6.
type kind struct {
	v4, v6     uint16 // type<<8 | code
	info4, mtu uint32
}

var (
	unreachable = kind{v4: 3<<8 | 3, v6: 1<<8 | 4}
	tooBig      = kind{v4: 3<<8 | 4, v6: 2 << 8, info4: 552, mtu: 1280}
	exceeded    = kind{v4: 11 << 8, v6: 3 << 8}
	problem     = kind{v4: 12 << 8, v6: 4 << 8}
	redirect    = kind{v4: 5<<8 | 1, v6: 137 << 8}
	quench      = kind{v4: 4 << 8, v6: 2 << 8, mtu: 1280}
)

func (f *forgery) icmp(outer gopacket.SerializableLayer, k kind, inside []byte) []gopacket.SerializableLayer {
	f.Helper()
	if _, ok := outer.(*layers.IPv4); ok {
		return []gopacket.SerializableLayer{
			&layers.ICMPv4{TypeCode: layers.ICMPv4TypeCode(k.v4), Id: uint16(k.info4 >> 16), Seq: uint16(k.info4)},
			gopacket.Payload(inside),
		}
	}
	header := &layers.ICMPv6{TypeCode: layers.ICMPv6TypeCode(k.v6)}
	if err := header.SetNetworkLayerForChecksum(outer.(*layers.IPv6)); err != nil {
		f.Fatal(err)
	}
	second := []byte{byte(k.mtu >> 24), byte(k.mtu >> 16), byte(k.mtu >> 8), byte(k.mtu)}
	return []gopacket.SerializableLayer{header, gopacket.Payload(append(second, inside...))}
}

func (f *forgery) ethernet(to netip.Addr) *layers.Ethernet {
	return ethernet(f.gateway, f.own, to.String())
}

func (f *forgery) send(to string, k kind, about udp, words string) {
	f.Helper()
	f.sendAs(f.address(netip.MustParseAddr(to)), to, k, about, words)
}

func (f *forgery) sendAs(src netip.Addr, to string, k kind, about udp, words string) {
	f.Helper()
	dst := netip.MustParseAddr(to)
	outer := ip(src, dst, layers.IPProtocolICMPv4, nil)
	if dst.Is6() {
		outer = ip(src, dst, layers.IPProtocolICMPv6, nil)
	}
	all := append([]gopacket.SerializableLayer{f.ethernet(dst), outer}, f.icmp(outer, k, f.inside(about, words))...)
	nodetest.SendFrames(f, f.from.Netns, "eth0", nodetest.Frame(f, all...))
}

func (f *forgery) address(of netip.Addr) netip.Addr {
	if of.Is6() {
		return netip.MustParseAddr(f.from.IP6)
	}
	return netip.MustParseAddr(f.from.IP)
}
