// Package probe is the program in the pods of kubectl weir check. Pods answer connections and packets, and try to reach
// pods, Services, names and hosts.
//
// Invariants:
//   - Run returns a result for each probe, in the same order. Probes don't take longer than their own limits.
//   - A pod answers only with its name, or with the packet that it has received.
package probe

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"os"
	"slices"
	"strings"
	"sync"
	"time"
)

// Port is the TCP and UDP port on which pods answer.
const Port = 8080

type Kind string

const (
	// Connect opens a TCP connection to a pod of the check, and reads the name of the pod that answers.
	Connect Kind = "connect"
	// Open opens a TCP connection to any host.
	Open Kind = "open"
	// Large sends a UDP packet of the size of the MTU, unfragmented, to a pod of the check.
	Large Kind = "large"
	// Resolve looks up a name's addresses.
	Resolve Kind = "resolve"
)

type Probe struct {
	Kind Kind `json:"kind"`
	// To is HOST:PORT, or the name to resolve.
	To     string        `json:"to"`
	Within time.Duration `json:"within"`
}

type Result struct {
	OK bool `json:"ok"`
	// Answer depends on Probe.Kind: the name of the pod that answered (Connect), the size of the packet (Large),
	// the resolved addresses (Resolve), or nothing (Open).
	Answer string `json:"answer,omitempty"`
	Error  string `json:"error,omitempty"`
	// Timeout means that no answer came, as when a policy denies a connection.
	Timeout bool `json:"timeout,omitempty"`
}

const parallel = 64

// Run makes all probes. The results are in the order of the probes.
func Run(ctx context.Context, probes []Probe) []Result {
	results := make([]Result, len(probes))
	room := make(chan struct{}, parallel)
	var all sync.WaitGroup
	for i, p := range probes {
		room <- struct{}{}
		all.Go(func() {
			defer func() { <-room }()
			results[i] = p.run(ctx)
		})
	}
	all.Wait()
	return results
}

func (p Probe) run(ctx context.Context) Result {
	ctx, cancel := context.WithTimeout(ctx, p.Within)
	defer cancel()
	do := map[Kind]func(context.Context, string) (string, error){
		Connect: connect, Open: open, Large: large, Resolve: resolve,
	}[p.Kind]
	if do == nil {
		return Result{Error: fmt.Sprintf("this version of weir knows no probe %q", p.Kind)}
	}
	answer, err := do(ctx, p.To)
	if err != nil {
		timeout := errors.Is(err, context.DeadlineExceeded) || os.IsTimeout(err)
		return Result{Error: reason(err), Timeout: timeout}
	}
	return Result{OK: true, Answer: answer}
}

// reason returns the error's text without addresses, because the report names the client and the server.
func reason(err error) string {
	if failed := (*net.OpError)(nil); errors.As(err, &failed) && failed.Err != nil {
		err = failed.Err
	}
	if os.IsTimeout(err) || errors.Is(err, context.DeadlineExceeded) {
		if failed := (*net.DNSError)(nil); errors.As(err, &failed) && failed.Server != "" {
			return "no answer from the DNS server " + failed.Server
		}
		return "no answer"
	}
	return err.Error()
}

const maxName = 300

func connect(ctx context.Context, to string) (string, error) {
	conn, err := (&net.Dialer{}).DialContext(ctx, "tcp", to)
	if err != nil {
		return "", err
	}
	defer func() { _ = conn.Close() }()
	deadline, _ := ctx.Deadline()
	_ = conn.SetDeadline(deadline)
	if _, err := io.WriteString(conn, "GET / HTTP/1.0\r\n\r\n"); err != nil {
		return "", err
	}
	answer, err := io.ReadAll(io.LimitReader(conn, maxName))
	if err != nil {
		return "", err
	}
	_, name, ok := strings.Cut(string(answer), "\r\n\r\n")
	if !ok {
		return "", fmt.Errorf("another program answers: %.40q", answer)
	}
	return strings.TrimSpace(name), nil
}

func open(ctx context.Context, to string) (string, error) {
	conn, err := (&net.Dialer{}).DialContext(ctx, "tcp", to)
	if err != nil {
		return "", err
	}
	return "", conn.Close()
}

const again = 300 * time.Millisecond

func large(ctx context.Context, to string) (string, error) {
	conn, err := (&net.Dialer{Control: dontFragment}).DialContext(ctx, "udp", to)
	if err != nil {
		return "", err
	}
	defer func() { _ = conn.Close() }()
	size, err := packetSize(conn.LocalAddr().(*net.UDPAddr).AddrPort().Addr().Unmap())
	if err != nil {
		return "", err
	}
	headers := 20 + 8
	if conn.RemoteAddr().(*net.UDPAddr).AddrPort().Addr().Unmap().Is6() {
		headers = 40 + 8
	}
	packet, answer := make([]byte, size-headers), make([]byte, size)
	deadline, _ := ctx.Deadline()
	for {
		if _, err := conn.Write(packet); err != nil {
			return "", fmt.Errorf("a packet of %d bytes can't be sent: %w", size, err)
		}
		wait := time.Now().Add(again)
		if wait.After(deadline) {
			wait = deadline
		}
		_ = conn.SetReadDeadline(wait)
		switch n, err := conn.Read(answer); {
		case err == nil && n == len(packet):
			return fmt.Sprintf("%d bytes", size), nil
		case ctx.Err() != nil:
			return "", ctx.Err()
		case err != nil && !os.IsTimeout(err):
			return "", err
		}
	}
}

// packetSize is the MTU of the link with the address, but at most maxPacket.
func packetSize(from netip.Addr) (int, error) {
	links, err := net.Interfaces()
	if err != nil {
		return 0, err
	}
	for _, l := range links {
		addresses, err := l.Addrs()
		if err != nil {
			continue
		}
		if slices.ContainsFunc(addresses, func(a net.Addr) bool {
			network, err := netip.ParsePrefix(a.String())
			return err == nil && network.Addr().Unmap() == from
		}) {
			return min(l.MTU, maxPacket), nil
		}
	}
	return 0, fmt.Errorf("no link has the address %s", from)
}

const maxPacket = 65535

func resolve(ctx context.Context, name string) (string, error) {
	all, err := (&net.Resolver{PreferGo: true}).LookupHost(ctx, name)
	if err != nil {
		return "", err
	}
	slices.Sort(all)
	return strings.Join(all, ","), nil
}

// Serve answers on Port until ctx ends. A TCP connection gets the pod's name, as HTTP. A UDP packet is sent back.
func Serve(ctx context.Context, name string) error {
	address := fmt.Sprintf(":%d", Port)
	var config net.ListenConfig
	listener, err := config.Listen(ctx, "tcp", address)
	if err != nil {
		return err
	}
	packets, err := config.ListenPacket(ctx, "udp", address)
	if err != nil {
		return errors.Join(err, listener.Close())
	}
	return serve(ctx, name, listener, packets)
}

func serve(ctx context.Context, name string, listener net.Listener, packets net.PacketConn) error {
	ctx, stop := context.WithCancel(ctx)
	defer stop()
	defer context.AfterFunc(ctx, func() { _, _ = listener.Close(), packets.Close() })()
	failed := make(chan error, 2)
	go func() { failed <- echo(packets) }()
	go func() { failed <- accept(listener, name) }()
	select {
	case err := <-failed:
		return err
	case <-ctx.Done():
		return nil
	}
}

func echo(packets net.PacketConn) error {
	for packet := make([]byte, maxPacket); ; {
		n, from, err := packets.ReadFrom(packet)
		if err != nil {
			return err
		}
		_, _ = packets.WriteTo(packet[:n], from) // for the sender, a lost answer is like a lost packet
	}
}

const answersWithin = 5 * time.Second

func accept(listener net.Listener, name string) error {
	for {
		conn, err := listener.Accept()
		if err != nil {
			return err
		}
		go func() {
			defer func() { _ = conn.Close() }()
			_ = conn.SetDeadline(time.Now().Add(answersWithin))
			in := bufio.NewReader(io.LimitReader(conn, maxPacket))
			for { // reads the request's header
				line, err := in.ReadString('\n')
				if err != nil {
					return
				}
				if strings.TrimSpace(line) == "" {
					break
				}
			}
			_, _ = fmt.Fprintf(conn, "HTTP/1.0 200 OK\r\nContent-Length: %d\r\n\r\n%s", len(name), name)
		}()
	}
}
