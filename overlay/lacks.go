package overlay

import (
	"fmt"
	"net/netip"
	"slices"

	"golang.org/x/sys/unix"

	"github.com/weir-net/weir/bridge"
	"github.com/weir-net/weir/conf"
)

// Lack is one thing that a plan has and the kernel lacks.
type Lack struct {
	// Was describes what is missing or wrong.
	Was string
	// Command is the shell command that makes or corrects it.
	Command string
}

// Lacks returns what the kernel lacks of the plan, according to what was observed. If the VXLAN device is missing,
// Lacks returns only the device. It returns an error if something couldn't be read.
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
		add(fmt.Sprintf("%s has MTU %d, not %d", conf.Tunnel, tunnel.MTU, p.TunnelMTU),
			"ip link set %s mtu %d", conf.Tunnel, p.TunnelMTU)
	}
	for _, gw := range p.Gateways {
		if tunnelled && !slices.Contains(o.Addresses[tunnel.Index], netip.PrefixFrom(gw, gw.BitLen())) {
			add(fmt.Sprintf("%s lacks the address %s", conf.Tunnel, gw), "ip addr replace %s dev %s", gw, conf.Tunnel)
		}
	}
	for _, remote := range p.Remotes {
		link := 0 // 0 means any link
		if !remote.Direct {
			link = tunnel.Index
			all = append(all, remote.missingIn(o, tunnel.Index)...)
		}
		has := func(r bridge.RouteSeen) bool {
			return r.Dst == remote.Network && r.Protocol == conf.RouteProtocol && r.Table == unix.RT_TABLE_MAIN &&
				(link == 0 || r.Link == link)
		}
		if !slices.ContainsFunc(o.Routes, has) {
			was := fmt.Sprintf("the route to %s (node %s) is missing", remote.Network, remote.Node)
			if remote.Direct {
				add(was, "ip route replace %s via %s proto %d", remote.Network, remote.Address, conf.RouteProtocol)
			} else {
				add(was, "ip route replace %s via %s dev %s onlink proto %d",
					remote.Network, remote.Via(), conf.Tunnel, conf.RouteProtocol)
			}
		}
	}
	return all, nil
}

// missingIn returns which of the remote's neighbour and forwarding entries the tunnel with that index lacks.
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
