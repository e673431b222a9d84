package hostile

import (
	"encoding/binary"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os/exec"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/gopacket/gopacket"
	"github.com/gopacket/gopacket/layers"
	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netlink/nl"
	"github.com/vishvananda/netns"
	"golang.org/x/sys/unix"

	"github.com/weir-net/weir/test/nodetest"
)

// hooks makes the kernel log packets that its IP stack receives. The chain "enters" comes after weir's rules that drop
// packets (priority -450), and before the reassembly of fragments (priority -400).
const hooks = `
table inet hostile {
  chain enters {
    type filter hook prerouting priority -410
    log prefix "enters IP" group 99 snaplen 1600 queue-threshold 1
  }
  chain taken {
    type filter hook input priority -500
    log prefix "taken by the node" group 99 snaplen 1600 queue-threshold 1
  }
  chain passes {
    type filter hook forward priority -500
    log prefix "forwarded" group 99 snaplen 1600 queue-threshold 1
  }
  chain tracks { type filter hook prerouting priority -100; ct state established counter; }
}
table arp hostile {
  chain taken { type filter hook input priority 500; log prefix "taken as ARP" group 99 snaplen 200 queue-threshold 1; }
}
`

// observer records the effects of frames: packets at the hooks, and frames that are received on links of pods and of
// the host outside.
type observer struct {
	t      testing.TB
	w      *world
	links  map[string]*nodetest.Sniffer // by the place where a frame is seen
	mu     sync.Mutex
	seen   map[int]map[string]bool // effects of each frame, by the frame's number
	asked  map[netip.Addr]int      // numbers of frames with ARP requests, by the address in the request
	others map[string]int          // how often E received each frame that no frame of E caused
}

func observe(t testing.TB, w *world, frames []*frame) (o *observer, end func()) {
	t.Helper()
	o = &observer{
		t:      t,
		w:      w,
		links:  map[string]*nodetest.Sniffer{},
		seen:   map[int]map[string]bool{},
		asked:  map[netip.Addr]int{},
		others: map[string]int{},
	}
	for i, f := range frames {
		if f.asks.IsValid() {
			o.asked[f.asks] = i
		}
	}
	fd := o.listen()
	done := make(chan error, 1)
	go func() { done <- o.readLog(fd) }()
	for where, path := range map[string]string{
		toE:              w.e,
		"at the victim":  w.victim,
		"at a third pod": w.third,
		"outside":        w.outside,
	} {
		o.links[where] = nodetest.Sniff(t, path, "eth0")
	}
	return o, func() {
		// Closing a netlink socket doesn't wake its reader, so readLog checks from time to time whether it must end.
		if err := <-done; err != nil {
			t.Error(err)
		}
		_ = unix.Close(fd)
	}
}

const outsideMAC = "02:00:00:00:00:01"

const toE = "answered to E"

// These constants are from include/uapi/linux/netfilter/nfnetlink_log.h. logGroup is the group of the hooks.
const (
	configMessage = 1
	configCommand = 1
	commandBind   = 1
	attrPayload   = 9
	attrPrefix    = 10
	logGroup      = 99
)

func (o *observer) listen() (fd int) {
	o.t.Helper()
	nodetest.In(o.t, o.w.node, func() error {
		// The hooks of an earlier attack may still exist.
		_ = exec.Command("nft", "delete table inet hostile; delete table arp hostile").Run()
		cmd := exec.Command("nft", "-f", "-")
		cmd.Stdin = strings.NewReader(hooks)
		if out, err := cmd.CombinedOutput(); err != nil {
			return fmt.Errorf("nft: %w: %s", err, out)
		}
		var err error
		if fd, err = unix.Socket(unix.AF_NETLINK, unix.SOCK_RAW|unix.SOCK_CLOEXEC, unix.NETLINK_NETFILTER); err != nil {
			return err
		}
		req := nl.NewNetlinkRequest(unix.NFNL_SUBSYS_ULOG<<8|configMessage, unix.NLM_F_ACK)
		req.AddData(&nl.Nfgenmsg{NfgenFamily: unix.AF_UNSPEC, Version: nl.NFNETLINK_V0, ResId: nl.Swap16(logGroup)})
		req.AddData(nl.NewRtAttr(configCommand, []byte{commandBind}))
		return errors.Join(
			unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_RCVBUFFORCE, 64<<20),
			unix.SetsockoptTimeval(fd, unix.SOL_SOCKET, unix.SO_RCVTIMEO, &unix.Timeval{Usec: 300_000}),
			unix.Sendto(fd, req.Serialize(), 0, &unix.SockaddrNetlink{Family: unix.AF_NETLINK}))
	})
	return fd
}

func (o *observer) readLog(fd int) error {
	buf := make([]byte, 64<<10)
	for {
		k, _, err := unix.Recvfrom(fd, buf, 0)
		switch {
		case errors.Is(err, unix.EINTR):
			continue
		case errors.Is(err, unix.EAGAIN):
			if o.isOver() {
				return nil
			}
			continue
		case err != nil:
			return fmt.Errorf("read what the hooks log: %w", err)
		}
		for b := buf[:k]; len(b) >= unix.SizeofNlMsghdr; {
			size := int(binary.NativeEndian.Uint32(b))
			var prefix string
			var packet []byte
			if binary.NativeEndian.Uint16(b[4:]) == unix.NLMSG_ERROR {
				if code := int32(binary.NativeEndian.Uint32(b[16:])); code != 0 {
					return fmt.Errorf("listen to what the hooks log: %w", unix.Errno(-code))
				}
			} else {
				for a := range nl.ParseAttributes(b[unix.SizeofNlMsghdr+nl.SizeofNfgenmsg : size]) {
					switch a.Type {
					case attrPrefix:
						prefix = nl.BytesToString(a.Value)
					case attrPayload:
						packet = a.Value
					}
				}
			}
			if id, ok := marked(packet); ok {
				o.record(id, prefix)
			}
			b = b[min((size+unix.NLMSG_ALIGNTO-1)&^(unix.NLMSG_ALIGNTO-1), len(b)):]
		}
	}
}

const over = -1

func (o *observer) isOver() bool {
	o.mu.Lock()
	defer o.mu.Unlock()
	return o.seen[over] != nil
}

func (o *observer) record(id int, what string) {
	o.mu.Lock()
	defer o.mu.Unlock()
	if o.seen[id] == nil {
		o.seen[id] = map[string]bool{}
	}
	o.seen[id][what] = true
}

func (o *observer) collect(silence time.Duration) {
	o.t.Helper()
	for where, link := range o.links {
		for _, data := range link.Frames(false, silence) {
			id, ok := marked(data)
			if !ok {
				id, ok = o.answer(data)
			}
			switch {
			case ok:
				o.record(id, where)
			case where == toE && !groups(data):
				o.others[gopacket.NewPacket(data, layers.LayerTypeEthernet, gopacket.Default).String()]++
			}
		}
	}
}

var markerPattern = regexp.MustCompile(markerText + `(\d{5})`)

func marked(data []byte) (int, bool) {
	m := markerPattern.FindSubmatch(data)
	if m == nil {
		return 0, false
	}
	id, err := strconv.Atoi(string(m[1]))
	return id, err == nil
}

func (o *observer) answer(data []byte) (id int, ok bool) {
	packet := gopacket.NewPacket(data, layers.LayerTypeEthernet, gopacket.NoCopy)
	if tcp, ok := packet.Layer(layers.LayerTypeTCP).(*layers.TCP); ok && tcp.DstPort >= firstPort &&
		int(tcp.DstPort) < 32768 {
		return int(tcp.DstPort) - firstPort, true
	}
	if arp, ok := packet.Layer(layers.LayerTypeARP).(*layers.ARP); ok {
		if sender, ok := netip.AddrFromSlice(arp.SourceProtAddress); ok {
			id, ok = o.asked[sender]
			return id, ok
		}
	}
	return 0, false
}

// groups reports whether the frame is about the node's multicast groups. A node sends such frames by itself (RFC 3810).
func groups(data []byte) bool {
	packet := gopacket.NewPacket(data, layers.LayerTypeEthernet, gopacket.NoCopy)
	return packet.Layer(layers.LayerTypeMLDv2MulticastListenerReport) != nil || packet.Layer(layers.LayerTypeIGMP) != nil
}

func (o *observer) state() []string {
	o.t.Helper()
	var all []string
	for where, path := range map[string]string{"node": o.w.node, "victim": o.w.victim, "third": o.w.third} {
		fd, err := netns.GetFromPath(path)
		if err != nil {
			o.t.Fatal(err)
		}
		h, err := netlink.NewHandleAt(fd, unix.NETLINK_ROUTE)
		if err != nil {
			o.t.Fatal(err)
		}
		for _, family := range []int{unix.AF_INET, unix.AF_INET6, unix.AF_BRIDGE} {
			neighbours, err := h.NeighList(0, family)
			if err != nil {
				o.t.Fatal(err)
			}
			for _, n := range neighbours {
				// The test doesn't compare the entries for multicast groups and for the host outside.
				if (n.State != unix.NUD_NOARP || family == unix.AF_BRIDGE) && n.HardwareAddr.String() != outsideMAC {
					all = append(all, fmt.Sprint(where, ": neighbour ", n.LinkIndex, " ", n.IP, " ", n.HardwareAddr))
				}
			}
		}
		for _, family := range []int{unix.AF_INET, unix.AF_INET6} {
			routes, err := h.RouteListFiltered(family, &netlink.Route{Table: unix.RT_TABLE_UNSPEC}, netlink.RT_FILTER_TABLE)
			if err != nil {
				o.t.Fatal(err)
			}
			for _, r := range routes {
				all = append(all, fmt.Sprint(where, ": route ", r.String()))
			}
			addrs, err := h.AddrList(nil, family)
			if err != nil {
				o.t.Fatal(err)
			}
			for _, a := range addrs {
				all = append(all, fmt.Sprint(where, ": address ", a.IPNet, " of link ", a.LinkIndex))
			}
		}
		nodetest.In(o.t, path, func() error {
			for _, family := range []string{"-4", "-6"} {
				// The route cache has what the kernel has learned from ICMP errors.
				out, err := exec.Command("ip", family, "-o", "route", "show", "cache").Output()
				if err != nil {
					return err
				}
				for line := range strings.Lines(string(out)) {
					line = regexp.MustCompile(`expires \S+|users \S+|used \S+|age \S+`).ReplaceAllString(line, "")
					if strings.Contains(line, "mtu") || strings.Contains(line, "redirected") {
						all = append(all, where+": exception "+strings.TrimSpace(line))
					}
				}
			}
			return nil
		})
		h.Close()
		_ = fd.Close()
	}
	slices.Sort(all)
	return slices.Compact(all)
}

func news(was, is []string) []string {
	var all []string
	for _, l := range is {
		if _, ok := slices.BinarySearch(was, l); !ok {
			all = append(all, "+ "+l)
		}
	}
	for _, l := range was {
		if _, ok := slices.BinarySearch(is, l); !ok {
			all = append(all, "- "+l)
		}
	}
	return all
}

type sender struct {
	t    testing.TB
	fd   int
	sent int
}

func newSender(t testing.TB, w *world) *sender {
	t.Helper()
	s := &sender{t: t}
	nodetest.In(t, w.e, func() error {
		link, err := net.InterfaceByName("eth0")
		if err != nil {
			return err
		}
		if s.fd, err = unix.Socket(unix.AF_PACKET, unix.SOCK_RAW|unix.SOCK_CLOEXEC, 0); err != nil {
			return err
		}
		return unix.Bind(s.fd, &unix.SockaddrLinklayer{Ifindex: link.Index})
	})
	t.Cleanup(func() { _ = unix.Close(s.fd) })
	return s
}

func (s *sender) send(f *frame) {
	s.t.Helper()
	for _, data := range f.data {
		_, err := unix.Write(s.fd, data)
		for errors.Is(err, unix.ENOBUFS) || errors.Is(err, unix.EINTR) {
			_, err = unix.Write(s.fd, data)
		}
		if err != nil {
			s.t.Fatalf("send %s (%s), %d bytes: %v", f.name, f.class, len(data), err)
		}
	}
}
