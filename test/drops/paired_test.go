package drops_test

import (
	"flag"
	"fmt"
	"net"
	"slices"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/weir-net/weir/test/nodetest"
)

var pairs = flag.Int("pairs", 1, "pairs of agents, with and without --drops, to compare")

// TestPaired compares an agent that reads drops with one that doesn't, by the times of ADD and of policies under a
// flood.
func TestPaired(t *testing.T) {
	if !nodetest.IsolatedWithWeir(t) {
		return
	}
	n := newNode(t)
	n.Serve(n.db.Netns, "udp", ":7")
	n.StopAgent()
	var adds, policies [2][]float64
	var packets [2]uint64
	for pair := range *pairs {
		for turn := range 2 {
			with := (pair + turn) % 2 // the one that comes first changes
			n.start([][]string{{"--drops=false"}, nil}[with]...)
			flood := n.sendFrom(n.flood)
			end := flood.flood(*rate)
			for i := range 10 {
				adds[with] = append(adds[with], n.addPod(fmt.Sprintf("p-%d-%d-%d", pair, turn, i)))
				policies[with] = append(policies[with], n.allow())
			}
			end()
			packets[with] += flood.sent.Load()
			n.StopAgent()
		}
	}
	for what, took := range map[string][2][]float64{"ADD": adds, "policy": policies} {
		without, with := median(took[0]), median(took[1])
		t.Logf("drops-paired: %s: %.1f ms without, %.1f ms with drops, ratio %.2f (%d each)", what, without, with,
			with/without, len(took[0]))
	}
	t.Logf("drops-paired: packets sent: %d without, %d with drops", packets[0], packets[1])
}

func (n *node) addPod(name string) float64 {
	n.Helper()
	n.Manifest(name+".yaml", "apiVersion: v1\nkind: Pod\nmetadata: {name: "+name+", namespace: shop}\n")
	defer n.Manifest(name+".yaml", "")
	nodetest.NewNS(n, "shop."+name)
	began := time.Now()
	p := n.AddPod("shop", name)
	took := time.Since(began)
	n.DelPod(p)
	return float64(took.Microseconds()) / 1000
}

func (n *node) allow() float64 {
	n.Helper()
	conn, err := nodetest.Dial(n, n.quiet.Netns, "udp", net.JoinHostPort(n.db.IP, "7"))
	if err != nil {
		n.Fatal(err)
	}
	defer func() { _ = conn.Close() }()
	n.Manifest("allow.yaml", `
apiVersion: networking.k8s.io/v1
kind: NetworkPolicy
metadata: {name: allow, namespace: shop}
spec: {podSelector: {matchLabels: {app: db}}, ingress: [{ports: [{port: 7, protocol: UDP}]}]}
`)
	began := time.Now()
	n.Eventually("the policy lets the quiet pod reach db", func() error { return echoes(conn) })
	took := time.Since(began)
	n.Manifest("allow.yaml", "")
	n.Eventually("the policy is gone", func() error {
		fresh, err := nodetest.Dial(n, n.quiet.Netns, "udp", net.JoinHostPort(n.db.IP, "7"))
		if err != nil {
			return err
		}
		defer func() { _ = fresh.Close() }()
		if echoes(fresh) == nil {
			return unix.EISCONN
		}
		return nil
	})
	return float64(took.Microseconds()) / 1000
}

func echoes(conn net.Conn) error {
	if _, err := conn.Write([]byte("x")); err != nil {
		return err
	}
	if err := conn.SetReadDeadline(time.Now().Add(5 * time.Millisecond)); err != nil {
		return err
	}
	_, err := conn.Read(make([]byte, 1))
	return err
}

func median(all []float64) float64 {
	slices.Sort(all)
	return all[len(all)/2]
}
