package bridge

import (
	"bytes"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"slices"
	"strings"

	"github.com/containernetworking/plugins/pkg/netlinksafe"
	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netlink/nl"
	"github.com/vishvananda/netns"
	"golang.org/x/sys/unix"

	"github.com/weir-net/weir/netfilter/batch"
)

// weirBridge is the property that weir0 exists, is up, answers ARP, and has the right MAC, MTU and options.
type weirBridge struct {
	// MACs are the MACs that weir0 may have. The repair sets the first.
	MACs []net.HardwareAddr
}

func (b weirBridge) Kind() Kind { return KindBridge }

func (b weirBridge) String() string { return Name + " exists, is up, and forwards its ports' frames" }

var bridgeOptions = []struct {
	kind  uint16
	name  string
	value uint16
}{
	{nl.IFLA_BR_MCAST_SNOOPING, "mcast_snooping", 0},
	{nl.IFLA_BR_STP_STATE, "stp_state", 0},
	{nl.IFLA_BR_VLAN_FILTERING, "vlan_filtering", 0},
}

// Command returns the command that restores all that Check compares, except the MTU. The kernel computes weir0's MTU
// from the MTUs of weir0's ports.
func (b weirBridge) Command() string {
	return fmt.Sprintf("ip link add %[1]s type bridge; ip link set %[1]s address %[2]s arp on up "+
		"type bridge mcast_snooping 0 stp_state 0 vlan_filtering 0", Name, b.MACs[0])
}

// Check returns one error that names everything that is wrong with weir0.
func (b weirBridge) Check(o *Observed) error {
	br, ok, err := o.link(Name)
	if err != nil {
		return err
	}
	if !ok {
		return fmt.Errorf("%s isn't there", Name)
	}
	if br.Kind != "bridge" {
		return fmt.Errorf("%s is a %s, not a bridge: remove or rename it", Name, br.Kind)
	}
	var wrong []string
	if !br.Up { // the carrier isn't checked: weir0 gets its carrier a moment after its first port
		wrong = append(wrong, "is down")
	}
	if br.NoARP {
		wrong = append(wrong, "has arp off")
	}
	if !b.acceptsMAC(o, br) {
		wrong = append(wrong, fmt.Sprintf("has MAC %s, not %s", br.MAC, b.MACs[0]))
	}
	if mtu := portsMTU(o, br); mtu != br.MTU {
		wrong = append(wrong, fmt.Sprintf("has MTU %d, and its ports %d", br.MTU, mtu))
	}
	for _, option := range bridgeOptions {
		if have, ok := br.Bridge[option.kind]; ok && have != option.value {
			wrong = append(wrong, fmt.Sprintf("has %s %d, not %d", option.name, have, option.value))
		}
	}
	if len(wrong) > 0 {
		return fmt.Errorf("%s %s", Name, strings.Join(wrong, ", "))
	}
	return nil
}

// acceptsMAC reports whether weir0's MAC is right: one of b.MACs, or one that the function MAC computes from an address
// of weir0.
func (b weirBridge) acceptsMAC(o *Observed, br Link) bool {
	if slices.ContainsFunc(b.MACs, func(m net.HardwareAddr) bool { return bytes.Equal(m, br.MAC) }) {
		return true
	}
	return slices.ContainsFunc(o.Addresses[br.Index], func(p netip.Prefix) bool {
		return bytes.Equal(MAC(p.Addr()), br.MAC)
	})
}

// portsMTU returns the MTU that weir0 should have. The kernel sets a bridge's MTU to the smallest MTU of the bridge's
// ports (br_mtu_auto_adjust in net/bridge/br_if.c). Without ports, portsMTU returns weir0's present MTU.
func portsMTU(o *Observed, br Link) int {
	least := 0
	for _, l := range o.Links {
		if l.Master == br.Index && (least == 0 || l.MTU < least) {
			least = l.MTU
		}
	}
	if least == 0 {
		return br.MTU
	}
	return least
}

func (b weirBridge) restore(h netlinksafe.Handle, o *Observed) error {
	br, ok := o.Links[Name]
	if !ok {
		link, err := create(h, 0, b.MACs[0])
		if err != nil {
			return err
		}
		br = Link{Index: link.Attrs().Index, MAC: link.Attrs().HardwareAddr, MTU: link.Attrs().MTU}
	}
	if ok && br.Kind != "bridge" {
		return errors.New("another link has its name")
	}
	var fix batch.Batch
	if !b.acceptsMAC(o, br) {
		fix.Add(request(unix.RTM_SETLINK, 0, ifInfo(unix.AF_UNSPEC, br.Index), attr(unix.IFLA_ADDRESS, b.MACs[0])),
			"give %s the MAC %s", Name, b.MACs[0])
	}
	if mtu := portsMTU(o, br); mtu != br.MTU {
		fix.Add(setMTU(br.Index, mtu), "give %s the MTU %d", Name, mtu)
	}
	for _, option := range bridgeOptions {
		if have, ok := br.Bridge[option.kind]; ok && have != option.value {
			fix.Add(setOption(br.Index, int(option.kind), option.value), "set %s %d on %s", option.name, option.value, Name)
		}
	}
	up := ifInfo(unix.AF_UNSPEC, br.Index)
	up.Change, up.Flags = unix.IFF_UP|unix.IFF_NOARP, unix.IFF_UP
	fix.Add(request(unix.RTM_SETLINK, 0, up), "set %s up", Name)
	_, err := fix.Do(unix.NETLINK_ROUTE, netns.None())
	return err
}

// setOption returns a request that sets an option of weir0. stp_state has four bytes, other options have one.
//
// Equivalent to: ip link set weir0 type bridge OPTION VALUE
func setOption(index, option int, value uint16) *nl.NetlinkRequest {
	info := attr(unix.IFLA_LINKINFO, nil)
	info.AddRtAttr(nl.IFLA_INFO_KIND, nl.NonZeroTerminated("bridge"))
	data := []byte{byte(value)}
	if option == nl.IFLA_BR_STP_STATE {
		data = nl.Uint32Attr(uint32(value))
	}
	info.AddRtAttr(nl.IFLA_INFO_DATA, nil).AddRtAttr(option, data)
	return request(unix.RTM_NEWLINK, 0, ifInfo(unix.AF_UNSPEC, index), info)
}

type gatewayAddress struct{ Gateway netip.Prefix }

func (a gatewayAddress) Kind() Kind { return KindAddress }

func (a gatewayAddress) String() string {
	return fmt.Sprintf("%s has the gateway's address %s", Name, bridgeAddress(a.Gateway))
}

// Command returns the command that adds the address. For IPv6 it skips the check for duplicate addresses (nodad).
func (a gatewayAddress) Command() string {
	nodad := ""
	if a.Gateway.Addr().Is6() {
		nodad = " nodad"
	}
	return fmt.Sprintf("ip addr replace %s dev %s%s", bridgeAddress(a.Gateway), Name, nodad)
}

// Check looks for the address. It returns nil if weir0 is missing.
func (a gatewayAddress) Check(o *Observed) error {
	br, ok, err := o.link(Name, o.addresses)
	if err != nil || !ok {
		return err
	}
	if !slices.Contains(o.Addresses[br.Index], bridgeAddress(a.Gateway)) {
		return fmt.Errorf("%s lacks the address %s", Name, bridgeAddress(a.Gateway))
	}
	return nil
}

func (a gatewayAddress) restore(h netlinksafe.Handle, _ *Observed) error {
	link, err := h.LinkByName(Name)
	if err != nil {
		return fmt.Errorf("look up %s: %w", Name, err)
	}
	addr := &netlink.Addr{IPNet: ipNet(bridgeAddress(a.Gateway))}
	if a.Gateway.Addr().Is6() {
		addr.Flags = unix.IFA_F_NODAD
	}
	if err := h.AddrReplace(link, addr); err != nil {
		err = fmt.Errorf("add gateway address %s to %s: %w", bridgeAddress(a.Gateway), Name, err)
		return explainNoIPv6(err, "on the node")
	}
	return nil
}

type routeToBridge struct {
	Dst                          netip.Prefix
	Table, Type, Scope, Protocol int
	Source                       netip.Addr // the source of the node's own packets; if invalid, the kernel chooses it
}

func (r routeToBridge) Kind() Kind { return KindRoute }

func (r routeToBridge) String() string {
	if r.Type == unix.RTN_LOCAL {
		return fmt.Sprintf("the node accepts packets to its address %s", r.Dst.Addr())
	}
	return fmt.Sprintf("the route to %s by %s", r.Dst, Name)
}

// Command returns the command that adds the route behind other routes to the same destination.
func (r routeToBridge) Command() string {
	if r.Type == unix.RTN_LOCAL {
		return fmt.Sprintf("ip route append local %s dev %s table local", r.Dst.Addr(), Name)
	}
	source := ""
	if r.Source.IsValid() {
		source = " src " + r.Source.String()
	}
	return fmt.Sprintf("ip route append %s dev %s%s", r.Dst, Name, source)
}

// Check looks for the route in its table. It returns nil if weir0 is missing. Another route to the same destination may
// come first, for example the route to the bridge of an earlier pod network. The kernel then doesn't use weir's route,
// and Check returns an error.
func (r routeToBridge) Check(o *Observed) error {
	br, ok, err := o.link(Name, o.routes)
	if err != nil || !ok {
		return err
	}
	ahead := -1
	for i, have := range o.Routes { // the kernel lists routes to one destination in the order in which it uses them
		if have.Dst != r.Dst || have.Table != r.Table {
			continue
		}
		// In older kernels, the link of an IPv6 address's local route is lo.
		leads := have.Link == br.Index || r.Type == unix.RTN_LOCAL && r.Dst.Addr().Is6()
		switch {
		case have.Type == r.Type && leads && ahead >= 0:
			return fmt.Errorf("the route to %s by %s isn't used: %w: %s", r.Dst, Name, errAhead, o.whose(o.Routes[ahead]))
		case have.Type == r.Type && leads:
			return nil
		case r.Type != unix.RTN_LOCAL && ahead < 0:
			ahead = i
		}
	}
	if r.Type == unix.RTN_LOCAL && o.Fresh[r.Dst.Addr()] {
		return nil // the kernel makes the local route a moment after the IPv6 address
	}
	if r.Type == unix.RTN_LOCAL {
		return fmt.Errorf("the local route of %s is missing", r.Dst.Addr())
	}
	return fmt.Errorf("the route to %s by %s is missing", r.Dst, Name)
}

// errAhead means that another program's route to the same destination comes before weir's route. restore leaves both
// routes alone, because pods of another network may still need the other program's route.
var errAhead = errors.New("another route to it comes first")

func (o *Observed) whose(r routeSeen) string {
	for name, l := range o.Links {
		if l.Index == r.Link {
			return fmt.Sprintf("it leads to %s, so remove that link or its address", name)
		}
	}
	return "see it with: ip route show " + r.Dst.String()
}

func (r routeToBridge) restore(h netlinksafe.Handle, o *Observed) error {
	if err := r.Check(o); errors.Is(err, errAhead) {
		return err
	}
	link, err := h.LinkByName(Name)
	if err != nil {
		return fmt.Errorf("look up %s: %w", Name, err)
	}
	route := &netlink.Route{
		LinkIndex: link.Attrs().Index, Dst: ipNet(r.Dst), Table: r.Table, Type: r.Type, Scope: netlink.Scope(r.Scope),
		Protocol: netlink.RouteProtocol(r.Protocol),
	}
	if r.Source.IsValid() {
		route.Src = r.Source.AsSlice()
	}
	return appendRoute(h, route)
}

// appendRoute adds a route to weir0. Other programs' routes to the same destination stay.
//
// Equivalent to: ip route append DST dev weir0
func appendRoute(h netlinksafe.Handle, route *netlink.Route) error {
	if err := h.RouteAppend(route); err != nil && !errors.Is(err, unix.EEXIST) {
		return explainNoIPv6(fmt.Errorf("add the route to %s on %s: %w", route.Dst, Name, err), "on the node")
	}
	return nil
}
