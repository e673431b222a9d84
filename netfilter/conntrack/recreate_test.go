package conntrack

import (
	"errors"
	"net"
	"regexp"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"golang.org/x/sys/unix"

	"github.com/weir-net/weir/test/nodetest"
)

// TestEntriesWithoutRoomForLabels: Apply can cut and restore connections whose entries have no room for a label. If no
// rule uses labels at that time, the kernel can't make room, and Apply returns an error.
func TestEntriesWithoutRoomForLabels(t *testing.T) {
	if !nodetest.Isolated(t) {
		return
	}
	for _, entry := range []string{
		"-p tcp -s 10.88.0.2 -d 10.88.0.3 --sport 4000 --dport 80 --state ESTABLISHED -u SEEN_REPLY,ASSURED -t 7000",
		"-p tcp -s 10.88.0.2 -d 10.96.0.1 -r 10.88.0.3 -q 10.88.0.2 --sport 4001 --dport 80 --reply-port-src 8080 " +
			"--reply-port-dst 4001 --state ESTABLISHED -u SEEN_REPLY,ASSURED -t 7000",
		"-p udp -s 10.88.0.2 -d 10.88.0.3 --sport 4000 --dport 53 -u SEEN_REPLY,ASSURED -t 7000",
		"-p sctp -s 10.88.0.2 -d 10.88.0.3 --sport 4000 --dport 80 --state ESTABLISHED --orig-vtag 1 --reply-vtag 2 " +
			"-u SEEN_REPLY,ASSURED -t 7000",
		"-p icmp -s 10.88.0.2 -d 10.88.0.3 --icmp-type 8 --icmp-code 0 --icmp-id 7 -u SEEN_REPLY,ASSURED -t 7000",
		"-p tcp -s fd00:10:88::2 -d fd00:10:96::1 -r fd00:10:88::3 -q fd00:10:88::2 --sport 4001 --dport 80 " +
			"--reply-port-src 8080 --reply-port-dst 4001 --state ESTABLISHED -u SEEN_REPLY,ASSURED -t 7000",
		"-p udp -s fd00:10:88::2 -d fd00:10:88::3 --sport 4000 --dport 53 -u SEEN_REPLY,ASSURED -t 7000",
		"-p icmpv6 -s fd00:10:88::2 -d fd00:10:88::3 --icmpv6-type 128 --icmpv6-code 0 --icmpv6-id 7 " +
			"-u SEEN_REPLY,ASSURED -t 7000",
		"-w 5 -p udp -s 10.88.0.2 -d 10.88.0.3 --sport 4000 --dport 53 -u SEEN_REPLY,ASSURED -t 7000",
	} {
		nodetest.Run(t, "conntrack", append([]string{"-I"}, strings.Fields(entry)...)...)
	}
	// The kernel sees the beginning of this connection. Entries that conntrack -I makes would count as midstream.
	nodetest.Run(t, "iptables", "-A", "INPUT", "-m", "conntrack", "--ctstate", "NEW")
	l, err := net.Listen("tcp4", "127.0.0.1:80")
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = l.Close() }()
	nodetest.Connect(t, nodetest.Self, "tcp", "127.0.0.1:80")
	before := listing(t)
	cut := func(on bool) (of int) {
		t.Helper()
		for c, err := range All() {
			if err != nil {
				t.Fatal(err)
			}
			if err := setCut(c, on); err != nil {
				t.Errorf("from %s to %s, protocol %d: %v", c.Src, c.Dst, c.Proto, err)
			}
		}
		for c, err := range All() {
			if err != nil {
				t.Fatal(err)
			}
			if c.Cut {
				of++
			}
			if want := c.Proto == unix.IPPROTO_TCP && !c.Src.IsLoopback(); c.Midstream() != want {
				t.Errorf("from %s to %s, protocol %d: begun before the kernel saw it: %v", c.Src, c.Dst, c.Proto, !want)
			}
		}
		return of
	}
	nodetest.Run(t, "iptables", "-A", "FORWARD", "-m", "connlabel", "--label", "127", "-j", "DROP")
	if n := cut(true); n != 10 {
		t.Errorf("%d of 10 connections are cut", n)
	}
	if diff := cmp.Diff(before, listing(t)); diff != "" {
		t.Errorf("cut: %s", diff)
	}
	if n := cut(false); n != 0 {
		t.Errorf("%d connections are still cut", n)
	}
	if diff := cmp.Diff(before, listing(t)); diff != "" {
		t.Errorf("restored: %s", diff)
	}
	// Without a rule that uses labels, the kernel makes new entries without room for a label.
	nodetest.Run(t, "iptables", "-F")
	nodetest.Run(t, "conntrack", "-D", "-p", "icmp")
	nodetest.Run(t, "conntrack", "-I", "-p", "udp", "-s", "10.88.0.2", "-d", "10.88.0.3", "--sport", "1", "--dport", "1",
		"-t", "7000")
	seen, failed := 0, 0
	for c, err := range All() {
		if err != nil {
			t.Fatal(err)
		}
		seen++
		if setCut(c, true) != nil {
			failed++
		}
	}
	if failed != 1 {
		t.Errorf("%d of %d connections could not be cut, want one", failed, seen)
	}
}

func setCut(c Connection, on bool) error {
	o := Restore
	if on {
		o = Cut
	}
	return errors.Join(Apply([]Edit{NewEdit(c, o)})...)
}

func listing(t *testing.T) string {
	t.Helper()
	var lines []string
	table := nodetest.Run(t, "conntrack", "-L", "-o", "extended") +
		nodetest.Run(t, "conntrack", "-L", "-f", "ipv6", "-o", "extended")
	for line := range strings.Lines(table) {
		if strings.Contains(line, "src=") {
			line = regexp.MustCompile(` (6\d{3}|7000|4[23]\d{4}) `).ReplaceAllString(line, " T ")
			lines = append(lines, regexp.MustCompile(` (mark|use|labels)=\S*`).ReplaceAllString(line, ""))
		}
	}
	slices.Sort(lines)
	return strings.Join(lines, "")
}
