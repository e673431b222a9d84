// Command probe runs in pods and on nodes in the end-to-end tests. It sends packets, and prints the results.
package main

import (
	"bufio"
	"context"
	"encoding/binary"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"os/signal"
	"strings"
	"sync"
	"syscall"
	"time"

	"github.com/spf13/cobra"
	"golang.org/x/sys/unix"
)

func main() {
	root := &cobra.Command{Use: "probe", SilenceUsage: true}
	root.AddCommand(connect(), listen(), datagram(), forge())
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGTERM, syscall.SIGINT)
	err := root.ExecuteContext(ctx)
	stop()
	if err != nil {
		os.Exit(1)
	}
}

// Attempt is an attempt to connect: a line in the output of the command connect.
type Attempt struct {
	To            string        `json:"to"`
	Start         time.Time     `json:"start"`
	Took          time.Duration `json:"took"` // in nanoseconds
	OK            bool          `json:"ok"`
	Retransmitted int           `json:"retransmitted,omitempty"` // number of segments, including SYNs
	Late          bool          `json:"late,omitempty"`          // the first SYN arrived; its answer came late or was lost
	Error         string        `json:"error,omitempty"`
}

// repeatsSYN is how long TCP waits before it repeats a SYN for the first time (TCP_TIMEOUT_INIT).
const repeatsSYN = time.Second

// connect opens connections at a steady rate. It doesn't wait for earlier connections.
func connect() *cobra.Command {
	var every, wait, timeout time.Duration
	var count int
	cmd := &cobra.Command{
		Use:  "connect HOST:PORT...",
		Args: cobra.MinimumNArgs(1),
		RunE: func(cmd *cobra.Command, to []string) error {
			ctx, cancel := context.WithTimeout(cmd.Context(), wait)
			defer cancel()
			out := json.NewEncoder(os.Stdout)
			var mu sync.Mutex
			var all sync.WaitGroup
			defer all.Wait()
			tick := time.NewTicker(every)
			defer tick.Stop()
			for i := 0; count == 0 || i < count; i++ {
				for _, address := range to {
					all.Go(func() {
						a := try(address, timeout)
						mu.Lock()
						defer mu.Unlock()
						_ = out.Encode(a)
					})
				}
				select {
				case <-ctx.Done():
					return nil
				case <-tick.C:
				}
			}
			return nil
		},
	}
	cmd.Flags().DurationVar(&every, "every", 5*time.Millisecond, "time between two connections to the same address")
	cmd.Flags().DurationVar(&wait, "for", time.Hour, "how long, at most")
	cmd.Flags().IntVar(&count, "count", 0, "how many to each address, at most; 0: no limit")
	cmd.Flags().DurationVar(&timeout, "timeout", time.Second, "a connection that isn't open by then has failed")
	return cmd
}

func try(address string, timeout time.Duration) (a Attempt) {
	a = Attempt{To: address, Start: time.Now()}
	kept := -1 // a second descriptor of the socket, which stays open when the dialer gives up
	dialer := net.Dialer{Timeout: timeout, KeepAlive: -1, Control: func(_, _ string, socket syscall.RawConn) (err error) {
		controlErr := socket.Control(func(fd uintptr) { kept, err = unix.FcntlInt(fd, unix.F_DUPFD_CLOEXEC, 0) })
		return errors.Join(err, controlErr)
	}}
	conn, err := dialer.Dial("tcp", address)
	socket := os.NewFile(uintptr(kept), address) // nil if there is no second descriptor
	defer func() { _ = socket.Close() }()
	// If the probe gets no processor time while the connection opens, the dialer may give up although the server has
	// answered.
	if err != nil && socket != nil && isOpen(kept) {
		conn, err = net.FileConn(socket)
	}
	a.Took = time.Since(a.Start)
	if err != nil {
		a.Error = err.Error()
		return a
	}
	a.OK = true
	tcp := conn.(*net.TCPConn)
	if raw, err := tcp.SyscallConn(); err == nil {
		_ = raw.Control(func(fd uintptr) {
			if info, err := unix.GetsockoptTCPInfo(int(fd), unix.IPPROTO_TCP, unix.TCP_INFO); err == nil {
				a.Retransmitted = int(info.Total_retrans)
				// Each SYN has its own timestamp, and the answer repeats it. So if the round trip is longer than the time after
				// which TCP repeats a SYN, the answer is to the first SYN. A server's second answer repeats the first SYN's
				// timestamp too, so Late is true for a late first answer and for a lost first answer.
				a.Late = a.Retransmitted > 0 && time.Duration(info.Rtt)*time.Microsecond > repeatsSYN-100*time.Millisecond
			}
		})
	}
	_ = tcp.SetLinger(0) // closes by a reset, because connections in TIME_WAIT would use up the ports
	_ = tcp.Close()
	return a
}

func isOpen(socket int) bool {
	const established = 1 // TCP_ESTABLISHED in include/net/tcp_states.h
	info, err := unix.GetsockoptTCPInfo(socket, unix.IPPROTO_TCP, unix.TCP_INFO)
	return err == nil && info.State == established
}

// listen echoes each datagram, and prints its size, its sender and its beginning. It closes each TCP connection after a
// line of input.
func listen() *cobra.Command {
	return &cobra.Command{
		Use:  "listen :PORT",
		Args: cobra.ExactArgs(1),
		RunE: func(_ *cobra.Command, args []string) error {
			conn, err := net.ListenPacket("udp", args[0])
			if err != nil {
				return err
			}
			l, err := net.Listen("tcp", args[0])
			if err != nil {
				return err
			}
			go func() {
				for {
					c, err := l.Accept()
					if err != nil {
						return
					}
					go func() {
						defer func() { _ = c.Close() }()
						_, _ = bufio.NewReader(c).ReadString('\n')
					}()
				}
			}()
			buf := make([]byte, 65536)
			for {
				n, from, err := conn.ReadFrom(buf)
				if err != nil {
					return err
				}
				fmt.Printf("%d bytes from %s: %q\n", n, from, buf[:min(n, 40)])
				_, _ = conn.WriteTo(buf[:n], from)
			}
		},
	}
}

// datagram sends a packet that may not be fragmented, and waits for the answer. --size includes the headers.
func datagram() *cobra.Command {
	var size int
	cmd := &cobra.Command{
		Use:  "datagram HOST:PORT",
		Args: cobra.ExactArgs(1),
		RunE: func(_ *cobra.Command, args []string) error {
			conn, err := net.Dial("udp", args[0])
			if err != nil {
				return err
			}
			raw, err := conn.(*net.UDPConn).SyscallConn()
			if err != nil {
				return err
			}
			level, option, headers := unix.IPPROTO_IP, unix.IP_MTU_DISCOVER, 20+8
			if conn.RemoteAddr().(*net.UDPAddr).IP.To4() == nil {
				level, option, headers = unix.IPPROTO_IPV6, unix.IPV6_MTU_DISCOVER, 40+8
			}
			var failed error
			if err := raw.Control(func(fd uintptr) {
				failed = unix.SetsockoptInt(int(fd), level, option, unix.IP_PMTUDISC_DO)
			}); err != nil || failed != nil {
				return errors.Join(err, failed)
			}
			payload := make([]byte, size-headers)
			if _, err := conn.Write(payload); err != nil {
				return err
			}
			_ = conn.SetReadDeadline(time.Now().Add(2 * time.Second))
			n, err := conn.Read(make([]byte, 65536))
			if err != nil {
				return err
			}
			fmt.Printf("%d bytes came back in a packet of %d\n", n, n+headers)
			return nil
		},
	}
	cmd.Flags().IntVar(&size, "size", 1400, "of the packet, headers included")
	return cmd
}

// forge sends forged VXLAN packets, like an attacker that pretends to be a node.
func forge() *cobra.Command {
	var mac, from, to, text string
	var port, count int
	cmd := &cobra.Command{
		Use:   "forge NODE[:PORT]",
		Short: "sends VXLAN packets that carry a datagram --from somebody --to somebody",
		Args:  cobra.ExactArgs(1),
		RunE: func(_ *cobra.Command, args []string) error {
			node := args[0]
			if !strings.Contains(node, ":") {
				node = net.JoinHostPort(node, "4789")
			}
			vtep, err := net.ParseMAC(mac)
			if err != nil {
				return err
			}
			src, err := netip.ParseAddr(from)
			if err != nil {
				return err
			}
			dst, err := netip.ParseAddr(to)
			if err != nil {
				return err
			}
			conn, err := net.Dial("udp", node)
			if err != nil {
				return err
			}
			packet := vxlan(vtep, src, dst, uint16(port), text)
			for range count {
				if _, err := conn.Write(packet); err != nil && !errors.Is(err, syscall.ECONNREFUSED) {
					return fmt.Errorf("send %s: %w", hex.EncodeToString(packet), err)
				}
			}
			return nil
		},
	}
	cmd.Flags().StringVar(&mac, "mac", "", "of the receiving node's tunnel device")
	cmd.Flags().StringVar(&from, "from", "", "inner sender")
	cmd.Flags().StringVar(&to, "to", "", "inner receiver")
	cmd.Flags().StringVar(&text, "text", "forged", "that the datagram carries")
	cmd.Flags().IntVar(&port, "port", 9, "inner port")
	cmd.Flags().IntVar(&count, "count", 10, "how many")
	return cmd
}

const network = 88

// vxlan returns a VXLAN header (RFC 7348) and a frame with IPv4, UDP without a checksum, and the text.
func vxlan(mac net.HardwareAddr, src, dst netip.Addr, port uint16, text string) []byte {
	b := []byte{0x08, 0, 0, 0, 0, 0, network, 0}
	b = append(b, mac...)
	b = append(b, 0x02, 0, 0, 0, 0, 0x66, 0x08, 0x00)
	ip := []byte{0x45, 0, 0, 0, 0, 0, 0, 0, 64, unix.IPPROTO_UDP, 0, 0}
	binary.BigEndian.PutUint16(ip[2:], uint16(28+len(text)))
	ip = append(ip, src.AsSlice()...)
	ip = append(ip, dst.AsSlice()...)
	sum := uint32(0)
	for i := 0; i < len(ip); i += 2 {
		sum += uint32(binary.BigEndian.Uint16(ip[i:]))
	}
	sum = sum>>16 + sum&0xffff
	binary.BigEndian.PutUint16(ip[10:], ^uint16(sum+sum>>16))
	b = append(b, ip...)
	b = binary.BigEndian.AppendUint16(b, 5353)
	b = binary.BigEndian.AppendUint16(b, port)
	b = binary.BigEndian.AppendUint16(b, uint16(8+len(text)))
	b = append(b, 0, 0)
	return append(b, text...)
}
