package overlay

import (
	"fmt"
	"net/netip"
	"slices"

	"golang.org/x/sys/unix"

	"github.com/weir-net/weir/bridge"
	"github.com/weir-net/weir/conf"
)

// Lack is one thing of a plan that the kernel lacks.
type Lack struct {
	Was string
	// Command is the shell command that makes it.
	Command string
}

// Lacks says what of the plan the kernel was found to lack. Without its device no more than that is said.
func (p Plan) Lacks(o *bridge.Observed) ([]Lack, error) {
	if err := o.ReadError(); err != nil {
		return nil, err
	}
	if !p.NodeAddress.IsValid() {
		return nil, nil
	}
	var all []Lack
	add := func(was, command string, args ...any) {
		all = append(all, Lack{was, fmt.Sprintf(command, args...)})
	}
	tunnel, ok := o.Links[conf.Tunnel]
	tunnelled := slices.ContainsFunc(p.Remotes, func(p Remote) bool { return !p.Direct })
	switch {
	case tunnelled && !ok:
		add(conf.Tunnel+" isn't there", "ip link add %s type vxlan", conf.Tunnel)
		return all, nil
	case tunnelled && !tunnel.Up:
		add(conf.Tunnel+" is down", "ip link set %s up", conf.Tunnel)
	}
	if tunnelled && p.TunnelMTU != 0 && tunnel.MTU != p.TunnelMTU {
		add(fmt.Sprintf("%s has MTU %d, not %d", conf.Tunnel, tunnel.MTU, p.TunnelMTU), "ip link set %s mtu %d", conf.Tunnel, p.TunnelMTU)
	}
	for _, gw := range p.Gateways {
		if tunnelled && !slices.Contains(o.Addresses[tunnel.Index], netip.PrefixFrom(gw, gw.BitLen())) {
			add(fmt.Sprintf("%s lacks the address %s", conf.Tunnel, gw), "ip addr replace %s dev %s", gw, conf.Tunnel)
		}
	}
	for _, peer := range p.Remotes {
		link := 0 // any
		if !peer.Direct {
			link = tunnel.Index
			all = append(all, peer.missingIn(o, tunnel.Index)...)
		}
		has := func(r bridge.RouteSeen) bool {
			return r.Dst == peer.Network && r.Protocol == conf.RouteProtocol && r.Table == unix.RT_TABLE_MAIN && (link == 0 || r.Link == link)
		}
		if !slices.ContainsFunc(o.Routes, has) {
			was := fmt.Sprintf("the route to %s (node %s) is missing", peer.Network, peer.Node)
			if peer.Direct {
				add(was, "ip route replace %s via %s proto %d", peer.Network, peer.Address, conf.RouteProtocol)
			} else {
				add(was, "ip route replace %s via %s dev %s onlink proto %d", peer.Network, peer.Via(), conf.Tunnel, conf.RouteProtocol)
			}
		}
	}
	return all, nil
}

// lacks says what the tunnel lacks of the peer.
func (p Remote) missingIn(o *bridge.Observed, tunnel int) []Lack {
	var all []Lack
	mac := MAC(p.Address).String()
	if have := o.Neighbours[tunnel][p.Via()]; !have.Permanent || have.MAC != mac {
		all = append(all, Lack{
			fmt.Sprintf("the neighbour %s of %s (node %s) is missing", p.Via(), conf.Tunnel, p.Node),
			fmt.Sprintf("ip neigh replace %s lladdr %s dev %s nud permanent", p.Via(), mac, conf.Tunnel),
		})
	}
	if !o.Forwarding[tunnel][mac+" "+p.Address.String()] {
		all = append(all, Lack{
			fmt.Sprintf("the forwarding entry of %s for node %s is missing", conf.Tunnel, p.Node),
			fmt.Sprintf("bridge fdb replace %s dev %s dst %s self permanent", mac, conf.Tunnel, p.Address),
		})
	}
	return all
}
