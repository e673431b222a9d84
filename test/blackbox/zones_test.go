package blackbox

import (
	"fmt"
	"net"
	"strings"
	"testing"
	"time"

	"github.com/weir-net/weir/test/nodetest"
)

// TestConnectionsInZones: if another program puts pods' connections into a zone of connection tracking, a policy still
// cuts these connections, and DEL still deletes them from the connection table.
func TestConnectionsInZones(t *testing.T) {
	if !nodetest.IsolatedWithWeir(t) {
		return
	}
	n := nodetest.NewNode(t, nodetest.Conf{"ranges": []any{
		nodetest.Conf{"subnet": "10.88.0.0/24"}, nodetest.Conf{"subnet": "fd00:10:88::/64"},
	}})
	n.Manifest("pods.yaml", pods("quiet", "server", "client"))
	nodetest.RunEach(t, "nft add table inet zones",
		"nft add chain inet zones both { type filter hook prerouting priority raw ; }")
	n.StartAgent()
	for _, zone := range []string{"ct zone", "ct original zone", "ct reply zone"} {
		nodetest.RunEach(t, "nft flush chain inet zones both", "nft add rule inet zones both "+zone+" set 5")
		connectionsInAZone(t, n, zone)
	}
}

func connectionsInAZone(t *testing.T, n *nodetest.Node, zone string) {
	t.Helper()
	server, client := n.AddPod("quiet", "server"), n.AddPod("quiet", "client")
	var conns []net.Conn
	for network, port := range map[string]string{"tcp": ":80", "udp": ":53"} {
		n.Serve(server.Netns, network, port)
		for _, address := range []string{server.IP, "[" + server.IP6 + "]"} {
			var conn net.Conn
			n.Eventually("a connection to "+network+" "+address+port, func() (err error) {
				conn, err = nodetest.Dial(t, client.Netns, network, address+port)
				return err
			})
			defer func() { _ = conn.Close() }()
			// A single datagram may be lost on a new link.
			n.Eventually("an answer over "+network+" from "+address+port, func() error {
				return nodetest.Answers(conn, time.Second)
			})
			conns = append(conns, conn)
		}
	}
	passes := func(want bool) {
		t.Helper()
		for _, conn := range conns {
			to := conn.RemoteAddr()
			n.Eventually(fmt.Sprintf("%s: packets to %s %s pass: %v", zone, to.Network(), to, want), func() error {
				if err := nodetest.Answers(conn, 300*time.Millisecond); (err == nil) != want {
					return fmt.Errorf("%w", err)
				}
				return nil
			})
		}
	}
	n.Manifest("deny.yaml", denyAllIngress)
	passes(false)
	n.Manifest("deny.yaml", "")
	passes(true)
	n.DelPod(client)
	n.DelPod(server)
	for _, family := range []string{"ipv4", "ipv6"} {
		if table := nodetest.Run(t, "conntrack", "-L", "-f", family); strings.Contains(table, client.IP+" ") ||
			strings.Contains(table, client.IP6+" ") {
			t.Errorf("%s: DEL has left connections:\n%s", zone, table)
		}
	}
}
