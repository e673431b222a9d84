package bridge

import (
	"errors"
	"fmt"
	"net"
	"net/netip"
	"strings"

	"github.com/containernetworking/plugins/pkg/netlinksafe"
	"github.com/vishvananda/netlink/nl"
	"github.com/vishvananda/netns"
	"golang.org/x/sys/unix"

	"github.com/weir-net/weir/netfilter/batch"
)

// portOnBridge is the property that a pod's link is a port of weir0 with the flags in portFlags. If Up is true, the
// link must be up. The link's MTU must not be smaller than the MTU of the pod's end. Check accepts a missing link,
// because the kernel deletes the link together with the pod's network namespace.
type portOnBridge struct {
	HostIf string
	Up     bool
}

func (p portOnBridge) Kind() Kind { return KindPort }

func (p portOnBridge) String() string {
	up := ""
	if p.Up {
		up = "up, "
	}
	return fmt.Sprintf("%s is %san isolated port of %s, and accepts the pod's frames (state forwarding)",
		p.HostIf, up, Name)
}

// Command returns the command that restores what Check compares, except the MTU and the port's state.
func (p portOnBridge) Command() string {
	up := ""
	if p.Up {
		up = " up"
	}
	return fmt.Sprintf("ip link set %[1]s master %[2]s%[3]s; bridge link set dev %[1]s "+
		"isolated on learning off flood off mcast_flood off bcast_flood off; "+
		"ip link set %[1]s type bridge_slave group_fwd_mask 0xfffd", p.HostIf, Name, up)
}

// forwardingState means that a port passes packets on (BR_STATE_FORWARDING, include/uapi/linux/if_bridge.h).
const forwardingState = 3

var portFlags = []struct {
	kind  uint16
	name  string
	value uint16
}{
	{nl.IFLA_BRPORT_ISOLATED, "isolated", 1},
	{nl.IFLA_BRPORT_LEARNING, "learning", 0},
	{nl.IFLA_BRPORT_UNICAST_FLOOD, "flood", 0},
	{nl.IFLA_BRPORT_MCAST_FLOOD, "mcast_flood", 0},
	{nl.IFLA_BRPORT_BCAST_FLOOD, "bcast_flood", 0},
	{nl.IFLA_BRPORT_GROUP_FWD_MASK, "group_fwd_mask", linkLocalMACs},
}

// Check names everything that is wrong with the port. It returns nil if the port's link or weir0 is missing:
// weirBridge.Check reports that weir0 is missing.
func (p portOnBridge) Check(o *Observed) error {
	port, ok, err := o.link(p.HostIf)
	if err != nil || !ok {
		return err
	}
	br, ok := o.Links[Name]
	if !ok {
		return nil
	}
	var wrong []string
	if p.Up && !port.Up {
		wrong = append(wrong, "is down")
	}
	if port.Master != br.Index {
		wrong = append(wrong, "is not on "+Name)
	} else {
		for _, f := range portFlags {
			if port.Port[f.kind] != f.value {
				wrong = append(wrong, fmt.Sprintf("has %s %d instead of %d", f.name, port.Port[f.kind], f.value))
			}
		}
		if port.Running && br.Up && port.Port[nl.IFLA_BRPORT_STATE] != forwardingState {
			wrong = append(wrong, fmt.Sprintf("passes nothing on (its state is %d)", port.Port[nl.IFLA_BRPORT_STATE]))
		}
	}
	mtu, err := o.PodMTU(port)
	if port.MTU < mtu { // the link would drop larger packets of the pod
		wrong = append(wrong, fmt.Sprintf("has MTU %d, and its other end %d", port.MTU, mtu))
	}
	if len(wrong) > 0 {
		return fmt.Errorf("port %s %s", p.HostIf, strings.Join(wrong, ", "))
	}
	if err != nil {
		return fmt.Errorf("MTU of the other end of %s: %w: %w", p.HostIf, errUnknown, err)
	}
	return nil
}

func (p portOnBridge) restore(h netlinksafe.Handle, o *Observed) error {
	port := o.Links[p.HostIf]
	br, err := h.LinkByName(Name)
	if err != nil {
		return fmt.Errorf("look up %s: %w", Name, err)
	}
	var fix batch.Batch
	if port.Master != br.Attrs().Index { // the link stays down until the port is isolated
		fix.Add(linkDown(port.Index), "set %s down", p.HostIf)
		setMaster := request(unix.RTM_SETLINK, 0, ifInfo(unix.AF_UNSPEC, port.Index),
			number(unix.IFLA_MASTER, br.Attrs().Index))
		fix.Add(setMaster, "make %s a port of %s", p.HostIf, Name)
	}
	fix.Add(isolate(port.Index), "isolate port %s", p.HostIf)
	if mtu, err := o.PodMTU(port); err == nil && port.MTU < mtu {
		fix.Add(setMTU(port.Index, mtu), "give %s the MTU %d", p.HostIf, mtu)
	}
	if p.Up || port.Up { // a port that was up must not stay down after this repair
		fix.Add(linkUp(port.Index, ""), "set %s up", p.HostIf)
	}
	_, err = fix.Do(unix.NETLINK_ROUTE, netns.None())
	if err == nil && p.Up && port.Running && port.Port[nl.IFLA_BRPORT_STATE] != forwardingState {
		err = setForwardingState(port)
	}
	return err
}

// setForwardingState lets the bridge forward the port's frames. The kernel refuses the request while the port has no
// carrier.
//
// Equivalent to: bridge link set dev HOSTIF state 3
func setForwardingState(port Link) error {
	flags := attr(unix.IFLA_PROTINFO|unix.NLA_F_NESTED, nil)
	flags.AddRtAttr(nl.IFLA_BRPORT_STATE, []byte{forwardingState})
	set := request(unix.RTM_SETLINK, 0, ifInfo(unix.AF_BRIDGE, port.Index), flags)
	var fix batch.Batch
	fix.Add(set, "set port %s of %s to forwarding", port.Name, Name)
	_, err := fix.Do(unix.NETLINK_ROUTE, netns.None())
	return err
}

// Equivalent to: ip link set LINK mtu MTU
func setMTU(index, mtu int) *nl.NetlinkRequest {
	return request(unix.RTM_SETLINK, 0, ifInfo(unix.AF_UNSPEC, index), number(unix.IFLA_MTU, mtu))
}

// Equivalent to: ip link set LINK down
func linkDown(index int) *nl.NetlinkRequest {
	m := ifInfo(unix.AF_UNSPEC, index)
	m.Change = unix.IFF_UP
	return request(unix.RTM_SETLINK, 0, m)
}

// forwardingEntry is the property that the bridge has a static forwarding entry for a pod's MAC.
type forwardingEntry struct {
	HostIf string
	MAC    net.HardwareAddr
}

// Kind is KindForwarding and not KindNeighbour, although netlink has the same messages for both kinds of entries.
func (f forwardingEntry) Kind() Kind { return KindForwarding }

func (f forwardingEntry) String() string {
	return fmt.Sprintf("%s forwards frames to MAC %s to port %s", Name, f.MAC, f.HostIf)
}

func (f forwardingEntry) Command() string {
	return fmt.Sprintf("bridge fdb replace %s dev %s master static", f.MAC, f.HostIf)
}

// Check looks for the entry. It returns nil if the port's link or weir0 is missing.
func (f forwardingEntry) Check(o *Observed) error {
	port, ok, err := o.link(f.HostIf, o.forwarding)
	if err != nil || !ok || o.isMissing(Name) {
		return err
	}
	if !o.Forwarding[port.Index][f.MAC.String()] {
		return fmt.Errorf("the static forwarding entry for %s is missing on port %s", f.MAC, f.HostIf)
	}
	return nil
}

func (f forwardingEntry) restore(_ netlinksafe.Handle, o *Observed) error {
	r := addForwarding(o.Links[f.HostIf].Index, f.MAC)
	r.Flags = r.Flags&^unix.NLM_F_EXCL | unix.NLM_F_REPLACE
	var fix batch.Batch
	fix.Add(r, "add forwarding entry %s to %s", f.MAC, f.HostIf)
	_, err := fix.Do(unix.NETLINK_ROUTE, netns.None())
	return err
}

// neighbour is the property that weir0 has a permanent neighbour entry for a pod's address. So the node needs no
// ARP and no neighbour discovery.
type neighbour struct {
	Addr   netip.Addr
	MAC    net.HardwareAddr
	HostIf string // the pod's link on the node; if this link is missing, the entry isn't checked
}

func (n neighbour) Kind() Kind { return KindNeighbour }

func (n neighbour) String() string {
	return fmt.Sprintf("the node knows the MAC %s of %s", n.MAC, n.Addr)
}

func (n neighbour) Command() string {
	return fmt.Sprintf("ip neigh replace %s lladdr %s dev %s nud permanent", n.Addr, n.MAC, Name)
}

// Check looks for the entry. It returns nil if weir0 or the pod's link is missing.
func (n neighbour) Check(o *Observed) error {
	br, ok, err := o.link(Name, o.neighbours)
	if err != nil || !ok || o.isMissing(n.HostIf) {
		return err
	}
	if have := o.Neighbours[br.Index][n.Addr]; !have.Permanent || have.MAC != n.MAC.String() {
		return fmt.Errorf("the permanent neighbour %s with MAC %s is missing on %s", n.Addr, n.MAC, Name)
	}
	return nil
}

func (n neighbour) restore(h netlinksafe.Handle, _ *Observed) error {
	link, err := h.LinkByName(Name)
	if err != nil {
		return fmt.Errorf("look up %s: %w", Name, err)
	}
	var fix batch.Batch
	fix.Add(setNeighbour(link.Attrs().Index, n.Addr, n.MAC), "add neighbour %s to %s", n.Addr, Name)
	_, err = fix.Do(unix.NETLINK_ROUTE, netns.None())
	return err
}

// filteredBridge is the property that packets between ports of another plugin's bridge pass through iptables.
// Otherwise they bypass policy.
type filteredBridge struct{ Name string }

func (b filteredBridge) Kind() Kind { return KindBridge }

func (b filteredBridge) String() string {
	return "iptables checks packets between the ports of bridge " + b.Name
}

// Command returns the command that sets the options. They have no effect without the module br_netfilter.
func (b filteredBridge) Command() string {
	return "ip link set " + b.Name + " type bridge nf_call_iptables 1 nf_call_ip6tables 1"
}

// Check reads the bridge's options. It also returns an error if the module br_netfilter isn't loaded. If the bridge is
// missing, Check returns nil.
func (b filteredBridge) Check(o *Observed) error {
	br, ok, err := o.link(b.Name)
	if err != nil || !ok { // without the bridge, no packets pass between its ports
		return err
	}
	// The bridge has the options even if br_netfilter, which reads them, isn't loaded.
	if _, err := o.Sysctl("net/bridge/bridge-nf-call-iptables"); err != nil {
		return fmt.Errorf("bridge %s passes packets between pods on without iptables (br_netfilter): %w", b.Name, err)
	}
	if !br.filtered() {
		return fmt.Errorf("bridge %s passes packets between pods on without iptables (nf_call_iptables)", b.Name)
	}
	return nil
}

func (b filteredBridge) restore(h netlinksafe.Handle, _ *Observed) error {
	err := EnableBridgeNetfilter(h, b.Name)
	if errors.Is(err, unix.ENODEV) {
		return nil
	}
	return err
}
