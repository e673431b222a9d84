//go:build bench

package bench_test

import (
	"fmt"
	"maps"
	"net/netip"
	"slices"
	"strings"
	"testing"

	"github.com/weir-net/weir/netfilter/iptables"
)

// This file has the packet filters of other programs. They follow public descriptions of these programs' rules, and
// leave out everything else that the programs do. If a real program compares more fields of a packet, it is slower than
// its filter here.

func (w *workload) sets() string {
	var b strings.Builder
	for _, group := range slices.Sorted(maps.Keys(w.groups)) {
		fmt.Fprintf(&b, "create %s hash:ip\n", group)
		for _, a := range w.groups[group] {
			fmt.Fprintf(&b, "add %s %s -exist\n", group, a)
		}
	}
	for i, a := range w.allows {
		if len(a.blocks) > 0 {
			fmt.Fprintf(&b, "create blocks-%d hash:net\n", i)
		}
		for _, block := range a.blocks {
			fmt.Fprintf(&b, "add blocks-%d %s -exist\n", i, block)
		}
	}
	return b.String()
}

func (a allow) matches(i int) (all []string) {
	where := "src"
	if a.egress {
		where = "dst"
	}
	for _, proto := range []string{"tcp", "udp"} {
		match := fmt.Sprintf("-p %s -m set --match-set %%s %s -m multiport --dports %%s", proto, where)
		all = append(all, fmt.Sprintf(match, a.peers, list(a.ports)))
		if len(a.blocks) > 0 {
			all = append(all, fmt.Sprintf(match, fmt.Sprint("blocks-", i), list(a.blockPorts)))
		}
	}
	return all
}

func list(ranges []portRange) string {
	var all []string
	for _, r := range ranges {
		port := fmt.Sprint(r.first)
		if r.last > r.first {
			port += fmt.Sprint(":", r.last)
		}
		all = append(all, port)
	}
	return strings.Join(all, ",")
}

func (w *workload) isolated(egress bool) []string {
	groups := map[string]bool{}
	for _, a := range w.allows {
		if a.egress == egress {
			groups[a.pods] = true
		}
	}
	return slices.Sorted(maps.Keys(groups))
}

// flat returns one list of rules for each direction, like weave-npc. See docs/ipset.md and npc/README.md of
// https://github.com/weaveworks/weave
func (w *workload) flat() text {
	var b strings.Builder
	b.WriteString("*filter\n:NPC - [0:0]\n:NPC-DEFAULT - [0:0]\n:NPC-INGRESS - [0:0]\n:NPC-EGRESS - [0:0]\n" +
		":NPC-EGRESS-DEFAULT - [0:0]\n:NPC-EGRESS-CUSTOM - [0:0]\n:NPC-EGRESS-ACCEPT - [0:0]\n" +
		"-I FORWARD 1 -i weir0 -j NPC-EGRESS\n-I FORWARD 2 -o weir0 -j NPC\n" +
		"-I FORWARD 3 -o weir0 -j ACCEPT\n" +
		"-A NPC -m conntrack --ctstate RELATED,ESTABLISHED -j ACCEPT\n" +
		"-A NPC -m conntrack --ctstate NEW -j NPC-DEFAULT\n-A NPC -m conntrack --ctstate NEW -j NPC-INGRESS\n" +
		"-A NPC -j DROP\n" +
		"-A NPC-EGRESS -m conntrack --ctstate RELATED,ESTABLISHED -j ACCEPT\n" +
		"-A NPC-EGRESS -m conntrack --ctstate NEW -j NPC-EGRESS-DEFAULT\n" +
		"-A NPC-EGRESS -m conntrack --ctstate NEW -m mark ! --mark 0x40000/0x40000 -j NPC-EGRESS-CUSTOM\n" +
		"-A NPC-EGRESS -m mark ! --mark 0x40000/0x40000 -j DROP\n" +
		"-A NPC-EGRESS-ACCEPT -j MARK --set-xmark 0x40000/0x40000\n")
	sets := w.sets()
	free := func(name string, egress bool) {
		sets += "create " + name + " hash:ip\n"
		isolated := map[netip.Addr]bool{}
		for _, g := range w.isolated(egress) {
			for _, a := range w.groups[g] {
				isolated[a] = true
			}
		}
		for i := range w.local {
			if !isolated[localPod(i)] {
				sets += fmt.Sprintf("add %s %s\n", name, localPod(i))
			}
		}
	}
	free("ingress-free", false)
	free("egress-free", true)
	b.WriteString("-A NPC-DEFAULT -m set --match-set ingress-free dst -j ACCEPT\n" +
		"-A NPC-EGRESS-DEFAULT -m set --match-set egress-free src -j NPC-EGRESS-ACCEPT\n" +
		"-A NPC-EGRESS-DEFAULT -m set --match-set egress-free src -j RETURN\n")
	for i, a := range w.allows {
		for _, m := range a.matches(i) {
			if a.egress {
				fmt.Fprintf(&b, "-A NPC-EGRESS-CUSTOM -m set --match-set %s src %s -j NPC-EGRESS-ACCEPT\n", a.pods, m)
				fmt.Fprintf(&b, "-A NPC-EGRESS-CUSTOM -m set --match-set %s src %s -j RETURN\n", a.pods, m)
			} else {
				fmt.Fprintf(&b, "-A NPC-INGRESS -m set --match-set %s dst %s -j ACCEPT\n", a.pods, m)
			}
		}
	}
	return text{sets: sets, rules: b.String() + "COMMIT\n"}
}

// podChains returns a chain for each pod and each policy, like kube-router. A mark says that a policy has allowed the
// packet. See https://github.com/cloudnativelabs/kube-router/blob/master/docs/how-it-works.md
func (w *workload) podChains() text {
	var chains, rules strings.Builder
	chains.WriteString("*filter\n:ROUTER-FORWARD - [0:0]\n")
	rules.WriteString("-I FORWARD 1 -j ROUTER-FORWARD\n")
	number := map[string]int{}
	for _, egress := range []bool{true, false} {
		for _, g := range w.isolated(egress) {
			for _, addr := range w.groups[g] {
				if _, ok := number[addr.String()]; ok {
					continue
				}
				number[addr.String()] = len(number)
				fmt.Fprintf(&rules, "-A ROUTER-FORWARD -d %[1]s -j POD-%[2]d\n-A ROUTER-FORWARD -s %[1]s -j POD-%[2]d\n",
					addr, number[addr.String()])
			}
		}
	}
	for _, addr := range slices.Sorted(maps.Keys(number)) {
		chain := fmt.Sprint("POD-", number[addr])
		fmt.Fprintf(&chains, ":%s - [0:0]\n", chain)
		fmt.Fprintf(&rules, "-A %s -m conntrack --ctstate RELATED,ESTABLISHED -j ACCEPT\n", chain)
		fmt.Fprintf(&rules, "-A %s -d %s -m addrtype --src-type LOCAL -j ACCEPT\n", chain, addr)
		isolates := map[bool]bool{}
		for i, a := range w.allows {
			if !slices.Contains(w.groups[a.pods], netip.MustParseAddr(addr)) {
				continue
			}
			isolates[a.egress] = true
			fmt.Fprintf(&rules, "-A %s -%s %s -j POLICY-%d\n", chain, addressFlag(a.egress), addr, i)
		}
		for _, egress := range []bool{true, false} { // a direction without policies is open
			if !isolates[egress] {
				fmt.Fprintf(&rules, "-A %s -%s %s -j MARK --set-xmark 0x10000/0x10000\n", chain, addressFlag(egress), addr)
			}
		}
		fmt.Fprintf(&rules, "-A %s -m mark ! --mark 0x10000/0x10000 -j DROP\n", chain)
		fmt.Fprintf(&rules, "-A %s -j MARK --set-xmark 0x0/0x10000\n", chain)
	}
	for i, a := range w.allows {
		fmt.Fprintf(&chains, ":POLICY-%d - [0:0]\n", i)
		for _, m := range a.matches(i) {
			fmt.Fprintf(&rules, "-A POLICY-%[1]d %[2]s -j MARK --set-xmark 0x10000/0x10000\n"+
				"-A POLICY-%[1]d -m mark --mark 0x10000/0x10000 -j RETURN\n", i, m)
		}
	}
	return text{sets: w.sets(), rules: chains.String() + rules.String() + "COMMIT\n"}
}

func addressFlag(egress bool) string {
	if egress {
		return "s"
	}
	return "d"
}

// queued returns rules that send the first packets of pods' connections to a program, as kube-network-policies does.
// See https://github.com/kubernetes-sigs/kube-network-policies/blob/main/README.md
func (w *workload) queued() text {
	sets := "create pods hash:ip\n"
	for i := range w.local {
		sets += fmt.Sprintf("add pods %s\n", localPod(i))
	}
	return text{sets: sets, rules: fmt.Sprintf("*mangle\n"+
		"-A POSTROUTING -m conntrack --ctstate RELATED,ESTABLISHED -j ACCEPT\n"+
		"-A POSTROUTING -m set --match-set pods src -j NFQUEUE --queue-num %[1]d\n"+
		"-A POSTROUTING -m set --match-set pods dst -j NFQUEUE --queue-num %[1]d\nCOMMIT\n", queueNumber)}
}

func flatList(name string, w *workload) filter { return written("flat list, "+name, w.flat) }

func chainsPerPod(name string, w *workload) filter {
	return written("chains per pod, "+name, w.podChains)
}

func written(name string, rules func() text) filter {
	return filter{name, false, func(t *testing.T, n *packetNode, flavour iptables.Flavour) {
		t.Helper()
		n.write(t, flavour, rules())
	}}
}

// userSpace stands for programs that check the first packet of each connection in user space. It looks up no policies,
// so a real program costs more.
func userSpace(w *workload) filter {
	return filter{"first packets in user space", false, func(t *testing.T, n *packetNode, flavour iptables.Flavour) {
		t.Helper()
		n.write(t, flavour, w.queued())
		n.queue = newQueue(t, n.path)
	}}
}
