//go:build bench

// Package bench_test compares weir with other plugins and other packet filters. A shared machine is sometimes fast and
// sometimes slow. So the candidates take turns, and only ratios of their times are meaningful.
package bench_test

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/containernetworking/cni/libcni"

	"github.com/weir-net/weir/test/estimate"
	"github.com/weir-net/weir/test/nodetest"
)

var (
	programs = flag.String("programs", "", "directory of the others' plugins and of floor")
	rounds   = flag.Int("rounds", 40, "how often each plugin adds and deletes one pod")
	parallel = flag.Int("parallel", 50, "how many pods are added at once")
	bursts   = flag.Int("bursts", 5, "how often")
)

func TestMain(m *testing.M) { nodetest.Main(m) }

type contender struct {
	name     string
	add, del func(ctx context.Context, pod, netns string) error
}

// plain replaces plus signs, which aren't allowed in names of networks and namespaces.
func plain(name string) string { return strings.ReplaceAll(name, "+", "-") }

func plugin(t *testing.T, n *nodetest.Node, name, conf string) contender {
	t.Helper()
	network := plain(name)
	list, err := libcni.NetworkConfFromBytes(
		[]byte(`{"cniVersion": "1.0.0", "name": "` + network + `", "plugins": [` + conf + `]}`),
	)
	if err != nil {
		t.Fatal(err)
	}
	cni := libcni.NewCNIConfigWithCacheDir([]string{n.Bin, *programs}, filepath.Join("/run/cni", network), nil)
	runtime := func(pod, netns string) *libcni.RuntimeConf {
		return &libcni.RuntimeConf{
			ContainerID: network + "-" + pod, NetNS: netns, IfName: "eth0",
			Args: [][2]string{{"IgnoreUnknown", "1"}, {"K8S_POD_NAMESPACE", "bench"}, {"K8S_POD_NAME", pod}},
		}
	}
	return contender{
		name: name,
		add: func(ctx context.Context, pod, netns string) error {
			_, err := cni.AddNetworkList(ctx, list, runtime(pod, netns))
			return err
		},
		del: func(ctx context.Context, pod, netns string) error {
			return cni.DelNetworkList(ctx, list, runtime(pod, netns))
		},
	}
}

func floor() contender {
	program := filepath.Join(*programs, "floor")
	number := func(pod string) (i int) {
		_, _ = fmt.Sscanf(pod, "pod-%d", &i)
		return i
	}
	run := func(ctx context.Context, args ...string) error {
		if out, err := exec.CommandContext(ctx, program, args...).CombinedOutput(); err != nil {
			return fmt.Errorf("floor: %w: %s", err, out)
		}
		return nil
	}
	return contender{
		name: "floor",
		add: func(ctx context.Context, pod, netns string) error {
			return run(ctx, "add", netns, "eth0", "floor"+pod, fmt.Sprintf("10.99.0.%d", 2+number(pod)), "10.99.0.1")
		},
		del: func(ctx context.Context, pod, _ string) error { return run(ctx, "del", "floor"+pod) },
	}
}

func local(subnets ...string) string {
	for i, s := range subnets {
		subnets[i] = `[{"subnet": "` + s + `"}]`
	}
	return `"ipam": {"type": "host-local", "dataDir": "/run/host-local", "routes": [{"dst": "0.0.0.0/0"}], "ranges": [` +
		strings.Join(
			subnets,
			", ",
		) + `]}`
}

const weirConf = `{"type": "weir", "ranges": [{"subnet": "10.88.0.0/24"}]}`

func bridgeConf() string {
	return `{"type": "bridge", "bridge": "br0", "isGateway": true, ` + local("10.90.0.0/24") + `}`
}

func once(t *testing.T, c contender) (add, del time.Duration) {
	t.Helper()
	path := nodetest.NewNS(t, plain(c.name)+"-pod-0")
	defer nodetest.DelNS(t, path)
	began := time.Now()
	if err := c.add(t.Context(), "pod-0", path); err != nil {
		t.Fatalf("%s: %v", c.name, err)
	}
	added := time.Now()
	if err := c.del(t.Context(), "pod-0", path); err != nil {
		t.Fatalf("%s: %v", c.name, err)
	}
	return added.Sub(began), time.Since(added)
}

// recopy replaces each short-lived program by a copy of itself. The kernel keeps a file in memory pages of different
// sizes, so one copy of a program can start a tenth faster than another copy. Over many copies, these differences
// average out.
func recopy(t *testing.T, dirs ...string) {
	t.Helper()
	for _, dir := range dirs {
		for _, name := range []string{"weir", "bridge", "ptp", "host-local", "floor"} {
			path := filepath.Join(dir, name)
			data, err := os.ReadFile(path)
			if errors.Is(err, fs.ErrNotExist) {
				continue
			}
			if err == nil {
				err = os.WriteFile(path+".new", data, 0o755)
			}
			if err == nil {
				err = os.Rename(path+".new", path)
			}
			if err != nil {
				t.Fatal(err)
			}
		}
	}
}

// copyEvery is the number of rounds after which recopy runs again.
const copyEvery = 5

const policies = `
apiVersion: v1
kind: Namespace
metadata: {name: bench}
---
apiVersion: networking.k8s.io/v1
kind: NetworkPolicy
metadata: {name: both, namespace: bench}
spec:
  podSelector: {}
  policyTypes: [Ingress, Egress]
  ingress: [{from: [{podSelector: {matchLabels: {app: bench}}}, {ipBlock: {cidr: 192.0.2.0/24}}],
    ports: [{port: 80}, {port: 443}]}]
  egress: [{to: [{namespaceSelector: {}}], ports: [{port: 53, protocol: UDP}]}, {to: [{podSelector: {}}]}]
`

func TestADD(t *testing.T) {
	if !nodetest.IsolatedWithWeir(t) {
		return
	}
	n := nodetest.NewNode(t, nil)
	manifest := policies
	for i := range *parallel {
		manifest += fmt.Sprintf(
			"---\napiVersion: v1\nkind: Pod\nmetadata: {name: pod-%d, namespace: bench, labels: {app: bench}}\n",
			i,
		)
	}
	n.Manifest("bench.yaml", manifest)
	n.StartAgent()

	all := []contender{
		plugin(t, n, "weir", weirConf),
		plugin(t, n, "bridge", bridgeConf()),
		plugin(
			t,
			n,
			"bridge+ipMasq",
			`{"type": "bridge", "bridge": "br1", "isGateway": true, "ipMasq": true, `+local("10.91.0.0/24")+`}`,
		),
		plugin(
			t,
			n,
			"bridge+dual",
			`{"type": "bridge", "bridge": "br2", "isGateway": true, `+local("10.92.0.0/24", "fd00:92::/64")+`}`,
		),
		plugin(t, n, "ptp", `{"type": "ptp", `+local("10.93.0.0/24")+`}`),
		floor(),
	}
	took := map[string][]time.Duration{}
	record := func(what, who string, d time.Duration) { took[what+" "+who] = append(took[what+" "+who], d) }
	netns := func(c contender, pod string) string {
		return nodetest.NewNS(t, plain(c.name)+"-"+pod)
	}
	for round := range *rounds + 1 {
		if round%copyEvery == 0 {
			recopy(t, n.Bin, *programs)
		}
		for _, c := range all {
			added, deleted := once(t, c)
			if round > 0 { // the first round isn't measured, because it makes the bridges
				record("ADD", c.name, added)
				record("DEL", c.name, deleted)
			}
		}
	}
	for range *bursts {
		for _, c := range all {
			paths := make([]string, *parallel)
			for i := range paths {
				paths[i] = netns(c, fmt.Sprint("pod-", i))
			}
			each := func(f func(ctx context.Context, pod, netns string) error) time.Duration {
				began := time.Now()
				var wg sync.WaitGroup
				for i, path := range paths {
					wg.Go(func() {
						if err := f(t.Context(), fmt.Sprint("pod-", i), path); err != nil {
							t.Errorf("%s: %v", c.name, err)
						}
					})
				}
				wg.Wait()
				return time.Since(began)
			}
			record(fmt.Sprintf("ADD-%d-parallel", *parallel), c.name, each(c.add))
			record(fmt.Sprintf("DEL-%d-parallel", *parallel), c.name, each(c.del))
			for _, path := range paths {
				nodetest.DelNS(t, path)
			}
		}
	}
	report(took, all)
}

// report prints the medians of all plugins. It also prints the ratio of weir's time to each other plugin's time in the
// same round.
func report(took map[string][]time.Duration, all []contender) {
	for _, what := range []string{
		"ADD", "DEL", fmt.Sprintf("ADD-%d-parallel", *parallel),
		fmt.Sprintf("DEL-%d-parallel", *parallel),
	} {
		for _, c := range all {
			fmt.Printf("median %s %s: %.1f ms\n", what, c.name, estimate.Median(took[what+" "+c.name]).Seconds()*1000)
		}
		for _, c := range all[1:] {
			both := estimate.Ratios(took[what+" weir"], took[what+" "+c.name])
			fmt.Printf("ratio %s weir/%s: %s\n", what, c.name, estimate.Text(both, 2))
		}
	}
}
