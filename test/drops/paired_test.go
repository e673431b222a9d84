package drops_test

import (
	"errors"
	"flag"
	"fmt"
	"net"
	"os"
	"testing"
	"time"

	"github.com/weir-net/weir/test/estimate"
	"github.com/weir-net/weir/test/nodetest"
)

var pairs = flag.Int("pairs", 1, "pairs of agents, with and without --drops, to compare")

// mostSlower is the largest ratio that TestPaired accepts: the time with an agent that reads dropped packets, divided
// by the time with an agent that doesn't. On a busy machine, two measurements of the same work may differ by this
// factor.
const mostSlower = 1.1

// TestPaired: during a flood of packets, ADD and changes of policies take about as long with an agent that reads
// dropped packets as with an agent that doesn't (--drops=false). The constant mostSlower is the limit.
func TestPaired(t *testing.T) {
	if !nodetest.IsolatedWithWeir(t) {
		return
	}
	n := newNode(t)
	n.Serve(n.db.Netns, "udp", ":7")
	n.StopAgent()
	kinds := []struct {
		what          string
		measure       func(name string) float64
		took, quarter [2][]float64 // ms in each turn: median, lower quartile; [1]: the agent reads drops
	}{{what: "ADD", measure: n.addPod}, {what: "policy that allows", measure: n.allow}, {
		what: "policy that denies", measure: func(string) float64 { return n.deny() },
	}}
	var packets [2]uint64
	var spent, used [2]time.Duration
	most := 0
	for pair := range *pairs {
		for turn := range 2 {
			with := (pair + turn) % 2 // the two agents take turns at being first
			n.start([][]string{{"--drops=false"}, nil}[with]...)
			flood := n.sendFrom(n.flood)
			began, before := time.Now(), processorTime(t, n.AgentPID())
			end := flood.flood(*rate)
			times := make([][]float64, len(kinds))
			for i := range 10 {
				for k := range kinds {
					times[k] = append(times[k], kinds[k].measure(fmt.Sprintf("p-%d-%d-%d", pair, turn, i)))
				}
			}
			end()
			spent[with] += time.Since(began)
			used[with] += processorTime(t, n.AgentPID()) - before
			packets[with] += flood.sent.Load()
			most = max(most, memory(t, n.AgentPID()))
			for k := range kinds {
				kinds[k].took[with] = append(kinds[k].took[with], estimate.Median(times[k]))
				kinds[k].quarter[with] = append(kinds[k].quarter[with], estimate.Quantile(times[k], 0.25))
			}
			n.StopAgent()
		}
	}
	for _, k := range kinds {
		// The lower quartile is also printed, because other programs on a busy machine hardly delay the quickest
		// samples.
		median, quarter := estimate.Ratios(k.took[1], k.took[0]), estimate.Ratios(k.quarter[1], k.quarter[0])
		t.Logf("drops-paired: %s: %.1f ms without, %.1f ms with drops, ratio %s; of the lower quartiles %s", k.what,
			estimate.Median(k.took[0]), estimate.Median(k.took[1]), estimate.Text(median, 3), estimate.Text(quarter, 3))
		if low, _, ok := estimate.Interval(median); ok && low > mostSlower {
			t.Errorf("%s takes longer with drops", k.what)
		}
	}
	share := func(i int) float64 { return 100 * used[i].Seconds() / spent[i].Seconds() }
	t.Logf("drops-paired: %.0f packets a second without, %.0f with drops; agent, with all its other work: %.1f %% of a "+
		"core without, %.1f %% with drops, %d MiB at most", float64(packets[0])/spent[0].Seconds(),
		float64(packets[1])/spent[1].Seconds(), share(0), share(1), most)
	if most > mostMemory {
		t.Errorf("the agent has %d MiB, at most %d", most, mostMemory)
	}
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

const allow = `
apiVersion: networking.k8s.io/v1
kind: NetworkPolicy
metadata: {name: allow, namespace: shop}
spec: {podSelector: {matchLabels: {app: db}}, ingress: [{ports: [{port: %d, protocol: UDP}]}]}
`

// allow writes a policy by which the quiet pod reaches db. It returns the milliseconds until the first answer.
func (n *node) allow(string) float64 {
	n.Helper()
	conn := n.dialDB()
	defer func() { _ = conn.Close() }()
	n.Manifest("allow.yaml", fmt.Sprintf(allow, 7))
	began := time.Now()
	err := os.ErrDeadlineExceeded
	for ; err != nil; err = echoes(conn) {
		n.notTooLong(began, "the policy lets the quiet pod reach db", err)
	}
	return float64(time.Since(began).Microseconds()) / 1000
}

// deny changes the port in the policy that the method allow has written. It returns the milliseconds until the last
// answer to a new connection.
func (n *node) deny() float64 {
	n.Helper()
	n.Manifest("allow.yaml", fmt.Sprintf(allow, 8))
	began, last := time.Now(), time.Duration(0)
	for silent := 0; silent < 30; silent++ {
		conn := n.dialDB()
		err := echoes(conn)
		_ = conn.Close()
		if err == nil {
			silent, last = 0, time.Since(began)
		}
		n.notTooLong(began, "the policy is gone", err)
	}
	return float64(last.Microseconds()) / 1000
}

func (n *node) dialDB() net.Conn {
	n.Helper()
	for began := time.Now(); ; {
		conn, err := nodetest.Dial(n, n.quiet.Netns, "udp", net.JoinHostPort(n.db.IP, "7"))
		if err == nil {
			return conn
		}
		n.notTooLong(began, "there is a socket", err) // on a busy machine, Dial may time out
	}
}

func (n *node) notTooLong(since time.Time, what string, err error) {
	n.Helper()
	if time.Since(since) > 30*time.Second {
		n.Fatalf("%s: not within half a minute: %v", what, err)
	}
}

// echoes sends a packet, and waits a millisecond for an answer. The answer may also be to an earlier packet.
func echoes(conn net.Conn) error {
	_, sent := conn.Write([]byte("x"))
	if err := conn.SetReadDeadline(time.Now().Add(time.Millisecond)); err != nil {
		return err
	}
	_, err := conn.Read(make([]byte, 1))
	return errors.Join(sent, err)
}
