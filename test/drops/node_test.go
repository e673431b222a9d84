package drops_test

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/weir-net/weir/agentapi"
	"github.com/weir-net/weir/test/nodetest"
)

func TestMain(m *testing.M) { nodetest.MainAsShipped(m) }

const manifest = `
apiVersion: networking.k8s.io/v1
kind: NetworkPolicy
metadata: {name: deny, namespace: shop}
spec: {podSelector: {matchLabels: {app: db}}, policyTypes: [Ingress]}
---
apiVersion: networking.k8s.io/v1
kind: NetworkPolicy
metadata: {name: db, namespace: shop}
spec:
  podSelector: {matchLabels: {app: db}}
  ingress: [{from: [{podSelector: {matchLabels: {app: web}}}]}]
---
apiVersion: v1
kind: Pod
metadata: {name: db, namespace: shop, labels: {app: db}}
---
apiVersion: v1
kind: Pod
metadata: {name: flood, namespace: shop}
---
apiVersion: v1
kind: Pod
metadata: {name: quiet, namespace: shop}
`

type node struct {
	*nodetest.Node
	db, flood, quiet *nodetest.Pod
}

func newNode(t *testing.T, flags ...string) *node {
	n := &node{Node: nodetest.NewNode(t, nil)}
	n.Manifest("shop.yaml", manifest)
	n.start(flags...)
	n.db, n.flood, n.quiet = n.AddPod("shop", "db"), n.AddPod("shop", "flood"), n.AddPod("shop", "quiet")
	return n
}

func (n *node) start(flags ...string) {
	n.Helper()
	n.SpawnAgent(append([]string{"--source", "dir:" + n.Manifests}, flags...)...)
	n.Eventually("the agent is ready", func() error {
		_, err := n.Ctl("status")
		if err == nil && len(flags) == 0 {
			_, err = n.Ctl("drops")
		}
		return err
	})
	// A second after its first round, the agent removes remains of the other backend. This must not count as the cost of a
	// packet.
	n.Eventually("the agent has written the name of its backend", func() error {
		name, err := os.ReadFile("/run/weir/lock")
		if err == nil && len(name) == 0 {
			err = errors.New("the file is empty")
		}
		return err
	})
}

func (n *node) logged() (packets uint64) {
	n.Helper()
	counter := `counter packets (\d+) bytes \d+ log prefix`
	rules, err := nodetest.Try("nft", "list", "table", "ip", "weir")
	if err != nil {
		// Standard error isn't read, because a warning there could appear in the middle of a rule.
		out, err := exec.CommandContext(n.Context(), "iptables-save", "-c", "-t", "mangle").Output()
		if err != nil {
			n.Fatal(err)
		}
		rules, counter = string(out), `(?m)^\[(\d+):\d+\] .* -j NFLOG`
	}
	for _, m := range regexp.MustCompile(counter).FindAllStringSubmatch(rules, -1) {
		k, err := strconv.ParseUint(m[1], 10, 64)
		if err != nil {
			n.Fatal(err)
		}
		packets += k
	}
	return packets
}

// agree waits until the counts in the lines that the reader has got from weirctl add up to the number of packets that
// the kernel has logged.
func (n *node) agree(r *reader, sender *sender) {
	n.Helper()
	n.stands(r, sender, func(shown uint64) error {
		if logged := n.logged(); shown != logged {
			return fmt.Errorf("%d were logged", logged)
		}
		return nil
	})
}

// stands waits until the function right returns nil for the sum of the counts in the reader's lines. The agent notices
// lost packets only when a later packet arrives, and later packets may be lost too. So this method sends another
// packet every five seconds.
func (n *node) stands(r *reader, sender *sender, right func(shown uint64) error) {
	n.Helper()
	var sent time.Time
	n.Eventually("the lines stand for all packets", func() error {
		if time.Since(sent) > 5*time.Second { // within this time, a line about an earlier packet has come
			if err := sender.send(1); err != nil {
				return err
			}
			sent = time.Now()
		}
		shown := r.count.Load()
		if err := right(shown); err != nil {
			return fmt.Errorf("%d packets in lines, %d of them lost, %d missed: %w", shown, r.lost.Load(), r.missed.Load(), err)
		}
		return nil
	})
}

type reader struct {
	cmd    *exec.Cmd
	count  atomic.Uint64 // sum of the counts in all lines
	missed atomic.Uint64 // sum of the counts in lines with MISSED
	lost   atomic.Uint64 // sum of the counts in lines with LOST

	mu   sync.Mutex
	seen map[uint16]time.Time // when the first line about the quiet pod came, by destination port
}

func (n *node) reader() *reader {
	n.Helper()
	r := &reader{seen: map[uint16]time.Time{}}
	r.cmd = exec.Command(filepath.Join(n.Bin, "weirctl"), "drops", "-f", "--since", "1h", "-o", "json")
	out, err := r.cmd.StdoutPipe()
	if err == nil {
		err = r.cmd.Start()
	}
	if err != nil {
		n.Fatal(err)
	}
	n.Cleanup(func() {
		_ = r.cmd.Process.Kill()
		_ = r.cmd.Wait()
	})
	go r.read(out)
	return r
}

func (r *reader) read(out io.Reader) {
	for values := json.NewDecoder(out); ; {
		var d agentapi.Drop
		if values.Decode(&d) != nil {
			return
		}
		r.count.Add(d.Count)
		switch d.Kind {
		case agentapi.DropMissed:
			r.missed.Add(d.Count)
		case agentapi.DropLost:
			r.lost.Add(d.Count)
		}
		if d.Kind == agentapi.DropShown && d.Source.Pod == "shop/quiet" {
			r.mu.Lock()
			if _, ok := r.seen[d.Destination.Port]; !ok {
				r.seen[d.Destination.Port] = time.Now()
			}
			r.mu.Unlock()
		}
	}
}

func (r *reader) saw(port uint16) (time.Time, bool) {
	r.mu.Lock()
	defer r.mu.Unlock()
	at, ok := r.seen[port]
	return at, ok
}

// await lets the quiet pod (the parameter quiet) send packets until the reader gets a line about one of these packets.
func (r *reader) await(n *node, quiet *sender) {
	n.Helper()
	n.Eventually("the reader gets lines", func() error {
		if err := quiet.send(1); err != nil {
			return err
		}
		if _, ok := r.saw(1); !ok {
			return fmt.Errorf("no line")
		}
		return nil
	})
}

// single lets the quiet pod (the parameter quiet) send packets one by one. For each packet, it returns the time from
// the sending until a line showed the packet.
func (r *reader) single(n *node, quiet *sender) (took []time.Duration) {
	n.Helper()
	for i := range *rounds {
		port := uint16(1000 + i)
		at := time.Now()
		if err := quiet.send(port); err != nil {
			n.Fatal(err)
		}
		n.Eventually(fmt.Sprintf("packet %d of the quiet pod shows", i), func() error {
			if _, ok := r.saw(port); !ok {
				return fmt.Errorf("no line")
			}
			return nil
		})
		seen, _ := r.saw(port)
		took = append(took, seen.Sub(at))
	}
	return took
}

func (r *reader) signal(s syscall.Signal) { _ = r.cmd.Process.Signal(s) }

type sender struct {
	fd   int
	to   [4]byte
	sent atomic.Uint64
	stop chan struct{}
	done chan struct{}
}

func (n *node) sendFrom(p *nodetest.Pod) *sender {
	n.Helper()
	s := &sender{to: [4]byte(net.ParseIP(n.db.IP).To4()), stop: make(chan struct{}), done: make(chan struct{})}
	nodetest.In(n, p.Netns, func() (err error) {
		s.fd, err = unix.Socket(unix.AF_INET, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
		return err
	})
	n.Cleanup(func() { _ = unix.Close(s.fd) })
	return s
}

func (s *sender) send(port uint16) error {
	err := unix.Sendto(s.fd, []byte("x"), 0, &unix.SockaddrInet4{Port: int(port), Addr: s.to})
	if err == nil {
		s.sent.Add(1)
	}
	return err
}

// flood sends packets until the returned function end is called. Every second packet goes to port 53. The other packets
// go to all odd ports, one after the other.
func (s *sender) flood(perSecond int) (end func()) {
	go func() {
		defer close(s.done)
		began, before := time.Now(), s.sent.Load()
		for port := uint16(1); ; port++ {
			if port%50 == 0 {
				select {
				case <-s.stop:
					return
				default:
				}
				ahead := time.Duration(s.sent.Load()-before)*time.Second/time.Duration(perSecond) - time.Since(began)
				if ahead > 0 {
					time.Sleep(ahead)
				}
			}
			if port%2 == 0 {
				_ = s.send(53)
			} else {
				_ = s.send(port)
			}
		}
	}()
	return func() {
		close(s.stop)
		<-s.done
	}
}

func processorTime(t testing.TB, pid int) (sum time.Duration) {
	t.Helper()
	files, err := filepath.Glob(fmt.Sprintf("/proc/%d/task/*/schedstat", pid))
	if err != nil {
		t.Fatal(err)
	}
	for _, f := range files {
		data, err := os.ReadFile(f)
		if err != nil {
			continue // the thread has ended
		}
		ns, err := strconv.ParseInt(strings.Fields(string(data))[0], 10, 64)
		if err != nil {
			t.Fatal(err)
		}
		sum += time.Duration(ns)
	}
	return sum
}

func memory(t testing.TB, pid int) int {
	t.Helper()
	status, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", pid))
	if err != nil {
		t.Fatal(err)
	}
	m := regexp.MustCompile(`VmRSS:\s*(\d+) kB`).FindSubmatch(status)
	if m == nil {
		t.Fatalf("no VmRSS in\n%s", status)
	}
	kB, _ := strconv.Atoi(string(m[1]))
	return kB >> 10
}
