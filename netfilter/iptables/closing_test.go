package iptables

import (
	"strings"
	"testing"

	"github.com/weir-net/weir/conf"
	"github.com/weir-net/weir/netfilter"
	"github.com/weir-net/weir/policy"
	"github.com/weir-net/weir/policy/policytest"
	"github.com/weir-net/weir/policy/ruleset"
	"github.com/weir-net/weir/test/nodetest"
)

// TestClosesWithoutThePodsSet: another program flushes weir's chains, and empties or destroys weir-pods, the set of all
// pods. The kernel refuses one of weir's sets, so Apply fails. Then no packet of a pod passes, even if another plugin
// made the pod's link.
func TestClosesWithoutThePodsSet(t *testing.T) {
	if !nodetest.Isolated(t) {
		return
	}
	s := routedPods(1, 2)
	s.Endpoints[1].Chained, s.Endpoints[1].HostIf = false, "weirp1"
	for _, e := range s.Endpoints {
		s.Pods = append(s.Pods, policy.Pod{Namespace: e.Pod.Namespace, Name: e.Pod.Name})
	}
	want := policy.Compile(s)
	for _, how := range []struct{ pods, refused string }{
		{"ipset flush weir-pods; ipset flush weir-pods6", "weir-networks"},
		{"ipset destroy weir-pods; ipset destroy weir-pods6", "weir-chained"},
		{"ipset destroy weir-pods; ipset destroy weir-pods6; ipset create weir-pods hash:net; " +
			"iptables -A INPUT -m set --match-set weir-pods src", "weir-pods6"},
	} {
		d := driver(t, NFT)
		mustApply(t, d, want, netfilter.All)
		// nf_tables frees deleted rules only some time later. Until then, the sets of these rules count as in use.
		nodetest.Run(t, "sh", "-ec", strings.ReplaceAll(`for t in mangle nat filter; do
			for i in iptables ip6tables; do $i -t $t -F; done; done
			destroy() { for i in $(seq 600); do
				ipset -q list -name $1 >/dev/null && ! ipset -q destroy $1 || return 0
				sleep 0.1; done; ipset destroy $1; }
			`+strings.ReplaceAll(how.pods, "ipset destroy", "destroy")+`
			destroy REFUSED
			ipset create REFUSED bitmap:port range 0-9
			iptables -A INPUT -p tcp -m set --match-set REFUSED src`, "REFUSED", how.refused))
		if _, err := d.Apply(t.Context(), want, netfilter.All); err == nil {
			t.Fatalf("%s: the kernel refuses no set", how.pods)
		}
		now := driver(t, NFT)
		if err := now.Read(t.Context()); err != nil {
			t.Fatal(err)
		}
		m := newModel(t)
		m.state = *now.have
		for f := range conf.Families {
			for i, link := range []string{"veth001", conf.Bridge} {
				pod, outside := s.Endpoints[i].Addresses[f].Addr, policytest.Of[f].Outside
				for _, p := range []ruleset.Packet{
					{Src: pod, Dst: outside, In: link, Out: "eth0"},
					{Src: outside, Dst: pod, In: "eth0", Out: link},
					{Src: pod, Dst: policytest.Of[f].Node, In: link},
				} {
					if p.Proto, p.Port = ruleset.TCP, 80; m.allows(p) {
						t.Errorf("%s; %s is refused: %+v passes", how.pods, how.refused, p)
					}
				}
			}
		}
		nodetest.Run(t, "sh", "-c", "iptables -F INPUT; ipset destroy "+how.refused+"; ipset destroy weir-pods || true")
		soon(t, func() error {
			_, err := now.Apply(t.Context(), want, netfilter.All)
			return err
		})
	}
}
