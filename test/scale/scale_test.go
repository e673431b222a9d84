// Package scale_test measures what a large cluster costs one node's agent. The cluster is synthetic: an API server
// makes its objects when they are asked for. Everything else is real: the agent, the plugin, the kernel and the
// packets.
package scale_test

import (
	"encoding/json"
	"flag"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/weir-net/weir/test/nodetest"
	"github.com/weir-net/weir/test/scale/cluster"
)

var (
	podsFlag = flag.String("pods", "100,1000", "sizes of the clusters, in pods; the first is the one that others are "+
		"compared with")
	localFlag      = flag.Int("local", 10, "pods of the measured node, at most 110; three more are for the probes")
	namespacesFlag = flag.Int("namespaces", 100, "over how many namespaces the measured node's pods are spread; with 10, "+
		"the node's pods have the same peers in all clusters from 1,000 pods on")
	ratesFlag = flag.String("rates", "100", "streams of so many pod events a second, besides an idle cluster")
	mixFlag   = flag.String("mix", "50:40:10", "parts of a stream's events: changes of a status that mean nothing to "+
		"policy, pods that concern other nodes only, and pods that concern the measured node")
	roundsFlag   = flag.Int("rounds", 1, "how often each latency is measured; the clusters take turns")
	windowsFlag  = flag.Int("windows", 1, "how often CPU time is measured; the clusters take turns")
	secondsFlag  = flag.Float64("seconds", 1, "how long CPU time is measured each time")
	idleFlag     = flag.Float64("idle", 3, "how many seconds the CPU time of the idle agents is measured, of all at once")
	restartsFlag = flag.Int("restarts", 1, "how often each agent is restarted")
	beforeFlag   = flag.String("before", "", "directory with weir, weir-agent and weirctl of another commit, which take "+
		"turns with today's")
	writesFlag = flag.Bool("writes", false, "count the agent's writes to the kernel during a restart; needs strace")
	attackFlag = flag.Int("attacks", 0, "only measure, so many times for each attack, how long other tenants wait "+
		"while a tenant has as large policies as it can")
	docsFlag = flag.String("docs", "", "folder of the pages to write tables, curves and measurements into")

	// This test starts its own program again with these flags: once for each node, and once to decode pods.
	socketFlag = flag.String("node-socket", "", "for this test's own use: be a node")
	nodePods   = flag.Int("node-pods", 0, "for this test's own use: the size of the node's cluster")
	decodeFlag = flag.String("decode", "", "for this test's own use: a kubeconfig; watch pods and decode them")
)

func TestMain(m *testing.M) {
	flag.Parse()
	if *decodeFlag != "" {
		fmt.Fprintln(os.Stderr, decode(*decodeFlag))
		os.Exit(1)
	}
	nodetest.MainAsShipped(m)
}

// TestScale measures agents in clusters of several sizes. Without flags, it is only a short test.
func TestScale(t *testing.T) {
	if *socketFlag != "" {
		if nodetest.IsolatedWithWeir(t) {
			runNode(t, *socketFlag, *nodePods)
		}
		return
	}
	o := &orchestrator{T: t, runs: &runs{}}
	o.prepare()
	o.startAll()
	if *attackFlag > 0 {
		o.attacks()
		fmt.Print(o.runs.attacks())
		o.writePage(attackMarks, o.runs.attacks())
		return
	}
	o.restarts()
	o.idle()
	o.latencies()
	o.windows()
	o.finish()
}

type orchestrator struct {
	*testing.T
	nodes []*remoteNode
	runs  *runs
	rates []float64
}

type remoteNode struct {
	t     *testing.T
	agent string // "now", or "before" for programs of another commit
	pods  int
	cmd   *exec.Cmd
	log   string
	conn  net.Conn
	out   *json.Encoder
	in    *json.Decoder
}

func (o *orchestrator) prepare() {
	for _, r := range numbers(o.T, *ratesFlag) {
		o.rates = append(o.rates, float64(r))
	}
	agents := []string{"now"}
	if *beforeFlag != "" {
		agents = []string{"before", "now"}
	}
	for _, pods := range numbers(o.T, *podsFlag) {
		if pods%100 != 0 || pods < 100 {
			o.Fatalf("-pods %d: must be a multiple of 100", pods)
		}
		if *namespacesFlag < 1 || 100%*namespacesFlag != 0 {
			o.Fatalf("-namespaces %d: must divide 100", *namespacesFlag)
		}
		for _, a := range agents {
			o.nodes = append(o.nodes, &remoteNode{t: o.T, agent: a, pods: pods})
		}
	}
	o.runs.prepare(o.rates, o.nodes[0].pods)
}

func numbers(t *testing.T, list string) (all []int) {
	t.Helper()
	for s := range strings.SplitSeq(list, ",") {
		if s == "" {
			continue
		}
		n, err := strconv.Atoi(s)
		if err != nil {
			t.Fatalf("%q: must be numbers, separated by commas", list)
		}
		all = append(all, n)
	}
	return all
}

func (r *remoteNode) launch(dir string) {
	t := r.t
	t.Helper()
	name := fmt.Sprintf("%s-%d", r.agent, r.pods)
	socket := filepath.Join(dir, name)
	listener, err := net.Listen("unix", socket)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = listener.Close() }()
	r.log = filepath.Join(dir, name+".log")
	log, err := os.Create(r.log)
	if err != nil {
		t.Fatal(err)
	}
	r.cmd = exec.Command("/proc/self/exe", "-test.run=^TestScale$", "-test.v", "-test.count=1", "-test.timeout=24h",
		"-node-socket", socket, "-node-pods", strconv.Itoa(r.pods),
		"-local", strconv.Itoa(*localFlag), "-namespaces", strconv.Itoa(*namespacesFlag))
	r.cmd.Env = os.Environ()
	if r.agent == "before" {
		r.cmd.Env = append(r.cmd.Env, "WEIR_PROGRAMS="+*beforeFlag)
	}
	r.cmd.Stdout, r.cmd.Stderr = log, log
	if err := r.cmd.Start(); err != nil {
		t.Fatal(err)
	}
	ended := make(chan error, 1)
	go func() {
		ended <- r.cmd.Wait()
		_ = listener.Close()
	}()
	t.Cleanup(func() {
		if r.conn != nil {
			_ = r.conn.Close()
		}
		err := <-ended
		if text, _ := os.ReadFile(r.log); err != nil || t.Failed() {
			t.Errorf("node %s: %v\n%s", name, err, text)
		}
	})
	if r.conn, err = listener.Accept(); err != nil {
		t.Fatalf("node %s doesn't connect: %v", name, err)
	}
	r.out, r.in = json.NewEncoder(r.conn), json.NewDecoder(r.conn)
}

func ask[T any](r *remoteNode, q request) (answer T) {
	r.t.Helper()
	err := r.out.Encode(q)
	if err == nil {
		err = r.in.Decode(&answer)
	}
	if err != nil {
		r.t.Fatalf("node %s of %d pods: %s: %v", r.agent, r.pods, q.Do, err)
	}
	return answer
}

func (o *orchestrator) turn(round int, f func(*remoteNode)) {
	order := slices.Clone(o.nodes)
	if round%2 == 1 {
		slices.Reverse(order)
	}
	for _, r := range order {
		f(r)
	}
}

func (o *orchestrator) record(r *remoteNode, row string, values ...float64) {
	o.runs.record(r.agent, r.pods, row, values)
}

func (o *orchestrator) recordStart(r *remoteNode, s started) {
	o.record(r, rowReady, s.Ready)
	o.record(r, rowAfterLists, s.AfterLists)
	o.record(r, rowRSS, s.Memory.RSS)
	o.record(r, rowAnonymous, s.Memory.Anonymous)
	o.record(r, rowPeak, s.Memory.Peak)
}

func (o *orchestrator) startAll() {
	dir := o.TempDir()
	for _, r := range o.nodes {
		r.launch(dir)
		s := ask[started](r, request{Do: "start"})
		o.recordStart(r, s)
		o.runs.Machine.IPTables = s.IPTables
		o.Logf("%s, %d pods: ready after %.2f s, %.2f s after the lists; RSS %.0f MB, peak %.0f", r.agent, r.pods, s.Ready,
			s.AfterLists, s.Memory.RSS, s.Memory.Peak)
		fills := ask[[]float64](r, request{Do: "fill"})
		o.record(r, rowFill, fills...)
		o.Logf("%s, %d pods: added %d pods", r.agent, r.pods, len(fills))
	}
}

func (o *orchestrator) restarts() {
	for i := range *restartsFlag {
		o.turn(i, func(r *remoteNode) { o.recordStart(r, ask[restarted](r, request{Do: "restart"}).started) })
	}
	if !*writesFlag {
		return
	}
	for _, r := range o.nodes {
		s := ask[restarted](r, request{Do: "restart", N: 1})
		sum := 0
		for _, k := range s.Writes {
			sum += k
		}
		o.record(r, rowWrites, float64(sum))
		o.Logf("%s, %d pods: a restart wrote %v", r.agent, r.pods, s.Writes)
	}
}

func (o *orchestrator) idle() {
	for range *windowsFlag {
		var wg sync.WaitGroup
		use := make([]cpuUse, len(o.nodes))
		for i, r := range o.nodes {
			wg.Go(func() { use[i] = ask[cpuUse](r, request{Do: "cpu", Seconds: *idleFlag}) })
		}
		wg.Wait()
		for i, r := range o.nodes {
			o.record(r, rowIdle, 100*use[i].Seconds/use[i].Wall)
		}
	}
}

// settle is how long a stream runs before a measurement begins.
const settle = 500 * time.Millisecond

func (o *orchestrator) latencies() {
	for round := range *roundsFlag {
		for _, rate := range append([]float64{0}, o.rates...) {
			o.turn(round, func(r *remoteNode) {
				if rate > 0 {
					ask[bool](r, request{Do: "stream", Rate: rate, Mix: *mixFlag})
					time.Sleep(settle)
				}
				o.record(r, rowADD.under(rate), ask[[]float64](r, request{Do: "add", N: 4})...)
				e := ask[effects](r, request{Do: "policy"})
				o.record(r, rowPolicy.under(rate), slices.Concat(e.Deny, e.Allow)...)
				o.record(r, rowPolicyDeny.under(rate), e.Deny...)
				e = ask[effects](r, request{Do: "peer"})
				o.record(r, rowPeer.under(rate), slices.Concat(e.Deny, e.Allow)...)
				o.record(r, rowPeerDeny.under(rate), e.Deny...)
				if rate > 0 {
					ask[bool](r, request{Do: "stream"})
				}
			})
		}
	}
}

func (o *orchestrator) windows() {
	for round := range *windowsFlag {
		for _, rate := range o.rates {
			o.turn(round, func(r *remoteNode) {
				use := o.window(r, rate, *mixFlag)
				o.record(r, rowCPU.under(rate), 100*use.Seconds/use.Wall)
				o.record(r, rowDecoding.under(rate), 100*use.Decoding/use.Wall)
				o.record(r, rowBytes, float64(use.Bytes)/float64(max(use.Events, 1)))
			})
		}
		o.turn(round, func(r *remoteNode) {
			use := o.window(r, meaninglessRate, "1:0:0")
			idle := o.runs.median(r.agent, r.pods, rowIdle) / 100 * use.Wall
			changes := float64(max(use.Changes, 1))
			o.record(r, rowMeaningless, 1000*(use.Seconds-idle)/changes)
			o.record(r, rowBeyond, 1000*(use.Seconds-idle-use.Decoding)/changes)
		})
		o.turn(round, func(r *remoteNode) {
			use := ask[cpuUse](r, request{Do: "toggle", Rate: 10, Seconds: *secondsFlag})
			o.record(r, rowToggle, 100*use.Seconds/use.Wall)
		})
	}
}

// meaninglessRate is the number of events per second in the measurement of events on which no policy depends.
const meaninglessRate = 1000

func (o *orchestrator) window(r *remoteNode, rate float64, mix string) cpuUse {
	use := ask[cpuUse](r, request{Do: "cpu", Rate: rate, Mix: mix, Seconds: *secondsFlag})
	if made := float64(use.Changes) / use.Wall; made < 0.9*rate {
		o.Logf("%s, %d pods: the machine is too busy for %.0f events/s: %.0f/s were made", r.agent, r.pods, rate, made)
	}
	return use
}

func (o *orchestrator) attacks() {
	for i, a := range cluster.Attacks {
		o.turn(i, func(r *remoteNode) {
			s := ask[attacked](r, request{Do: "attack", N: i, Rounds: *attackFlag})
			o.record(r, rowADD.attacked(""), s.ADD...)
			o.record(r, rowPolicyDeny.attacked(""), s.Deny...)
			o.record(r, rowADD.attacked(a.Name), s.ADDUnder...)
			o.record(r, rowPolicyDeny.attacked(a.Name), s.DenyUnder...)
			o.record(r, rowAttackMemory+a.Name, s.Memory.Peak)
			o.Logf("%s, %d pods, %s: ADD %.0f ms, denial %.0f ms, peak %.0f MB", r.agent, r.pods, a.Name, s.ADDUnder,
				s.DenyUnder, s.Memory.Peak)
		})
	}
}

func (o *orchestrator) finish() {
	for _, r := range o.nodes {
		m := ask[memory](r, request{Do: "memory"})
		o.record(r, rowRSSEnd, m.RSS)
		o.record(r, rowPeakEnd, m.Peak)
	}
	fmt.Print(o.runs.report())
	if *docsFlag != "" {
		o.write(filepath.Join(*docsFlag, "benchmarks", "scale.json"), o.runs.json())
		pictures := ""
		for _, c := range charts(o.runs) {
			o.write(filepath.Join(*docsFlag, "pictures", c.name+".svg"), []byte(c.svg()))
			pictures += fmt.Sprintf("![%s](pictures/%s.svg)\n\n", c.title, c.name)
		}
		o.writePage(sizeMarks, pictures+o.runs.report())
	}
}

func (o *orchestrator) writePage(m marks, part string) {
	o.Helper()
	if *docsFlag == "" {
		return
	}
	page := filepath.Join(*docsFlag, "benchmarks.md")
	text, err := os.ReadFile(page)
	if err != nil {
		o.Fatal(err)
	}
	written, err := m.between(string(text), part)
	if err != nil {
		o.Fatalf("%s: %v", page, err)
	}
	o.write(page, []byte(written))
}

func (o *orchestrator) write(path string, data []byte) {
	o.Helper()
	err := os.MkdirAll(filepath.Dir(path), 0o755)
	if err == nil {
		err = os.WriteFile(path, data, 0o644)
	}
	if err != nil {
		o.Fatal(err)
	}
}
