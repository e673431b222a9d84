package scale_test

import (
	"bufio"
	"bytes"
	"fmt"
	"net/http"
	"os"
	"os/exec"
	"strconv"
	"strings"
	"sync/atomic"
	"time"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// cpuTime returns the CPU time of the agent and of its children that have ended, in seconds.
func (n *node) cpuTime() float64 {
	n.Helper()
	pid := n.AgentPID()
	// The clock of a process (clock_getcpuclockid(3)) has nanoseconds, /proc only ticks.
	var own unix.Timespec
	if err := unix.ClockGettime(int32(^pid<<3|2), &own); err != nil {
		n.Fatalf("read the agent's CPU time: %v", err)
	}
	stat, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	if err != nil {
		n.Fatal(err)
	}
	// Behind the name, which is in brackets, follow the fields from the third on. cutime is the 16th, cstime the 17th.
	fields := strings.Fields(string(stat[bytes.LastIndexByte(stat, ')')+1:]))
	const tick = 100 // sysconf(_SC_CLK_TCK), on every architecture that Go runs on
	children := 0.0
	for _, f := range fields[13:15] {
		ticks, err := strconv.Atoi(f)
		if err != nil {
			n.Fatal(err)
		}
		children += float64(ticks) / tick
	}
	return float64(own.Nano())/1e9 + children
}

// cpuUse is CPU time in a time, both in seconds.
type cpuUse struct {
	Seconds, Wall float64
	Stream        streamed // what the API server sent meanwhile
}

// cpu measures how much CPU time the agent takes in this time.
func (n *node) cpu(d time.Duration) cpuUse {
	before, sent, began := n.cpuTime(), n.server.Sent()["pods"], time.Now()
	time.Sleep(d)
	after := n.server.Sent()["pods"]
	return cpuUse{
		Seconds: n.cpuTime() - before, Wall: time.Since(began).Seconds(),
		Stream: streamed{Sent: after.Events - sent.Events, Bytes: after.Bytes - sent.Bytes},
	}
}

// memory is the agent's memory, in MB of 10^6 bytes: what is resident, what of that is no part of a file, and the most
// that was resident.
type memory struct{ RSS, Anonymous, Peak float64 }

func (n *node) memory() memory {
	n.Helper()
	data, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", n.AgentPID()))
	if err != nil {
		n.Fatal(err)
	}
	var m memory
	for line := range strings.Lines(string(data)) {
		var kb float64
		name, rest, _ := strings.Cut(line, ":")
		if _, err := fmt.Sscanf(rest, "%f kB", &kb); err != nil {
			continue
		}
		mb := kb * 1024 / 1e6
		switch name {
		case "VmRSS":
			m.RSS = mb
		case "RssAnon":
			m.Anonymous = mb
		case "VmHWM":
			m.Peak = mb
		}
	}
	return m
}

// metric returns the sum of the agent's metric of this name.
func (n *node) metric(name string) (sum float64) {
	n.Helper()
	resp, err := http.Get("http://127.0.0.1:6786/metrics")
	if err != nil {
		n.Fatal(err)
	}
	defer func() { _ = resp.Body.Close() }()
	for lines := bufio.NewScanner(resp.Body); lines.Scan(); {
		if rest, ok := strings.CutPrefix(lines.Text(), name); ok {
			v, err := strconv.ParseFloat(rest[strings.LastIndexByte(rest, ' ')+1:], 64)
			if err != nil {
				n.Fatal(err)
			}
			sum += v
		}
	}
	return sum
}

// countWrites counts the changes that the kernel tells of: routes, neighbours and forwarding entries, addresses, links,
// and everything of nftables, which includes rules of iptables-nft. The kernel tells nothing of ipset and of
// iptables-legacy: there the agent's own counter has to do. The returned function ends the count.
func (n *node) countWrites() func() map[string]int {
	n.Helper()
	done := make(chan struct{})
	var routes, neighbours, addresses, rules atomic.Int64
	r, ne, a := make(chan netlink.RouteUpdate, 1000), make(chan netlink.NeighUpdate, 1000),
		make(chan netlink.AddrUpdate, 1000)
	for _, err := range []error{
		netlink.RouteSubscribe(r, done), netlink.NeighSubscribe(ne, done), netlink.AddrSubscribe(a, done),
	} {
		if err != nil {
			n.Fatal(err)
		}
	}
	go count(r, &routes)
	go count(ne, &neighbours)
	go count(a, &addresses)
	monitor := exec.Command("nft", "monitor")
	out, err := monitor.StdoutPipe()
	if err == nil {
		err = monitor.Start()
	}
	if err != nil {
		n.Fatal(err)
	}
	lines := make(chan struct{})
	go func() {
		defer close(lines)
		for s := bufio.NewScanner(out); s.Scan(); {
			rules.Add(1)
		}
	}()
	return func() map[string]int {
		close(done)
		_ = monitor.Process.Signal(os.Interrupt)
		<-lines
		_ = monitor.Wait()
		return map[string]int{
			"routes": int(routes.Load()), "neighbours and forwarding": int(neighbours.Load()),
			"addresses": int(addresses.Load()), "nftables": int(rules.Load()),
		}
	}
}

func count[T any](c <-chan T, to *atomic.Int64) {
	for range c {
		to.Add(1)
	}
}
