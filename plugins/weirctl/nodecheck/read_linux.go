package nodecheck

import (
	"context"
	"debug/buildinfo"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"time"

	"github.com/google/nftables"
	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/weir-net/weir/agentapi"
	"github.com/weir-net/weir/conf"
	"github.com/weir-net/weir/internal/kubeproxy"
)

const readsWithin = 3 * time.Second

// Read reads the facts of this node. Reading most of the facts needs root. Read may load kernel modules, as weir
// does.
func Read(ctx context.Context) Facts {
	f := Facts{Sysctls: map[string]string{}}
	var name unix.Utsname
	if unix.Uname(&name) == nil {
		f.Kernel = unix.ByteSliceToString(name.Release[:])
	}
	if _, err := os.Stat(agentapi.Socket); err == nil {
		f.Agent = true
	}
	f.try(ctx)
	f.readSysctls()
	f.readConflists()
	f.readLinks()
	f.readTables()
	f.readLegacy(ctx)
	f.readPortmap(ctx)
	f.ProxyMode = kubeproxy.Mode(ctx)
	return f
}

func (f *Facts) unread(what string, err error) {
	if err != nil {
		f.Unread = append(f.Unread, fmt.Sprintf("%s could not be read: %s", what, err))
	}
}

func (f *Facts) readSysctls() {
	for _, name := range []string{
		"net.ipv4.ip_forward", "net.ipv6.conf.all.forwarding", "net.ipv6.conf.all.disable_ipv6",
		"net.bridge.bridge-nf-call-iptables", "net.bridge.bridge-nf-call-ip6tables", "net.ipv4.conf.all.rp_filter",
		"net.ipv4.conf.all.accept_source_route",
		"net.netfilter.nf_conntrack_max", "net.netfilter.nf_conntrack_count",
	} {
		value, err := os.ReadFile("/proc/sys/" + strings.ReplaceAll(name, ".", "/"))
		switch {
		case err == nil:
			f.Sysctls[name] = strings.TrimSpace(string(value))
		case !errors.Is(err, fs.ErrNotExist): // ErrNotExist is no fault: the sysctl's module isn't loaded
			f.unread(name, err)
		}
	}
}

// conflistDirs are the paths of the runtime's configuration directory: in the agent's container, and on the node. Only
// the first directory that exists is read.
var conflistDirs = []string{"/host/etc/cni/net.d", "/etc/cni/net.d"}

// readConflists reads the files that the runtime reads, in the order of their names.
func (f *Facts) readConflists() {
	for _, dir := range conflistDirs {
		files, err := os.ReadDir(dir)
		if errors.Is(err, fs.ErrNotExist) {
			continue
		}
		f.unread(dir, err)
		var texts [][]byte
		for _, file := range files {
			if slices.Contains(conf.ConfigurationSuffixes, filepath.Ext(file.Name())) {
				c, text := readConflist(dir, file.Name())
				f.Conflists, texts = append(f.Conflists, c), append(texts, text)
			}
		}
		for i, text := range texts { // Multus may name another file that leads to weir
			c := &f.Conflists[i]
			c.Weir = c.Weir || c.Error == "" && slices.ContainsFunc(f.Conflists, func(o Conflist) bool {
				return o.Weir && conf.LeadsToWeir(text, o.File)
			})
		}
		return
	}
}

func readConflist(dir, name string) (c Conflist, text []byte) {
	c.File = name
	text, err := os.ReadFile(filepath.Join(dir, name))
	if err == nil {
		c.Plugins, err = conf.Plugins(text)
	}
	if err != nil {
		c.Error = err.Error()
		return c, nil
	}
	var list struct{ Name string }
	_ = json.Unmarshal(text, &list) // conf.Plugins has decoded the text without an error
	c.Name, c.Weir = list.Name, conf.LeadsToWeir(text, "10-weir.conflist")
	return c, text
}

func (f *Facts) readLinks() {
	links, err := netlink.LinkList()
	f.unread("the links", err)
	for _, l := range links {
		f.Links = append(f.Links, l.Attrs().Name)
		if v, ok := l.(*netlink.Vxlan); ok {
			f.VXLANs = append(f.VXLANs, VXLAN{v.Name, v.Port, v.VxlanId})
		}
	}
}

// hints are chains that kubelet makes with the iptables flavour of the node (KEP-3178).
var hints = []string{"KUBE-IPTABLES-HINT", "KUBE-KUBELET-CANARY"}

// Equivalent to: nft list tables; nft list chains ip; nft list chains ip6
func (f *Facts) readTables() {
	conn, err := nftables.New()
	if err != nil {
		f.unread("nftables", err)
		return
	}
	tables, err := conn.ListTables()
	f.unread("nftables", err)
	families := map[nftables.TableFamily]string{
		nftables.TableFamilyINet: "inet", nftables.TableFamilyIPv4: "ip", nftables.TableFamilyIPv6: "ip6",
		nftables.TableFamilyARP: "arp", nftables.TableFamilyNetdev: "netdev", nftables.TableFamilyBridge: "bridge",
	}
	for _, t := range tables {
		f.Tables = append(f.Tables, families[t.Family]+" "+t.Name)
	}
	for _, family := range []nftables.TableFamily{nftables.TableFamilyIPv4, nftables.TableFamilyIPv6} {
		chains, err := conn.ListChainsOfTableFamily(family)
		f.unread("the chains of nftables", err)
		for _, c := range chains {
			f.Chains = append(f.Chains, c.Name)
			f.NFT = f.NFT || slices.Contains(hints, c.Name)
		}
	}
}

// readLegacy reads the tables of iptables-legacy. Only iptables-legacy's own program can read their chains.
func (f *Facts) readLegacy(ctx context.Context) {
	for _, file := range []string{"/proc/net/ip_tables_names", "/proc/net/ip6_tables_names"} {
		names, err := os.ReadFile(file)
		if !errors.Is(err, fs.ErrNotExist) { // the file is missing until its module is loaded
			f.unread(file, err)
		}
		f.Legacy = append(f.Legacy, strings.Fields(string(names))...)
	}
	slices.Sort(f.Legacy)
	f.Legacy = slices.Compact(f.Legacy)
	if len(f.Legacy) == 0 {
		return
	}
	for _, program := range []string{"iptables-legacy-save", "ip6tables-legacy-save"} {
		out, err := output(ctx, program)
		if errors.Is(err, exec.ErrNotFound) {
			continue
		}
		f.unread("the chains of "+program, err)
		for line := range strings.Lines(out) {
			if chain, ok := strings.CutPrefix(line, ":"); ok {
				name, _, _ := strings.Cut(chain, " ")
				f.Chains = append(f.Chains, name)
			}
		}
	}
}

func output(ctx context.Context, program string) (string, error) {
	ctx, cancel := context.WithTimeout(ctx, readsWithin)
	defer cancel()
	cmd := exec.CommandContext(ctx, program)
	cmd.Env = []string{"PATH=" + os.Getenv("PATH")}
	// WaitDelay limits the wait for a child process that keeps the output open. On a busy machine, it may take some time
	// until the output of a program that has succeeded is read to its end.
	cmd.WaitDelay = 10 * time.Second
	out, err := cmd.CombinedOutput()
	return string(out), err
}

var portmapVersion = regexp.MustCompile(`portmap (?:plugin )?(?:version )?v?(\d+\.\d+\S*)`)

const pluginDir = "/opt/cni/bin"

// readPortmap reads the version of the plugin portmap. Without CNI's variables, portmap prints a line with its
// version. If the line has no version, the version of portmap's Go module counts.
func (f *Facts) readPortmap(ctx context.Context) {
	if _, err := os.Stat(pluginDir); err != nil {
		f.NoPlugins = true
		return
	}
	path := filepath.Join(pluginDir, "portmap")
	if _, err := os.Stat(path); err != nil {
		return
	}
	out, err := output(ctx, path)
	if found := portmapVersion.FindStringSubmatch(out); found != nil {
		f.Portmap = found[1]
		return
	}
	if f.Portmap = moduleVersion(path); f.Portmap != "" {
		return
	}
	if f.Portmap = "of an unknown version"; err != nil {
		f.unread("the version of "+path, err)
	}
}

// Equivalent to: go version -m PATH
func moduleVersion(path string) string {
	info, err := buildinfo.ReadFile(path)
	if err != nil {
		return ""
	}
	for _, m := range append(info.Deps, &info.Main) {
		if m.Path == "github.com/containernetworking/plugins" && strings.HasPrefix(m.Version, "v") {
			return strings.TrimPrefix(m.Version, "v")
		}
	}
	return ""
}
