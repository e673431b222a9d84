package nodecheck

import (
	"fmt"
	"slices"
	"strconv"
	"strings"

	"github.com/weir-net/weir/conf"
)

// Findings returns findings from the facts, the worst first.
func Findings(f Facts) []Finding {
	var all []Finding
	for _, of := range []func(Facts) []Finding{
		features, xtables, forwarding, conntrack, conflists, leftovers, neighbours, portmap, proxy, tunnels, unread,
	} {
		all = append(all, of(f)...)
	}
	order := []Severity{Broken, Warning, Unknown, OK}
	slices.SortStableFunc(all, func(a, b Finding) int {
		return slices.Index(order, a.Severity) - slices.Index(order, b.Severity)
	})
	return all
}

func finding(s Severity, mend, what string, args ...any) []Finding {
	return []Finding{{s, fmt.Sprintf(what, args...), mend}}
}

var modules = map[Feature]string{
	Bridge: "bridge", Veth: "veth", Tunnel: "vxlan", Guard: "nf_tables, nft_meta_bridge, nft_limit and nft_log",
	Sets:      "ip_set, ip_set_hash_ip, ip_set_hash_net, ip_set_hash_ipport, ip_set_hash_netiface and ip_set_bitmap_port",
	Conntrack: "nf_conntrack and nf_conntrack_netlink", LogGroup: "nfnetlink_log",
	Native: "nf_tables, nft_ct, nft_masq and nft_log",
}

const installModules = "install the kernel package with the module (RHEL and its derivatives: kernel-modules-extra; " +
	"Ubuntu: linux-modules-extra), then modprobe it: "

func features(f Facts) (all []Finding) {
	if f.NoTrials != "" {
		return finding(Unknown, "run weirctl check as root on the node itself", "no feature of the kernel was tried: %s",
			f.NoTrials)
	}
	native, iptables := f.works(Native), f.works(Sets) && len(f.lacksXT()) == 0
	var works []string
	for _, t := range f.Trials {
		switch _, isXT := xtOf(t.Feature); {
		case isXT:
		case t.Error == "":
			works = append(works, string(t.Feature))
		case t.Feature == Marks:
			all = append(all, Finding{
				Warning, "the kernel refuses " + string(t.Feature) + ": " + t.Error,
				"a kernel since 3.19 has it; without it, the cost of a packet grows with the number of classes",
			})
		case t.Feature == Sets && native:
			all = append(all, Finding{
				Warning, "the kernel refuses ipset: " + t.Error, "nothing: weir enforces policies with nftables on this node",
			})
		case t.Feature == Native && iptables:
			all = append(all, Finding{
				Warning, "nftables can't enforce policies: " + t.Error,
				"nothing: weir enforces policies with iptables and ipset on this node",
			})
		default:
			all = append(all, Finding{
				Broken, "the kernel refuses " + string(t.Feature) + ": " + t.Error, installModules + modules[t.Feature],
			})
		}
	}
	if len(works) > 0 {
		all = append(all, Finding{OK, "the kernel " + f.Kernel + " has " + strings.Join(works, ", "), ""})
	}
	return all
}

func (f Facts) works(of Feature) bool { return slices.Contains(f.Trials, Trial{Feature: of}) }

// flavour returns the flavour of iptables, nft or legacy, that weir uses with the backend iptables, and why.
func (f Facts) flavour() (used, why string) {
	switch {
	case f.NFT:
		return "nft", "kube-proxy's or kubelet's chains are there"
	case len(f.Legacy) > 0:
		return "legacy", "its tables exist: " + strings.Join(f.Legacy, ", ")
	}
	return "nft", "the kernel has no tables of iptables-legacy"
}

func (f Facts) triedXT() bool {
	used, _ := f.flavour()
	return slices.ContainsFunc(f.Trials, func(t Trial) bool { of, _ := xtOf(t.Feature); return of == used })
}

func (f Facts) lacksXT() (missing []string) {
	used, _ := f.flavour()
	for _, t := range f.Trials {
		if of, _ := xtOf(t.Feature); of == used && t.Error != "" {
			missing = append(missing, xtName(t.Feature))
		}
	}
	return missing
}

func xtables(f Facts) []Finding {
	if f.NoTrials != "" {
		return nil
	}
	used, why := f.flavour()
	missing := f.lacksXT()
	var all []Finding
	switch {
	case !f.triedXT():
		all = finding(Unknown, "run weirctl check as root on the node itself", "iptables-%s was not tried", used)
	case len(missing) > 0:
		severity, mend := Broken, installModules+strings.Join(modulesOf(missing), ", ")
		if f.works(Native) {
			severity, mend = Warning, "nothing: weir enforces policies with nftables on this node"
		}
		all = finding(severity, mend, "iptables-%s, which the node uses (%s), lacks %s", used, why,
			strings.Join(missing, ", "))
	default:
		all = finding(OK, "", "iptables-%s, which the node uses (%s), has all matches and targets of weir's rules", used, why)
	}
	if f.NFT && len(f.Legacy) > 0 {
		all = append(all, Finding{
			Warning, "both iptables-nft and iptables-legacy have tables: each packet passes the rules of both",
			"find the program that uses iptables-legacy (iptables-legacy-save), and switch it to iptables-nft",
		})
	}
	return all
}

// forwarding checks sysctls. It skips the sysctls of forwarding and of bridges if the bridge weir0 doesn't exist,
// because weir sets them when the node gets its first pod.
func forwarding(f Facts) (all []Finding) {
	for _, s := range []struct{ name, want, why string }{
		{"net.ipv4.ip_forward", "1", "packets are not routed between pods and the network"},
		{"net.ipv6.conf.all.forwarding", "1", "IPv6 packets are not routed between pods and the network"},
		{"net.bridge.bridge-nf-call-iptables", "0", "frames on the bridge pass iptables before they are routed"},
		{"net.bridge.bridge-nf-call-ip6tables", "0", "frames on the bridge pass ip6tables before they are routed"},
	} {
		have, ok := f.Sysctls[s.name]
		if !ok || have == s.want || !slices.Contains(f.Links, conf.Bridge) {
			continue
		}
		severity := Broken
		if strings.HasPrefix(s.name, "net.ipv6") {
			severity = Warning // a node may have no pods with IPv6
		}
		mend := fmt.Sprintf("sysctl -w %s=%s, and remove the other value from /etc/sysctl.d", s.name, s.want)
		all = append(all, Finding{severity, fmt.Sprintf("%s is %s: %s", s.name, have, s.why), mend})
	}
	if have := f.Sysctls["net.ipv6.conf.all.disable_ipv6"]; isOn(have) {
		all = append(all, Finding{
			Warning, "IPv6 is switched off on the node (net.ipv6.conf.all.disable_ipv6 is " + have + ")",
			"sysctl -w net.ipv6.conf.all.disable_ipv6=0, if pods have IPv6 addresses",
		})
	}
	if have := f.Sysctls["net.ipv4.conf.all.accept_source_route"]; isOn(have) {
		all = append(all, Finding{
			Broken,
			"net.ipv4.conf.all.accept_source_route is " + have + ": packets with source routes may go round the policies",
			"sysctl -w net.ipv4.conf.all.accept_source_route=0, and remove the other value from /etc/sysctl.d",
		})
	}
	if f.Sysctls["net.ipv4.conf.all.rp_filter"] == "1" {
		all = append(all, Finding{
			Warning, "net.ipv4.conf.all.rp_filter is 1 (strict): on a node with several uplinks, packets may be dropped",
			"sysctl -w net.ipv4.conf.all.rp_filter=2 on nodes with more than one link",
		})
	}
	if len(all) == 0 && len(f.Sysctls) > 0 {
		all = finding(OK, "", "the sysctls for forwarding, bridges, source routes and reverse paths are as weir needs them")
	}
	return all
}

// isOn reports whether the kernel takes the value of a switch as on. Each number but 0 counts as on.
func isOn(value string) bool { return value != "" && value != "0" }

func conntrack(f Facts) []Finding {
	most, err := strconv.Atoi(f.Sysctls["net.netfilter.nf_conntrack_max"])
	if err != nil {
		return nil // connection tracking isn't loaded yet
	}
	have, err := strconv.Atoi(f.Sysctls["net.netfilter.nf_conntrack_count"])
	const small = 65536
	switch {
	case err == nil && have > most/10*8:
		mend := fmt.Sprintf("sysctl -w net.netfilter.nf_conntrack_max=%d (kube-proxy: --conntrack-min)", 4*most)
		return finding(Broken, mend,
			"%d of %d connections are tracked: when the table is full, the kernel drops new connections", have, most)
	case most < small:
		return finding(Warning, "sysctl -w net.netfilter.nf_conntrack_max=131072 (kube-proxy: --conntrack-min)",
			"the kernel tracks only %d connections (net.netfilter.nf_conntrack_max)", most)
	}
	return finding(OK, "", "%d of %d connections are tracked", have, most)
}

func conflists(f Facts) (all []Finding) {
	isWeir := func(c Conflist) bool { return c.Weir }
	i := slices.IndexFunc(f.Conflists, isWeir)
	for n, c := range f.Conflists {
		switch {
		case isWeir(c):
			if n == 0 {
				all = append(all, Finding{OK, "the runtime uses weir: " + c.File + " is the first of its files", ""})
			}
		case c.Error != "":
			all = append(all, Finding{Warning, c.File + " can't be read: " + c.Error, "mend or remove the file"})
		case i > n:
			all = append(all, Finding{
				Broken, fmt.Sprintf("the runtime uses %s (%s), because its name comes before %s", c.File,
					strings.Join(c.Plugins, ", "), f.Conflists[i].File), "remove " + c.File,
			})
		case i < 0:
			all = append(all, Finding{
				Warning, fmt.Sprintf("another network is configured: %s (%s)", c.File, strings.Join(c.Plugins, ", ")),
				"remove the file with the network that weir replaces",
			})
		default:
			all = append(all, Finding{
				Warning, fmt.Sprintf("%s (%s) is left of another network, and is used if weir's file is missing", c.File,
					strings.Join(c.Plugins, ", ")), "remove " + c.File,
			})
		}
	}
	if i < 0 && f.Agent {
		all = append(all, Finding{
			Broken, "no file in /etc/cni/net.d names weir, although an agent runs",
			"see the agent's log: with --conflist it writes the file once it is ready; without, write the file yourself",
		})
	}
	return all
}

func leftovers(f Facts) (all []Finding) {
	for _, n := range foreign {
		var traces []string
		for _, kind := range []struct {
			of    string
			names []string
			marks []string
		}{{"link", f.Links, n.links}, {"chain", f.Chains, n.chains}, {"table", f.Tables, n.tables}} {
			for _, name := range kind.names {
				if slices.ContainsFunc(kind.marks, func(m string) bool { return matches(name, m) }) {
					traces = append(traces, kind.of+" "+name)
				}
			}
		}
		if len(traces) == 0 {
			continue
		}
		slices.Sort(traces)
		if traces = slices.Compact(traces); len(traces) > 3 {
			traces = append(traces[:3], fmt.Sprintf("%d more", len(traces)-3))
		}
		all = append(all, Finding{n.severity, n.name + " is on the node: " + strings.Join(traces, ", "), n.mend})
	}
	return all
}

func neighbours(f Facts) []Finding {
	if !slices.ContainsFunc(f.Tables, func(t string) bool { return strings.HasSuffix(t, " firewalld") }) {
		return nil
	}
	return finding(Warning, "firewall-cmd --permanent --zone=trusted --add-interface="+conf.Bridge+
		" && firewall-cmd --reload, or stop firewalld", "firewalld runs: its chains may refuse pods' packets")
}

func portmap(f Facts) []Finding {
	used := slices.ContainsFunc(f.Conflists, func(c Conflist) bool { return slices.Contains(c.Plugins, "portmap") })
	switch {
	case f.NoPlugins && used:
		return finding(Unknown, "run weirctl check as root on the node itself",
			"the directory /opt/cni/bin isn't here, so portmap's version is unknown")
	case f.Portmap == "" && used:
		return finding(Broken, "install the CNI plugins 1.9.0 or newer in /opt/cni/bin",
			"the network configuration names portmap, and /opt/cni/bin doesn't have it: no pod can start")
	case f.Portmap == "":
		return nil
	case older(f.Portmap, 1, 9):
		return finding(Warning, "install the CNI plugins 1.9.0 or newer in /opt/cni/bin",
			"portmap %s: with its nftables backend, a pod with a host port gets packets that are for others", f.Portmap)
	}
	return finding(OK, "", "portmap %s", f.Portmap)
}

// older reports whether the version is older than major.minor. It returns false if the version doesn't begin with two
// numbers.
func older(version string, major, minor int) bool {
	parts := strings.SplitN(strings.TrimPrefix(version, "v"), ".", 3)
	if len(parts) < 2 {
		return false
	}
	a, err := strconv.Atoi(parts[0])
	b, minorErr := strconv.Atoi(parts[1])
	return err == nil && minorErr == nil && (a < major || a == major && b < minor)
}

func proxy(f Facts) []Finding {
	switch f.ProxyMode {
	case "":
		return nil
	case "ipvs":
		return finding(Broken, "run kube-proxy with --proxy-mode=nftables or iptables",
			"kube-proxy runs in IPVS mode: packets that it forwards to pods on this node bypass ingress policies")
	}
	return finding(OK, "", "kube-proxy runs in %s mode", f.ProxyMode)
}

func tunnels(f Facts) (all []Finding) {
	for _, v := range f.VXLANs {
		if v.Link != conf.Tunnel && v.Port == conf.OverlayPort && v.VNI == conf.OverlayVNI {
			all = append(all, Finding{
				Broken, fmt.Sprintf("the device %s uses weir's VNI %d on port %d: it gets the packets of weir's tunnels", v.Link,
					v.VNI, v.Port), "ip link del " + v.Link + ", or give weir another number (--overlay-vni)",
			})
		}
	}
	return all
}

func unread(f Facts) (all []Finding) {
	for _, u := range slices.Compact(slices.Sorted(slices.Values(f.Unread))) {
		all = append(all, Finding{Unknown, u, "run weirctl check as root on the node itself"})
	}
	return all
}
