package blackbox

import (
	"bytes"
	"net"
	"testing"

	"github.com/gopacket/gopacket"
	"github.com/gopacket/gopacket/layers"

	"github.com/weir-net/weir/test/nodetest"
)

// TestHopByHopOptionsToLinkLocalMACs: if a pod sends a packet with an unknown IPv6 option, and with another pod's
// address as its source, no answer of the node reaches the other pod.
func TestHopByHopOptionsToLinkLocalMACs(t *testing.T) {
	if !nodetest.IsolatedWithWeir(t) {
		return
	}
	_, e, a, _ := hostileNode(t, dualStack)
	words := []byte("words of a hostile pod")
	// RFC 8200, section 4.2: if the type of an unknown option begins with the bits 10, the receiver must answer with an
	// ICMP error, even to a multicast packet.
	options := append([]byte{byte(layers.IPProtocolNoNextHeader), 0, 0x9e, 4}, make([]byte, 4)...)
	for _, to := range []net.HardwareAddr{linkLocal(2), linkLocal(3), lldp, linkLocal(0x0f)} {
		heard := nodetest.Sniff(t, a.Netns, "eth0")
		nodetest.SendFrames(t, e.Netns, "eth0", nodetest.Frame(t,
			ethernet(to, macOf(t, e.Netns, "eth0"), a.IP6), header(a.IP6, "2001:db8::2", layers.IPProtocolIPv6HopByHop, nil),
			gopacket.Payload(options), gopacket.Payload(words)))
		for _, frame := range heard.Frames(false, silence) {
			if bytes.Contains(frame, words) {
				t.Errorf("sent to %s: another pod received what the hostile one wrote:\n%x", to, frame)
			}
		}
	}
}
