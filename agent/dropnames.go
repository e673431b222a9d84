package agent

import (
	"context"
	"fmt"
	"net/netip"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/vishvananda/netlink"

	"github.com/weir-net/weir/agent/drops"
	"github.com/weir-net/weir/agentapi"
	"github.com/weir-net/weir/conf"
	"github.com/weir-net/weir/netfilter/nflog"
	"github.com/weir-net/weir/policy"
	"github.com/weir-net/weir/policy/ruleset"
)

const (
	// namesWait and stateWait bound how long askLoop waits for the loop, which may be busy with a large change. A report
	// without names is still of use, so namesWait is short. Without the state, connections are left out of audits, so
	// stateWait is longer.
	namesWait   = 300 * time.Millisecond
	stateWait   = 5 * time.Second
	namesAtOnce = 1024
)

// reportDrops turns each line (drops.Line: packets that are counted together) into a drop, which has the names of pods
// and policies. It passes the drops on to metrics, clients, events and the file. It ends when a.drops.lines is closed.
func (a *agent) reportDrops(ctx context.Context) {
	var view dropView
	var audits auditEvaluator
	file := dropFile{path: a.DropsFile, most: maxDropFile}
	defer file.close()
	events := a.newDropEvents()
	if events.to != nil {
		sending, stop := context.WithCancel(ctx)
		defer stop()
		go a.sendDropEvents(sending, events)
	}
	for lines := range a.drops.lines {
		view.load(a.snapshots.target.Load())
		lines = audits.only(ctx, a, &view, lines)
		names := a.names(ctx, view.unknown(lines))
		entries := make([]drops.Entry, len(lines))
		for i, l := range lines {
			entries[i] = drops.Entry{Drop: view.drop(l, names, a.Node.Name), Sender: l.Sender}
			if w, ok := audits.found[i]; ok {
				entries[i].Policies = w.policies
				a.metrics.audits.add(&entries[i], w)
			}
		}
		a.metrics.drops.count(entries)
		a.drops.ring.Add(entries)
		a.drops.hub.Publish(entries)
		events.report(entries, view.of)
		file.write(entries, a.Log)
	}
}

func (a *agent) names(ctx context.Context, addresses []netip.Addr) map[netip.Addr]string {
	if len(addresses) == 0 {
		return nil
	}
	answer := make(chan map[netip.Addr]string, 1)
	ctx, cancel := context.WithTimeout(ctx, namesWait)
	defer cancel()
	names, _ := askLoop(ctx, a, namesWanted{addresses, answer}, answer)
	return names
}

// stateAround returns the pods, namespaces and policies that decide on packets between the addresses. ok is false if
// the loop doesn't answer within stateWait.
func (a *agent) stateAround(ctx context.Context, addresses []netip.Addr) (state policy.State, ok bool) {
	answer := make(chan policy.State, 1)
	ctx, cancel := context.WithTimeout(ctx, stateWait)
	defer cancel()
	return askLoop(ctx, a, stateWanted{addresses, answer}, answer)
}

// askLoop sends the loop a question, and waits for the answer. ok is false if ctx ends first.
func askLoop[T any](ctx context.Context, a *agent, question event, answer <-chan T) (reply T, ok bool) {
	if !a.send(ctx, question) {
		return reply, false
	}
	select { // the loop has taken the question, and answers at once, unless the agent ends
	case reply = <-answer:
		return reply, true
	case <-ctx.Done():
		return reply, false
	}
}

func (c *clusterView) namesOf(addresses []netip.Addr) map[netip.Addr]string {
	names := map[netip.Addr]string{}
	for _, a := range addresses {
		if pods := c.engine.PodsAt(a); pods != "" {
			names[a] = pods
		}
	}
	return names
}

type dropView struct {
	of *snapshot
	// pods has the names of this node's pods, and nodes the names of Node objects, each by address.
	pods, nodes map[netip.Addr]string
	chains      map[string]*ruleset.Class // one class of each chain, by the chain's name
	shared      map[string]bool           // true if several classes share the chain
	classes     map[podSide]*ruleset.Class
	ports       map[uint32]string // the pods that podBehind has looked up, by the index of the port
	// earlier has policies for lines that come after their chain or pod is gone. The key is the chain's name, or
	// "CHAIN POD" if the chain alone doesn't tell the policies.
	earlier map[string][]string
	lately  map[netip.Addr]latePod
}

// latePod has the pod's name from the last reported line about an address, and the time of that report.
type latePod struct {
	name string
	at   time.Time
}

const (
	// lateFor is the time for which a pod that has ended is still named. A line about its last packets comes a second
	// after the packets, and a busy agent needs more time.
	lateFor = 10 * time.Second
	maxLate = 1024
)

// podAt returns the name of the pod with the address. The parameter pod is the name that is known now. If pod is "",
// the pod may have ended after it sent packets. Then podAt returns the name from a line of the last ten seconds, or ""
// if there is no such line.
func (v *dropView) podAt(a netip.Addr, pod string) string {
	now := time.Now()
	if pod == "" {
		if late, ok := v.lately[a]; ok && now.Sub(late.at) < lateFor {
			return late.name
		}
		return ""
	}
	if len(v.lately) >= maxLate || v.lately == nil {
		v.lately = map[netip.Addr]latePod{}
	}
	v.lately[a] = latePod{pod, now}
	return pod
}

type podSide struct {
	ruleset.Direction
	pod string
}

const maxEarlier = 256

// load fills the view from the snapshot. It keeps the policies of chains of earlier snapshots, because lines
// (drops.Line) about packets that these chains dropped may still come.
func (v *dropView) load(s *snapshot) {
	if v.of == s {
		return
	}
	if len(v.earlier) >= maxEarlier || v.earlier == nil {
		v.earlier = map[string][]string{}
	}
	for chain, c := range v.chains {
		if !v.shared[chain] && len(v.earlier) < maxEarlier {
			v.earlier[chain] = c.Policies
		}
	}
	if v.of == nil || !v.of.sharesNodes(s) {
		v.nodes = map[netip.Addr]string{}
		for _, n := range s.nodes {
			for _, a := range n.Addresses {
				v.nodes[a] = n.Name
			}
			for _, p := range n.PodCIDRs { // the node's addresses on the tunnel and on the bridge
				v.nodes[p.Addr()], v.nodes[p.Addr().Next()] = n.Name, n.Name
			}
		}
	}
	v.of, v.pods, v.ports = s, map[netip.Addr]string{}, map[uint32]string{}
	v.chains, v.shared, v.classes = map[string]*ruleset.Class{}, map[string]bool{}, map[podSide]*ruleset.Class{}
	for _, e := range s.endpoints {
		for _, a := range e.Addresses {
			v.pods[a.Addr] = e.Pod.String()
		}
	}
	none := strings.ToUpper(conf.NoneClass)
	for i := range s.ruleset.Classes {
		c := &s.ruleset.Classes[i]
		v.shared[c.Chain] = c.Chain == conf.IngressClassChains+none || c.Chain == conf.EgressClassChains+none
		v.chains[c.Chain] = c
		for _, p := range c.Pods {
			v.classes[podSide{c.Direction, p}] = c
		}
	}
}

func (v *dropView) unknown(lines []drops.Line) []netip.Addr {
	all := slices.DeleteFunc(addressesOf(lines), func(a netip.Addr) bool { return v.pods[a] != "" || v.nodes[a] != "" })
	return all[:min(len(all), namesAtOnce)]
}

func (v *dropView) drop(l drops.Line, names map[netip.Addr]string, node string) *agentapi.Drop {
	d := &agentapi.Drop{
		Kind: l.Kind, Time: l.Time, Count: l.Count, Node: node, Reason: l.Reason, Direction: string(l.Direction),
		Chain: l.Chain, Packet: l.Packet,
		Source:      agentapi.DropEnd{Address: l.Flow.Source(), Port: l.Flow.SrcPort},
		Destination: agentapi.DropEnd{Address: l.Flow.Destination(), Port: l.Flow.DstPort},
	}
	// With these reasons, a packet has the addresses of its real sender and receiver. With any other reason, the sender
	// may have forged the packet's address, so the name from an earlier line about this address may be wrong.
	between := slices.Contains([]string{agentapi.ByPolicy, agentapi.ByAudit, agentapi.ByClosed}, l.Reason)
	for _, end := range [...]*agentapi.DropEnd{&d.Source, &d.Destination} {
		if !end.Address.IsValid() || end.Address.IsUnspecified() {
			*end = agentapi.DropEnd{Port: end.Port}
			continue
		}
		end.Pod, end.Node = v.pods[end.Address], v.nodes[end.Address]
		if end.Pod == "" {
			end.Pod = names[end.Address]
		}
		if between && end.Node == "" {
			end.Pod = v.podAt(end.Address, end.Pod)
		}
	}
	if l.Port != 0 {
		d.Source.Pod, d.Source.Node = v.podBehind(l.Port), ""
	}
	if l.Kind == agentapi.DropShown && l.Flow.Source().IsValid() {
		d.Protocol = protocolName(l.Flow.Proto)
	}
	if l.Flow.ICMP() {
		d.ICMP = "type " + strconv.Itoa(int(l.Flow.Type)) + " code " + strconv.Itoa(int(l.Flow.Code))
	}
	switch l.Reason {
	case agentapi.ByPolicy:
		local, _ := d.Local()
		d.Policies = v.policies(l.Direction, l.Chain, local.Pod)
	case agentapi.ByCut, agentapi.ByMidstream, agentapi.ByWrongLink:
		d.Direction = v.direction(l)
	}
	d.Detail = v.detail(l, d)
	return d
}

// direction returns the direction of packets that a rule for both directions dropped. It returns egress if the sender
// is a pod of this node, or else ingress if the receiver is a pod of this node. In all other cases it returns "".
func (v *dropView) direction(l drops.Line) string {
	switch {
	case l.Reason != agentapi.ByWrongLink && v.pods[l.Flow.Source()] != "": // with ByWrongLink, the source may be forged
		return string(ruleset.Egress)
	case v.pods[l.Flow.Destination()] != "":
		return string(ruleset.Ingress)
	}
	return ""
}

func (v *dropView) detail(l drops.Line, d *agentapi.Drop) string {
	switch source := l.Flow.Source(); {
	case l.Kind != agentapi.DropShown:
	case l.Reason == agentapi.ByTunnel:
		if inner, ok := nflog.InTunnel(l.Flow.EtherType, l.Packet); ok {
			return fmt.Sprintf("inside is a packet from %s to %s", inner.Source(), inner.Destination())
		}
	case l.Reason != agentapi.ByGuard:
	case !source.IsValid():
		return fmt.Sprintf("EtherType 0x%04x", l.Flow.EtherType)
	case d.Source.Pod != "" && v.pods[source] == d.Source.Pod:
		return "the address is the pod's, so the MAC or the link is not"
	case v.pods[source] != "":
		return "the address is that of " + v.pods[source]
	}
	return ""
}

// podBehind returns the pod at the port with this index, or "" if there is no such pod.
//
// Equivalent to: ip -o link | grep ^INDEX:, and a look at weirctl pods
func (v *dropView) podBehind(index uint32) string {
	if pod, ok := v.ports[index]; ok {
		return pod
	}
	pod := ""
	if link, err := netlink.LinkByIndex(int(index)); err == nil {
		for _, e := range v.of.endpoints {
			if e.HostIf == link.Attrs().Name {
				pod = e.Pod.String()
			}
		}
	}
	v.ports[index] = pod
	return pod
}

// policies returns the policies of the chain's class, even if only an earlier snapshot has the chain. If several
// classes share the chain, or no snapshot has the chain, policies returns the policies that isolate the pod now. If the
// pod has ended, it returns the policies of an earlier line about the pod and the chain.
func (v *dropView) policies(d ruleset.Direction, chain, pod string) []string {
	if c := v.chains[chain]; c != nil && !v.shared[chain] {
		return c.Policies
	}
	if all, ok := v.earlier[chain]; ok {
		return all
	}
	if c := v.classes[podSide{d, pod}]; c != nil {
		if len(v.earlier) < maxEarlier {
			v.earlier[chain+" "+pod] = c.Policies
		}
		return c.Policies
	}
	return v.earlier[chain+" "+pod]
}

// protocolNames has the names in /etc/protocols of protocols that pods are likely to send.
var protocolNames = map[uint8]string{
	1: "icmp", 2: "igmp", 4: "ipencap", 6: "tcp", 17: "udp", 33: "dccp", 41: "ipv6", 46: "rsvp", 47: "gre", 50: "esp",
	51: "ah", 58: "icmpv6", 88: "eigrp", 89: "ospf", 97: "etherip", 103: "pim", 108: "ipcomp", 112: "vrrp", 115: "l2tp",
	132: "sctp", 136: "udplite", 137: "mpls-in-ip",
}

func protocolName(number uint8) string {
	if name, ok := protocolNames[number]; ok {
		return name
	}
	return strconv.Itoa(int(number))
}
