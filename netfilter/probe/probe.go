// Package probe finds out whether the kernel does what weir's rules need. A backend writes the rules of a Trial,
// and the Trial sends packets through these rules over the loopback link. So probe also notices a rule that the
// kernel accepts and never matches. The package imports no backend.
package probe

import (
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"runtime"
	"slices"
	"strings"
	"time"

	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netns"

	"github.com/weir-net/weir/conf"
	"github.com/weir-net/weir/policy/ruleset"
)

// Trial is a chain of rules for one family, at the hook of packets to the node. The rule of each Need lets the
// Need's packet pass, or drops it if Need.drops is true. Later rules drop the packets of all Needs.
type Trial struct {
	Family conf.Family
	Sets   []ruleset.Set
	Needs  []Need
	// Unused are rules that no packet meets. The kernel must accept them.
	Unused []Need

	sender    *net.UDPConn
	receivers []*net.UDPConn
}

// Need is something that weir needs of the kernel, with the rule that tests it.
type Need struct {
	Name string
	Rule ruleset.Rule // it matches the Need's packet
	// answer is true if the Need's packet is the answer to one that passes. drops is true if it must not arrive.
	answer, drops bool
}

var loopback = [len(conf.Families)]netip.Addr{
	conf.IPv4: netip.MustParseAddr("127.0.0.1"), conf.IPv6: netip.IPv6Loopback(),
}

// New opens the Trial's sockets in the network namespace of the thread. The caller closes it.
func New(f conf.Family) (*Trial, error) {
	t := &Trial{Family: f}
	var err error
	if t.sender, err = listen(f); err != nil {
		return nil, err
	}
	addr := loopback[f]
	host := ruleset.Element{Prefix: netip.PrefixFrom(addr, addr.BitLen())}
	set := func(suffix string, kind ruleset.SetKind, elements ...ruleset.Element) string {
		s := ruleset.Set{Name: f.Set(conf.TrialSet + "-" + suffix), Kind: kind, Family: f, Role: ruleset.Checked}
		if kind == ruleset.Ports {
			s.Family = conf.IPv4
		}
		var entries []ruleset.Entry
		for _, e := range elements {
			entries = append(entries, ruleset.Entry{Element: e, Comment: "weir: a trial"})
		}
		s.Entries = ruleset.EntriesOf(entries...)
		t.Sets = append(t.Sets, s)
		return s.Name
	}
	in := func(name string, by ruleset.Part) ruleset.Rule {
		return ruleset.Rule{Sets: []ruleset.SetMatch{{Name: name, By: by}}}
	}
	addresses := set("a", ruleset.Addresses, host)
	not := in(set("e", ruleset.Addresses), ruleset.Source)
	not.Sets[0].Not = true
	linked := host
	linked.Link = "lo"
	networks := set("n", ruleset.Networks, ruleset.Element{Prefix: netip.PrefixFrom(addr, 8).Masked()})

	t.add(Need{Name: "rules that drop packets", drops: true})
	t.add(Need{Name: "rules with ports"})
	t.add(Need{Name: "rules with links", Rule: ruleset.Rule{In: "lo"}})
	t.add(Need{Name: "rules with comments", Rule: ruleset.Rule{Comment: "weir: a trial"}})
	t.add(Need{Name: "sets of addresses", Rule: in(addresses, ruleset.Source)})
	t.add(Need{Name: "rules that ask for addresses outside of a set", Rule: not})
	t.add(Need{Name: "sets of networks", Rule: in(networks, ruleset.Destination)})
	t.add(Need{Name: "sets of addresses with links", Rule: in(set("l", ruleset.AddressLinks, linked), ruleset.SourceLink)})
	t.add(Need{Name: "the address translation of connections", Rule: ruleset.Rule{Track: ruleset.Untranslated}})
	t.add(Need{Name: "connection tracking with labels", Rule: ruleset.Rule{Track: ruleset.Established}, answer: true})
	if err := t.listen(); err != nil {
		return nil, errors.Join(err, t.Close())
	}
	// These rules and sets contain the ports at which the packets arrive.
	i := t.add(Need{Name: "lists of ports"})
	j := t.add(Need{Name: "sets of ports"})
	k := t.add(Need{Name: "sets of addresses with ports"})
	if err := t.listen(); err != nil {
		return nil, errors.Join(err, t.Close())
	}
	t.Needs[i].Rule.Ports = append(t.Needs[i].Rule.Ports, ruleset.PortRange{First: 1, Last: 2}, ruleset.PortRange{
		First: 7, Last: 7,
	})
	t.Needs[j].Rule.Sets = in(set("p", ruleset.Ports, ruleset.Element{Port: t.port(j)}), ruleset.DestinationPort).Sets
	pair := host
	pair.Proto, pair.Port = ruleset.UDP, t.port(k)
	t.Needs[k].Rule.Sets = in(set("b", ruleset.AddressPorts, pair), ruleset.DestinationPair).Sets

	for _, track := range []ruleset.Track{ruleset.Related, ruleset.Cut, ruleset.First} {
		t.Unused = append(t.Unused, Need{
			Name: "rules with the state " + string(track) + " of connections",
			Rule: ruleset.Rule{Track: track},
		})
	}
	t.Unused = append(t.Unused, Need{
		Name: "rules with TCP's flags",
		Rule: ruleset.Rule{Proto: ruleset.TCP, Track: ruleset.Midstream},
	})
	slices.SortFunc(t.Sets, func(a, b ruleset.Set) int { return strings.Compare(a.Name, b.Name) })
	return t, nil
}

func (t *Trial) add(n Need) int {
	t.Needs = append(t.Needs, n)
	return len(t.Needs) - 1
}

// listen opens a socket for each Need that has none. It puts the destination port of the Need's packet into the
// Need's rule.
func (t *Trial) listen() error {
	for i := len(t.receivers); i < len(t.Needs); i++ {
		r, err := listen(t.Family)
		if err != nil {
			return err
		}
		t.receivers = append(t.receivers, r)
		n := &t.Needs[i]
		n.Rule.Proto, n.Rule.Action = ruleset.UDP, ruleset.Return
		if n.drops {
			n.Rule.Action = ruleset.Drop
		}
		port := t.port(i)
		if n.answer {
			port = portOf(t.sender)
		}
		n.Rule.Ports = []ruleset.PortRange{{First: port, Last: port}}
	}
	return nil
}

func listen(f conf.Family) (*net.UDPConn, error) {
	c, err := net.ListenUDP("udp", net.UDPAddrFromAddrPort(netip.AddrPortFrom(loopback[f], 0)))
	if err != nil {
		return nil, fmt.Errorf("open a socket for a trial: %w", err)
	}
	return c, nil
}

func portOf(c *net.UDPConn) uint16 { return c.LocalAddr().(*net.UDPAddr).AddrPort().Port() }

func (t *Trial) port(need int) uint16 { return portOf(t.receivers[need]) }

func (t *Trial) Close() error {
	err := t.sender.Close()
	for _, r := range t.receivers {
		err = errors.Join(err, r.Close())
	}
	return err
}

// Rules returns the rules of the trial's chain: the examples, and after them one rule for each Need, which drops
// the Need's packet.
func (t *Trial) Rules() (all []ruleset.Rule) {
	all = t.Examples()
	for i := range t.Needs {
		port := t.Needs[i].Rule.Ports[0]
		all = append(all, ruleset.Rule{Proto: ruleset.UDP, Ports: []ruleset.PortRange{port}, Action: ruleset.Drop})
	}
	return all
}

// Examples returns the rules of Needs and of Unused. It gives those of Unused a link that doesn't exist, so that
// no packet matches them.
func (t *Trial) Examples() (all []ruleset.Rule) {
	for _, n := range t.Needs {
		all = append(all, n.Rule)
	}
	never := ruleset.Rule{Proto: ruleset.UDP, Src: netip.PrefixFrom(loopback[t.Family], loopback[t.Family].BitLen())}
	for _, n := range t.Unused {
		r := n.Rule
		r.Src, r.In = never.Src, "weir-none"
		if r.Action == "" {
			r.Action = ruleset.Return
		}
		all = append(all, r)
	}
	return all
}

// arrivesWithin is how long Wrong waits for packets that should arrive. They arrive within the system call that sends
// them, unless the processor is very busy.
const arrivesWithin = 200 * time.Millisecond

// Wrong sends the packets, and returns the needs whose rules don't do what they should. The chain must be in the
// kernel. If not even the packet of the plain rule with a port arrives, Wrong returns an error: other programs
// may drop the packets.
func (t *Trial) Wrong() (wrong []Need, err error) {
	deadline := time.Now().Add(arrivesWithin)
	for i, n := range t.Needs {
		to := t.receivers[i].LocalAddr().(*net.UDPAddr).AddrPort()
		if _, err := t.sender.WriteToUDPAddrPort([]byte("x"), to); err != nil {
			return nil, fmt.Errorf("send a packet for a trial: %w", err)
		}
		from := t.receivers[i]
		if n.answer { // its rule is for the answer, so the packet itself passes all rules
			if !arrives(t.receivers[i], deadline) {
				return nil, errOthers
			}
			if _, err := from.WriteToUDPAddrPort([]byte("x"), t.sender.LocalAddr().(*net.UDPAddr).AddrPort()); err != nil {
				return nil, fmt.Errorf("send a packet for a trial: %w", err)
			}
		}
	}
	for i, n := range t.Needs {
		at := t.receivers[i]
		if n.answer {
			at = t.sender
		}
		if n.drops {
			continue
		}
		if !arrives(at, deadline) {
			wrong = append(wrong, n)
		}
	}
	for i, n := range t.Needs { // the other packets, which were sent later, have arrived by now
		if n.drops && arrives(t.receivers[i], time.Time{}) {
			wrong = append(wrong, n)
		}
	}
	if slices.ContainsFunc(wrong, func(n Need) bool { return n.Name == t.Needs[1].Name }) {
		return nil, errOthers
	}
	return wrong, nil
}

var errOthers = errors.New("packets for trials don't arrive over the loopback link, whatever the rules are")

func arrives(at *net.UDPConn, deadline time.Time) bool {
	if least := time.Now().Add(time.Millisecond); deadline.Before(least) { // else not even a waiting packet is read
		deadline = least
	}
	if at.SetReadDeadline(deadline) != nil {
		return false
	}
	n, _, err := at.ReadFromUDPAddrPort(make([]byte, 8))
	return err == nil && n > 0
}

// Apart calls do in a new network namespace, which the kernel removes afterwards with all that is in it. Without the
// right to make one, as in the agent's container, it calls do in the node's own.
//
// Equivalent to: unshare --net sh -c "ip link set lo up; …"
func Apart(do func()) {
	runtime.LockOSThread()
	own, err := netns.Get()
	if err != nil {
		runtime.UnlockOSThread()
		do()
		return
	}
	defer func() { _ = own.Close() }()
	scratch, err := netns.New()
	if err == nil {
		var lo netlink.Link
		if lo, err = netlink.LinkByName("lo"); err == nil {
			err = netlink.LinkSetUp(lo)
		}
		if err == nil {
			do()
		}
		err = errors.Join(err, scratch.Close())
	}
	if netns.Set(own) == nil {
		runtime.UnlockOSThread() // otherwise the thread ends with the goroutine
	}
	if err != nil {
		do()
	}
}

// Families returns the families that weir may need on this node. Without an IPv6 address of its own, the node can have
// no pods with IPv6.
func Families() []conf.Family {
	addrs, err := net.InterfaceAddrs()
	six := err != nil || slices.ContainsFunc(addrs, func(a net.Addr) bool {
		ip, ok := a.(*net.IPNet)
		return ok && ip.IP.To4() == nil && ip.IP.IsGlobalUnicast()
	})
	if _, err := os.Stat("/proc/sys/net/ipv6"); err != nil || !six {
		return conf.Families[:1]
	}
	return conf.Families[:]
}
