package nodecheck

import (
	"bufio"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
)

func healthy() Facts {
	f := Facts{
		Kernel: "6.1.0",
		Sysctls: map[string]string{
			"net.ipv4.ip_forward": "1", "net.ipv6.conf.all.forwarding": "1", "net.bridge.bridge-nf-call-iptables": "0",
			"net.netfilter.nf_conntrack_max": "262144", "net.netfilter.nf_conntrack_count": "99",
		},
		Conflists: []Conflist{
			{File: "10-weir.conflist", Name: "weir", Plugins: []string{"weir", "portmap"}, Weir: true},
		},
		Links: []string{"lo", "eth0", "weir0", "weir-vxlan", "weirp0"}, Chains: []string{"KUBE-SERVICES", "WEIR-FORWARD"},
		Tables: []string{"ip nat", "bridge weir"}, VXLANs: []VXLAN{{"weir-vxlan", 4789, 88}}, NFT: true, Portmap: "1.9.0",
		ProxyMode: "iptables", Agent: true,
	}
	for _, of := range []Feature{Bridge, Veth, Tunnel, Sets, Marks, Guard, Conntrack, LogGroup, Native} {
		f.Trials = append(f.Trials, Trial{Feature: of})
	}
	for _, u := range xtUses {
		f.Trials = append(f.Trials, Trial{Feature: xtFeature("nft", u)})
	}
	return f
}

func (f *Facts) refuse(of Feature) {
	i := slices.IndexFunc(f.Trials, func(t Trial) bool { return t.Feature == of })
	f.Trials[i].Error = "no such file or directory"
}

// TestNoBackendWorks: if neither backend works, the findings name the modules of iptables and of nftables.
func TestNoBackendWorks(t *testing.T) {
	f := healthy()
	for _, of := range []Feature{Native, Sets, "iptables-nft match set", "iptables-nft target NFLOG"} {
		f.refuse(of)
	}
	all := ""
	for _, finding := range Findings(f) {
		if finding.Severity == Broken {
			all += finding.What + "; " + finding.Mend + "\n"
		}
	}
	for _, want := range []string{
		"refuses ipset", "ip_set_hash_ip", "refuses rules and sets of nftables", "nft_masq",
		"iptables-nft, which the node uses", "lacks match set, target NFLOG", "xt_set, xt_NFLOG",
	} {
		if !strings.Contains(all, want) {
			t.Errorf("%q lacks %q", all, want)
		}
	}
}

func TestFindings(t *testing.T) {
	for _, tc := range []struct {
		name   string
		change func(*Facts)
		want   []string // severity, and parts of the finding and its remedy
	}{
		{"healthy", func(*Facts) {}, nil},
		{
			"no bridge", func(f *Facts) { f.refuse(Bridge) },
			[]string{"BROKEN", "a bridge with isolated ports: no such", "modprobe it: bridge"},
		},
		{"no sets", func(f *Facts) { f.refuse(Sets) }, []string{"warning", "refuses ipset", "with nftables"}},
		{
			"no nftables", func(f *Facts) { f.refuse(Native) },
			[]string{"warning", "nftables can't", "with iptables and ipset"},
		},
		{"no marks", func(f *Facts) { f.refuse(Marks) }, []string{"warning", "skbinfo", "3.19"}},
		{
			"no nft_compat match", func(f *Facts) { f.refuse("iptables-nft match set"); f.refuse("iptables-nft target NFLOG") },
			[]string{"warning", "iptables-nft, which the node uses", "lacks match set, target NFLOG", "with nftables"},
		},
		{
			"not tried", func(f *Facts) { f.Trials, f.NoTrials = nil, "not permitted" },
			[]string{"unknown", "not permitted", "as root"},
		},
		{
			"legacy not tried", func(f *Facts) { f.NFT, f.Legacy = false, []string{"filter"} },
			[]string{"unknown", "iptables-legacy was not tried"},
		},
		{
			"both", func(f *Facts) { f.Legacy = []string{"nat"} },
			[]string{"warning", "both iptables-nft and iptables-legacy", "iptables-legacy-save"},
		},
		{
			"ip_forward", func(f *Facts) { f.Sysctls["net.ipv4.ip_forward"] = "0" },
			[]string{"BROKEN", "net.ipv4.ip_forward is 0", "sysctl -w net.ipv4.ip_forward=1"},
		},
		{
			"bridge-nf", func(f *Facts) { f.Sysctls["net.bridge.bridge-nf-call-iptables"] = "1" },
			[]string{"BROKEN", "bridge-nf-call-iptables is 1", "bridge-nf-call-iptables=0"},
		},
		{
			"forwarding of IPv6", func(f *Facts) { f.Sysctls["net.ipv6.conf.all.forwarding"] = "0" },
			[]string{"warning", "net.ipv6.conf.all.forwarding is 0", "=1"},
		},
		{
			"IPv6 off", func(f *Facts) { f.Sysctls["net.ipv6.conf.all.disable_ipv6"] = "1" },
			[]string{"warning", "IPv6 is switched off", "disable_ipv6=0"},
		},
		{
			"IPv6 off with another number", func(f *Facts) { f.Sysctls["net.ipv6.conf.all.disable_ipv6"] = "2" },
			[]string{"warning", "IPv6 is switched off", "disable_ipv6 is 2"},
		},
		{
			"IPv6 and no source routes", func(f *Facts) {
				f.Sysctls["net.ipv6.conf.all.disable_ipv6"], f.Sysctls["net.ipv4.conf.all.accept_source_route"] = "0", "0"
			}, nil,
		},
		{
			"source routes", func(f *Facts) { f.Sysctls["net.ipv4.conf.all.accept_source_route"] = "1" },
			[]string{"BROKEN", "accept_source_route is 1", "accept_source_route=0"},
		},
		{
			"source routes with another number", func(f *Facts) { f.Sysctls["net.ipv4.conf.all.accept_source_route"] = "2" },
			[]string{"BROKEN", "accept_source_route is 2", "accept_source_route=0"},
		},
		{
			"rp_filter", func(f *Facts) { f.Sysctls["net.ipv4.conf.all.rp_filter"] = "1" },
			[]string{"warning", "rp_filter is 1", "rp_filter=2"},
		},
		{
			"before weir", func(f *Facts) {
				f.Sysctls["net.ipv4.ip_forward"], f.Links, f.Agent, f.Conflists = "0", []string{"eth0"}, false, nil
			}, nil,
		},
		{
			"full conntrack", func(f *Facts) { f.Sysctls["net.netfilter.nf_conntrack_count"] = "230000" },
			[]string{"BROKEN", "230000 of 262144", "nf_conntrack_max=1048576"},
		},
		{
			"small conntrack", func(f *Facts) { f.Sysctls["net.netfilter.nf_conntrack_max"] = "4096" },
			[]string{"warning", "only 4096", "131072"},
		},
		{
			"other network first", func(f *Facts) {
				f.Conflists = append([]Conflist{{File: "05-cilium.conflist", Plugins: []string{"cilium-cni"}}}, f.Conflists...)
			}, []string{"BROKEN", "the runtime uses 05-cilium.conflist (cilium-cni)", "remove 05-cilium.conflist"},
		},
		{
			"other network behind", func(f *Facts) {
				f.Conflists = append(f.Conflists, Conflist{File: "87-podman.conflist", Plugins: []string{"bridge"}})
			}, []string{"warning", "87-podman.conflist (bridge) is left", "remove"},
		},
		{
			"weir's file is missing", func(f *Facts) { f.Conflists = nil },
			[]string{"BROKEN", "no file in /etc/cni/net.d names weir", "agent's log"},
		},
		{
			"file that can't be read", func(f *Facts) {
				f.Conflists = append(f.Conflists, Conflist{File: "x.conf", Error: "no JSON"})
			},
			[]string{"warning", "x.conf can't be read: no JSON", "mend or remove"},
		},
		{
			"Cilium", func(f *Facts) { f.Links = append(f.Links, "cilium_host") },
			[]string{"warning", "Cilium is on the node: link cilium_host", "DaemonSet"},
		},
		{
			"Calico", func(f *Facts) { f.Chains = append(f.Chains, "cali-FORWARD", "cali-INPUT", "cali-a", "cali-b") },
			[]string{
				"warning", "Calico is on the node: chain cali-FORWARD, chain cali-INPUT, chain cali-a, 1 more", "DaemonSet",
			},
		},
		{
			"calico's nftables", func(f *Facts) { f.Tables = append(f.Tables, "ip calico") },
			[]string{"warning", "table ip calico", "DaemonSet"},
		},
		{
			"Weave", func(f *Facts) { f.Chains = append(f.Chains, "WEAVE-NPC") },
			[]string{"warning", "Weave Net", "DaemonSet"},
		},
		{
			"firewalld", func(f *Facts) { f.Tables = append(f.Tables, "inet firewalld") },
			[]string{"warning", "firewalld runs", "--add-interface=weir0"},
		},
		{
			"old portmap", func(f *Facts) { f.Portmap = "v1.6.2" },
			[]string{"warning", "portmap v1.6.2", "1.9.0 or newer"},
		},
		{
			"in a container", func(f *Facts) { f.Portmap, f.NoPlugins = "", true },
			[]string{"unknown", "portmap's version", "on the node itself"},
		},
		{"no portmap", func(f *Facts) { f.Portmap = "" }, []string{"BROKEN", "names portmap", "/opt/cni/bin"}},
		{
			"IPVS", func(f *Facts) { f.ProxyMode = "ipvs" },
			[]string{"BROKEN", "IPVS mode", "--proxy-mode=nftables"},
		},
		{
			"same VNI", func(f *Facts) { f.VXLANs = append(f.VXLANs, VXLAN{"vx0", 4789, 88}) },
			[]string{"BROKEN", "vx0 uses weir's VNI 88", "ip link del vx0"},
		},
		{"other VNI", func(f *Facts) { f.VXLANs = append(f.VXLANs, VXLAN{"vx0", 4789, 1}) }, nil},
		{
			"unread", func(f *Facts) { f.Unread = []string{"x could not be read: no", "x could not be read: no"} },
			[]string{"unknown", "x could not be read", "as root"},
		},
	} {
		t.Run(tc.name, func(t *testing.T) {
			f := healthy()
			tc.change(&f)
			var bad []Finding
			for i, finding := range Findings(f) {
				if finding.Severity != OK {
					bad = append(bad, finding)
				}
				if (finding.Mend == "") != (finding.Severity == OK) || strings.Contains(finding.What+finding.Mend, "\n") {
					t.Errorf("%d: %+v", i, finding)
				}
			}
			if len(tc.want) == 0 && len(bad) > 0 || len(tc.want) > 0 && len(bad) != 1 {
				t.Fatalf("%+v", bad)
			}
			for _, want := range tc.want {
				if text := string(bad[0].Severity) + " " + bad[0].What + "; " + bad[0].Mend; !strings.Contains(text, want) {
					t.Errorf("%q lacks %q", text, want)
				}
			}
		})
	}
}

func TestWorstFirst(t *testing.T) {
	f := healthy()
	f.Unread, f.Portmap, f.ProxyMode = []string{"x"}, "1.2.0", "ipvs"
	var order []Severity
	for _, finding := range Findings(f) {
		order = append(order, finding.Severity)
	}
	if diff := cmp.Diff([]Severity{Broken, Warning, Unknown, OK}, slices.Compact(order)); diff != "" {
		t.Error(diff)
	}
}

// TestAllThatRulesUse: apart from LOG and the built-in targets, the node check tries all matches and targets that
// the rules in netfilter/iptables/testdata use. It tries only one other: the match sctp.
func TestAllThatRulesUse(t *testing.T) {
	files, err := filepath.Glob("../../../netfilter/iptables/testdata/*")
	if err != nil || len(files) == 0 {
		t.Fatal(files, err)
	}
	used := map[string]bool{}
	option := regexp.MustCompile(`-(m|j) ([A-Za-z0-9]+)`)
	for _, name := range files {
		file, err := os.Open(name)
		if err != nil {
			t.Fatal(err)
		}
		for lines := bufio.NewScanner(file); lines.Scan(); {
			for _, found := range option.FindAllStringSubmatch(lines.Text(), -1) {
				kind := map[string]string{"m": "match ", "j": "target "}[found[1]]
				used[kind+found[2]] = true
			}
		}
		_ = file.Close()
	}
	for _, builtIn := range []string{"ACCEPT", "DROP", "RETURN", "WEIR", "LOG"} {
		delete(used, "target "+builtIn)
	}
	tried := map[string]bool{}
	for _, u := range xtUses {
		tried[xtName(xtFeature("nft", u))] = true
	}
	delete(tried, "match sctp") // no golden file has a rule for SCTP
	if diff := cmp.Diff(used, tried); diff != "" {
		t.Error(diff)
	}
}
