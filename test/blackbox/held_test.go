package blackbox

import (
	"fmt"
	"net"
	"regexp"
	"testing"
	"time"

	"github.com/weir-net/weir/test/nodetest"
)

// TestHeldPackets: weir's rules have allowed the first packet of a connection, and then another program's NFQUEUE rule
// holds this packet. If a new policy forbids the connection meanwhile, the agent cuts the connection after the program
// has let the packet go on.
func TestHeldPackets(t *testing.T) {
	if !nodetest.IsolatedWithWeir(t) {
		return
	}
	n := nodetest.NewNode(t, dualStack)
	n.Manifest("pods.yaml", pods("quiet", "server", "client"))
	n.StartAgent()
	server, client := n.AddPod("quiet", "server"), n.AddPod("quiet", "client")
	n.Serve(server.Netns, "udp", ":53")
	for _, iptables := range []string{"iptables", "ip6tables"} {
		nodetest.RunEach(t, iptables+" -t mangle -I POSTROUTING -p udp --dport 53 -m conntrack --ctstate NEW "+
			"-j NFQUEUE --queue-num 7")
	}
	line := regexp.MustCompile(`(?m)^quiet/server .*quiet/deny`)
	holds := func(want bool) {
		t.Helper()
		n.Eventually(fmt.Sprintf("the policy isolates the server: %v", want), func() error {
			status, err := n.Ctl("status")
			if err == nil && line.MatchString(status) != want {
				err = fmt.Errorf("it doesn't:\n%s", status)
			}
			return err
		})
	}
	queue := nodetest.OpenQueue(t, nodetest.Self, 7, 0)
	for i, address := range []string{server.IP + ":53", "[" + server.IP6 + "]:53"} {
		conn := nodetest.Connect(t, client.Netns, "udp", address)
		held := fmt.Sprintf("held packet %d", i+1)
		if _, err := conn.Write([]byte(held)); err != nil {
			t.Fatal(err)
		}
		packet := queue.Next(t)
		n.Manifest("deny.yaml", denyAllIngress)
		holds(true)
		time.Sleep(2 * time.Second) // until the agent has looked for connections to cut
		arriving := nodetest.Sniff(t, server.Netns, "eth0")
		queue.Accept(t, packet)
		n.Eventually(fmt.Sprintf("the held packet arrives at %s", address), func() error {
			if heard(arriving, held) == nil {
				return fmt.Errorf("it doesn't")
			}
			return nil
		})
		if err := conn.SetReadDeadline(time.Now().Add(10 * time.Second)); err != nil {
			t.Fatal(err)
		}
		// The answer isn't checked: on a busy machine, the agent may cut the connection before the answer passes.
		_, _ = conn.Read(make([]byte, 100))
		n.Eventually(fmt.Sprintf("connection %d to %s is cut", i+1, address), func() error { return silent(conn) })
		n.Manifest("deny.yaml", "")
		holds(false)
	}
}

// silent returns an error if the connection's server answers within three seconds. A busy machine answers late.
func silent(conn net.Conn) error {
	if nodetest.Answers(conn, 3*time.Second) == nil {
		return fmt.Errorf("the server answers")
	}
	return nil
}
