package nodecheck

import (
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/weir-net/weir/conf"
	"github.com/weir-net/weir/test/nodetest"
)

// TestRead: if a kernel has everything that weir needs, all trials succeed and leave nothing.
func TestRead(t *testing.T) {
	if !nodetest.Isolated(t) {
		return
	}
	f := Read(t.Context())
	if f.NoTrials != "" {
		t.Fatal(f.NoTrials)
	}
	nft := 0
	for _, trial := range f.Trials {
		if flavour, _ := xtOf(trial.Feature); flavour == "nft" {
			nft++
		}
		if trial.Error != "" {
			t.Errorf("%+v", trial)
		}
	}
	if nft != len(xtUses) {
		t.Errorf("%d trials of iptables-nft", nft)
	}
	for _, finding := range Findings(f) {
		if finding.Severity == Broken {
			t.Errorf("%+v", finding)
		}
	}
	if _, err := netlink.LinkByName(conf.Bridge); err == nil {
		t.Error("the trials have left weir0 on the node")
	}
	for _, u := range []xtUse{{name: "nosuch"}, {name: "NOSUCH", target: true}} {
		for _, family := range []int{unix.AF_INET, unix.AF_INET6} {
			if askNFT(u, family) == nil || askLegacy(u, family) == nil {
				t.Errorf("the kernel has %+v", u)
			}
		}
	}
}

func TestReadAll(t *testing.T) {
	if !nodetest.Isolated(t) {
		return
	}
	nodetest.RunEach(t, "ip link add vx0 type vxlan id 88 dstport 4789", "ip link add cni0 type bridge",
		"nft add table inet firewalld", "nft add table ip nat", "nft add chain ip nat KUBE-IPTABLES-HINT",
		"nft add chain ip nat WEAVE-CANARY")
	f := Read(t.Context())
	if !f.NFT {
		t.Errorf("%+v", f)
	}
	var all strings.Builder
	for _, finding := range Findings(f) {
		all.WriteString(string(finding.Severity) + " " + finding.What + "\n")
	}
	for _, want := range []string{
		"BROKEN the device vx0 uses weir's VNI", "warning Flannel is on the node: link cni0",
		"warning Weave Net is on the node: chain WEAVE-CANARY", "warning firewalld runs",
	} {
		if !strings.Contains(all.String(), want) {
			t.Errorf("%q lacks %q", all.String(), want)
		}
	}
}

// TestMultusNamesAnotherFile: Multus's file leads to weir if it names another file in which weir is chained.
func TestMultusNamesAnotherFile(t *testing.T) {
	if !nodetest.Isolated(t) {
		return
	}
	const dir = "/etc/cni/net.d"
	nodetest.RunEach(t, "mount -t tmpfs tmpfs /etc", "mkdir -p "+dir)
	const multus = `{"name": "multus", "type": "multus-shim", "clusterNetwork": "` + dir + `/`
	for name, text := range map[string]string{
		"00-multus.conf":      multus + `10-calico.conflist"}`,
		"05-multus.conf":      multus + `20-flannel.conflist"}`,
		"10-calico.conflist":  `{"name": "calico", "plugins": [{"type": "calico"}, {"type": "weir"}]}`,
		"20-flannel.conflist": `{"name": "flannel", "plugins": [{"type": "flannel"}]}`,
	} {
		if err := os.WriteFile(filepath.Join(dir, name), []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	var f Facts
	f.readConflists()
	var lead []bool
	for _, c := range f.Conflists {
		lead = append(lead, c.Weir)
	}
	if want := []bool{true, false, true, false}; !slices.Equal(lead, want) {
		t.Errorf("%+v: got %v, want %v", f.Conflists, lead, want)
	}
}
