//go:build bench

package bench_test

import (
	"encoding/binary"
	"flag"
	"fmt"
	"net"
	"slices"
	"sync"
	"testing"
	"time"

	"github.com/weir-net/weir/test/estimate"
	"github.com/weir-net/weir/test/nodetest"
)

var pairs = flag.Int("pairs", 30, "how often an agent with each backend is measured")

const (
	pause     = 200 * time.Millisecond // time before each change, in rounds with pauses
	quiets    = 5                      // rounds (four changes each) with pauses, for each measured agent
	row       = 20                     // rounds without pauses, for each measured agent
	interval  = 100 * time.Microsecond // time between two packets of a flow
	lastWords = 20 * time.Millisecond  // a flow counts as denied if none of its packets has arrived for this long
)

const served = `
apiVersion: v1
kind: Pod
metadata: {name: server, namespace: shop, labels: {app: server}}
---
apiVersion: v1
kind: Pod
metadata: {name: client, namespace: shop}
---
apiVersion: networking.k8s.io/v1
kind: NetworkPolicy
metadata: {name: deny, namespace: shop}
spec: {podSelector: {matchLabels: {app: server}}, policyTypes: [Ingress]}
`

const allowing = `
apiVersion: networking.k8s.io/v1
kind: NetworkPolicy
metadata: {name: allow, namespace: shop}
spec: {podSelector: {matchLabels: {app: server}}, policyTypes: [Ingress], ingress: [%s]}
`

// TestPolicy compares the backends by the time from a changed manifest to the first packet with the new verdict. The
// backends take turns. Packets get no answers, so the kernel checks each packet as the first of a connection.
func TestPolicy(t *testing.T) {
	if !nodetest.IsolatedWithWeir(t) {
		return
	}
	n := nodetest.NewNode(t, nil)
	n.Manifest("shop.yaml", served)
	spawn := func(backend string) {
		n.SpawnAgent("--source", "dir:"+n.Manifests, "--backend", backend)
		n.Eventually("the agent is ready", func() error { _, err := n.Ctl("status"); return err })
	}
	spawn("iptables")
	p := newFlows(n, n.AddPod("shop", "server"), n.AddPod("shop", "client"))
	n.StopAgent()
	backends := [2]string{"iptables", "nftables"}
	took := map[string]*[2][]float64{}
	for pair := range *pairs {
		for turn := range 2 {
			i := (pair + turn) % 2
			spawn(backends[i])
			for what, all := range p.turn() {
				if took[what] == nil {
					took[what] = &[2][]float64{}
				}
				took[what][i] = append(took[what][i], estimate.Median(all))
			}
			n.StopAgent()
		}
	}
	var lines []string
	for what, all := range took {
		lines = append(lines, fmt.Sprintf("policy: %s: %.2f ms with iptables, %.2f ms with nftables, ratio %s", what,
			estimate.Median(all[0]), estimate.Median(all[1]), estimate.Text(estimate.Ratios(all[1], all[0]), 2)))
	}
	slices.Sort(lines)
	for _, l := range lines {
		fmt.Println(l)
	}
}

// flows sends packets from the client to the server. Each flow has a number and its own source port.
type flows struct {
	*nodetest.Node
	server, client *nodetest.Pod

	mu          sync.Mutex
	sending     map[int]net.Conn
	next        int
	first, last map[int]time.Time // by the flow's number: when its first and last arrived packets were sent
}

const portA, portB = 1001, 1002

func newFlows(n *nodetest.Node, server, client *nodetest.Pod) *flows {
	f := &flows{
		Node: n, server: server, client: client,
		sending: map[int]net.Conn{}, first: map[int]time.Time{}, last: map[int]time.Time{},
	}
	for _, port := range []int{portA, portB} {
		nodetest.In(n, server.Netns, func() error {
			conn, err := net.ListenPacket("udp", fmt.Sprint(":", port))
			if err == nil {
				n.Cleanup(func() { _ = conn.Close() })
				go f.receive(conn)
			}
			return err
		})
	}
	go func() {
		for t := time.NewTicker(interval); ; <-t.C {
			f.mu.Lock()
			for number, conn := range f.sending {
				b := binary.BigEndian.AppendUint64(nil, uint64(number))
				_, _ = conn.Write(binary.BigEndian.AppendUint64(b, uint64(time.Now().UnixNano())))
			}
			f.mu.Unlock()
		}
	}()
	return f
}

func (f *flows) receive(conn net.PacketConn) {
	for b := make([]byte, 64); ; {
		k, _, err := conn.ReadFrom(b)
		if err != nil {
			return
		}
		if k < 16 {
			continue
		}
		number, sent := int(binary.BigEndian.Uint64(b)), time.Unix(0, int64(binary.BigEndian.Uint64(b[8:])))
		f.mu.Lock()
		if at, ok := f.first[number]; !ok || sent.Before(at) {
			f.first[number] = sent
		}
		if sent.After(f.last[number]) {
			f.last[number] = sent
		}
		f.mu.Unlock()
	}
}

func (f *flows) send(port int) (number int) {
	f.Helper()
	conn, err := nodetest.Dial(f, f.client.Netns, "udp", net.JoinHostPort(f.server.IP, fmt.Sprint(port)))
	if err != nil {
		f.Fatal(err)
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	f.next++
	f.sending[f.next] = conn
	return f.next
}

func (f *flows) end(number int) {
	f.mu.Lock()
	defer f.mu.Unlock()
	_ = f.sending[number].Close()
	delete(f.sending, number)
}

func (f *flows) arrived(number int, times map[int]time.Time) (time.Time, bool) {
	f.mu.Lock()
	defer f.mu.Unlock()
	at, ok := times[number]
	return at, ok
}

// awaitFirst waits until a packet of the flow arrives. It returns the time at which this packet was sent.
func (f *flows) awaitFirst(number int) time.Time {
	f.Helper()
	for began := time.Now(); ; time.Sleep(interval) {
		if at, ok := f.arrived(number, f.first); ok {
			return at
		}
		if time.Since(began) > time.Minute {
			f.Fatal("no packet arrives within a minute")
		}
	}
}

// awaitLast waits until packets of the flow no longer arrive. It returns the time at which the last packet that arrived
// was sent.
func (f *flows) awaitLast(number int) time.Time {
	f.Helper()
	for began := time.Now(); ; time.Sleep(interval) {
		if at, _ := f.arrived(number, f.last); time.Since(at) > lastWords {
			return at
		}
		if time.Since(began) > time.Minute {
			f.Fatal("packets still arrive after a minute")
		}
	}
}

// turn returns how many milliseconds each change has taken, by the kind of change. Changes with pauses between them
// (alone) are listed apart from changes without pauses (in a row).
func (f *flows) turn() map[string][]float64 {
	f.Helper()
	took := map[string][]float64{}
	for i := range quiets + row {
		words := "in a row, "
		wait := func() {}
		if i < quiets {
			words, wait = "alone, ", func() { time.Sleep(pause) }
		}
		f.round(wait, func(what string, from, to time.Time) {
			took[words+what] = append(took[words+what], max(0, float64(to.Sub(from).Microseconds())/1000))
		})
	}
	return took
}

// round changes a policy four times. First, the policy allows a flow. The next two changes give the policy another
// port, so that it allows a new flow and denies the previous one. The last change makes the policy allow nothing. For
// each flow that a change allows or denies, round calls the function record. Its arguments are the kind of change, the
// time of the change, and the time at which the first allowed packet, or the last packet before the denial, was sent.
func (f *flows) round(wait func(), record func(what string, from, to time.Time)) {
	f.Helper()
	var flow int
	for i, port := range []int{portA, portB, portA} {
		next := f.send(port)
		wait()
		began := time.Now()
		f.Manifest("allow.yaml", fmt.Sprintf(allowing, fmt.Sprintf("{ports: [{port: %d, protocol: UDP}]}", port)))
		allowed := f.awaitFirst(next)
		if i == 0 {
			record("a wider policy allows", began, allowed)
		} else {
			record("a changed policy allows", began, allowed)
			at, _ := f.arrived(flow, f.last)
			record("a changed policy denies", began, at)
			f.end(flow)
		}
		flow = next
	}
	wait()
	began := time.Now()
	f.Manifest("allow.yaml", fmt.Sprintf(allowing, ""))
	record("a narrower policy denies", began, f.awaitLast(flow))
	f.end(flow)
}
