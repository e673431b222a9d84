package podcheck

import (
	"net"
	"net/netip"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/weir-net/weir/conf"
	"github.com/weir-net/weir/plugins/weirctl/probe"
)

type attempt struct {
	check Name
	probe.Probe
	// from and to are indexes in run.nodes: from is the client's node, and to is the server's node or the node
	// whose nodePort is tried. to is -1 if the attempt is to a Service's address, a name or the world.
	from, to int
	family   conf.Family
	hasNone  bool // true for the checks DNS and World, whose attempts have no family
	expects  string
	// needs are direct connections (from pod to pod, without a Service) that the attempt depends on. If one of them
	// is broken, the attempt doesn't count.
	needs []direct
}

type direct struct {
	from, to int
	family   conf.Family
}

func hostPort(a netip.Addr, port uint16) string { return netip.AddrPortFrom(a, port).String() }

func (r *run) connections(within time.Duration) (all []attempt) {
	for _, from := range r.works {
		for _, to := range r.works {
			check := Across
			if from == to {
				check = SameNode
			}
			for f, address := range r.addresses[podName(server, to)] {
				if !r.addresses[podName(client, from)][f].IsValid() {
					continue
				}
				all = append(all, attempt{
					check: check, from: from, to: to, family: f, expects: podName(server, to),
					Probe: probe.Probe{Kind: probe.Connect, To: hostPort(address, probe.Port), Within: within},
				})
			}
		}
	}
	return all
}

func (r *run) open(within time.Duration, world string) []attempt {
	all := r.connections(within)
	for _, a := range slices.Clone(all) {
		a.check, a.Kind, a.expects, a.needs = Large, probe.Large, "", []direct{{a.from, a.to, a.family}}
		all = append(all, a)
	}
	if len(r.works) == 0 {
		return nil
	}
	first := r.first() // the node of the Service's only endpoint
	for i, from := range r.works {
		for f, address := range r.service {
			all = append(all, attempt{
				check: Service, from: from, to: -1, family: f, expects: podName(server, first),
				Probe: probe.Probe{Kind: probe.Connect, To: hostPort(address, servicePort), Within: within},
				needs: []direct{{from, first, f}},
			})
			by := r.works[(i+1)%len(r.works)] // the node whose nodePort is tried; its kube-proxy forwards the connection
			if node := r.internal[by][f]; node.IsValid() && r.nodePort != 0 {
				all = append(all, attempt{
					check: NodePort, from: from, to: by, family: f, expects: podName(server, first),
					Probe: probe.Probe{Kind: probe.Connect, To: hostPort(node, r.nodePort), Within: within},
					needs: []direct{{from, first, f}, {by, first, f}},
				})
			}
		}
		all = append(all, attempt{
			check: DNS, from: from, to: -1, hasNone: true, expects: r.clusterIP(),
			Probe: probe.Probe{
				Kind: probe.Resolve, To: strings.Join([]string{serviceName, r.namespace, "svc"}, "."), Within: 2 * within,
			},
		})
		if world != "" {
			all = append(all, attempt{
				check: World, from: from, to: -1, hasNone: true,
				Probe: probe.Probe{Kind: probe.Open, To: world, Within: within},
			})
		}
	}
	return all
}

func (r *run) clusterIP() string {
	for _, f := range conf.Families {
		if a := r.service[f]; a.IsValid() {
			return a.String()
		}
	}
	return ""
}

func (r *run) outcome(a attempt, result tried) Outcome {
	o := Outcome{From: r.nodes[a.from].Node, OK: result.OK, Why: result.Error}
	if result.err != nil {
		o.Why = "the pod can't be asked: " + result.err.Error()
	}
	if a.to >= 0 {
		o.To = r.nodes[a.to].Node
	}
	if !a.hasNone {
		o.Family = a.family.String()
	}
	if result.OK && a.expects != "" && !slices.Contains(strings.Split(result.Answer, ","), a.expects) {
		o.OK, o.Why = false, "the answer is "+result.Answer+" instead of "+a.expects
	}
	return o
}

func validWorld(s string) bool {
	host, port, err := net.SplitHostPort(s)
	number, portErr := strconv.ParseUint(port, 10, 16)
	return err == nil && portErr == nil && host != "" && number > 0
}
