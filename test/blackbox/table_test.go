package blackbox

import (
	"fmt"
	"net/netip"
	"os"
	"strconv"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/weir-net/weir/test/nodetest"
)

// TestAFullConnectionTable: while the kernel's connection table is full, no connection begins, weirctl status says why,
// policies cut established connections, and pods start and end. Once the table has space, connections begin again.
func TestAFullConnectionTable(t *testing.T) {
	if !nodetest.IsolatedWithWeir(t) {
		return
	}
	n := nodetest.NewNode(t, nil)
	n.Manifest("pods.yaml", pods("quiet", "server", "client", "late"))
	n.StartAgent()
	server, client := n.AddPod("quiet", "server"), n.AddPod("quiet", "client")
	n.Serve(server.Netns, "tcp", ":80")
	n.Serve(server.Netns, "udp", ":53")
	n.Reach(client, server.IP+":80", true)
	stream := nodetest.Connect(t, client.Netns, "tcp", server.IP+":80")
	if err := nodetest.Answers(stream, 10*time.Second); err != nil {
		t.Fatal(err)
	}
	fillTable(t)
	n.Reach(client, server.IP+":80", false)
	status := func(says bool) {
		t.Helper()
		n.Eventually(fmt.Sprintf("weirctl status says that the table is full: %v", says), func() error {
			if says { // the kernel may have forgotten an ended connection; this attempt fills the free entry
				_, _ = nodetest.Get(t, client.Netns, server.IP+":80")
			}
			out, err := n.Ctl("status")
			if err == nil && strings.Contains(out, "connection table: all ") != says {
				err = fmt.Errorf("it doesn't:\n%s", out)
			}
			return err
		})
	}
	status(true)
	late := n.AddPod("quiet", "late")
	n.Manifest("deny.yaml", denyAllIngress)
	n.Eventually("the established connection is cut", func() error { return silent(stream) })
	n.Reach(late, server.IP+":80", false)
	n.DelPod(late)
	n.Manifest("deny.yaml", "")
	nodetest.Run(t, "conntrack", "-D", "-p", "udp", "--dport", "9")
	n.Reach(client, server.IP+":80", true)
	status(false)
}

// fillTable fills the connection table with connections that the kernel doesn't forget. None of these connections
// belongs to a pod.
func fillTable(t *testing.T) {
	t.Helper()
	number := func(name string) int {
		t.Helper()
		text, err := os.ReadFile("/proc/sys/net/netfilter/" + name)
		if err != nil {
			t.Fatal(err)
		}
		n, err := strconv.Atoi(strings.TrimSpace(string(text)))
		if err != nil {
			t.Fatal(err)
		}
		return n
	}
	most := number("nf_conntrack_max")
	address := func(i int) netip.Addr {
		return netip.AddrFrom4([4]byte{198, 18, byte(i >> 24), byte(i >> 16)})
	}
	const slack = 64 // the node itself may begin connections meanwhile
	begun := most - number("nf_conntrack_count") - slack
	nodetest.Add(t, begun, func(i int) nodetest.Entry {
		return nodetest.Entry{
			Src: address(i), Dst: netip.MustParseAddr("198.19.0.1"), Proto: unix.IPPROTO_UDP,
			Sport: uint16(i), Port: 9, Status: nodetest.Answered | nodetest.Assured,
		}
	})
	for i := range 2 * slack {
		if _, err := nodetest.Try("conntrack", "-I", "-p", "udp", "-s", "198.19.0.2", "-d", "198.19.0.1",
			"--sport", fmt.Sprint(1+i), "--dport", "9", "-u", "SEEN_REPLY,ASSURED", "-t", "3600"); err != nil {
			return
		}
	}
	t.Fatalf("the table has room for more than its %d entries", most)
}
