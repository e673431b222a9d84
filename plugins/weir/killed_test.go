package main

import (
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"math/rand/v2"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/weir-net/weir/bridge"
	"github.com/weir-net/weir/endpoint"
	"github.com/weir-net/weir/test/nodetest"
)

// For a longer run: go test ./plugins/weir -run TestKilled -kills 1000 -v
var kills = flag.Int("kills", 60, "how often TestKilled… kill the plugin")

// killer calls the plugin, and kills most calls at a random moment.
type killer struct {
	*nodetest.Node
	conf string // the plugin's configuration without its last brace

	mu     sync.Mutex
	rnd    *rand.Rand
	usual  map[string]time.Duration // how long a call of each verb takes if it isn't killed
	killed map[string]int
	made   int // the number of containers and namespaces made so far
}

type slot struct {
	id, netns string
	address   string // set when ADD has answered, and "" again when DEL is called
	begun     bool   // ADD or DEL was called and hasn't succeeded
}

func (k *killer) total() (n int) {
	for _, m := range k.killed {
		n += m
	}
	return n
}

func (k *killer) chance(n int) int {
	k.mu.Lock()
	defer k.mu.Unlock()
	return k.rnd.IntN(n)
}

// when returns the time after which a call of the verb is to be killed; 0 if the call isn't to be killed.
func (k *killer) when(verb string) time.Duration {
	k.mu.Lock()
	defer k.mu.Unlock()
	usual, ok := k.usual[verb]
	if !ok || k.rnd.IntN(5) == 0 {
		return 0
	}
	return 1 + time.Duration(k.rnd.Int64N(int64(usual)))
}

// call runs the plugin. If kill isn't 0, call kills the plugin after this time. done is true if the plugin
// succeeded. If the plugin fails without being killed, the test fails.
func (k *killer) call(verb string, s slot, more string, kill time.Duration) (out string, done bool) {
	cmd := exec.Command(filepath.Join(k.Bin, "weir"))
	cmd.Stdin = strings.NewReader(k.conf + more + "}")
	for key, value := range container(k.Node, verb, s.id, s.netns) {
		cmd.Env = append(cmd.Env, key+"="+value)
	}
	var stdout strings.Builder
	cmd.Stdout = &stdout
	began := time.Now()
	if err := cmd.Start(); err != nil {
		k.Error(err)
		return "", false
	}
	if kill > 0 {
		timer := time.AfterFunc(kill, func() { _ = cmd.Process.Kill() })
		defer timer.Stop()
	}
	err := cmd.Wait()
	k.mu.Lock()
	defer k.mu.Unlock()
	var exit *exec.ExitError
	switch {
	case err == nil:
		k.usual[verb] = (3*k.usual[verb] + time.Since(began)) / 4
		if k.usual[verb] < time.Millisecond {
			k.usual[verb] = time.Since(began)
		}
		return stdout.String(), true
	case errors.As(err, &exit) && exit.ExitCode() == -1:
		k.killed[verb]++
	default:
		k.Errorf("%s of %s: %v: %s", verb, s.id, err, &stdout)
	}
	return "", false
}

func (k *killer) fresh() slot {
	k.mu.Lock()
	k.made++
	id := fmt.Sprint("c", k.made)
	k.mu.Unlock()
	return slot{id: id, netns: nodetest.NewNS(k, id)}
}

func (k *killer) step(s *slot) {
	switch {
	case s.begun: // a runtime then calls DEL, unless the runtime was killed too
		if k.chance(3) == 0 {
			*s = k.fresh()
		} else if _, done := k.call("DEL", *s, "", k.when("DEL")); done {
			*s = k.fresh()
		}
	case s.address == "":
		s.begun = true
		out, done := k.call("ADD", *s, "", k.when("ADD"))
		if !done {
			return
		}
		var result struct{ IPs []struct{ Address string } }
		if err := json.Unmarshal([]byte(out), &result); err != nil || len(result.IPs) == 0 {
			k.Errorf("ADD printed %q: %v", out, err)
			return
		}
		s.begun, s.address = false, result.IPs[0].Address
	case k.chance(3) == 0: // the container continues to run
	case k.chance(4) == 0: // the namespace is removed, and no runtime calls DEL
		nodetest.DelNS(k, s.netns)
		*s = k.fresh()
	default:
		s.address, s.begun = "", true
		if _, done := k.call("DEL", *s, "", k.when("DEL")); done {
			*s = k.fresh()
		}
	}
}

// running returns the slots with running containers. valid is GC's key cni.dev/valid-attachments with these
// containers.
func running(slots []*slot) (all []*slot, valid string) {
	var list []string
	for _, s := range slots {
		if s.address != "" {
			all = append(all, s)
			list = append(list, fmt.Sprintf(`{"containerID": %q, "ifname": "eth0"}`, s.id))
		}
	}
	return all, `, "cni.dev/valid-attachments": [` + strings.Join(list, ", ") + "]"
}

func (k *killer) intact(slots []*slot) {
	k.Helper()
	all, _ := running(slots)
	seen := map[string]string{}
	there := strings.Join(leftovers(k), "\n")
	for _, s := range all {
		if other := seen[s.address]; other != "" {
			k.Errorf("%s is %s's and %s's", s.address, other, s.id)
		}
		seen[s.address] = s.id
		ip, _, _ := strings.Cut(s.address, "/")
		id := endpoint.ID(s.id, "eth0")
		for _, want := range []string{
			"endpoints/" + id + ".json\n", "addresses/" + ip + "\n", "link " + bridge.PortName(id) + "@", "neigh " + ip + " ",
			`comment "ns-1/` + s.id + `"`, `"` + bridge.PortName(id) + `"`,
		} {
			if !strings.Contains(there+"\n", want) {
				k.Errorf("%s runs, and has lost %q", s.id, want)
			}
		}
	}
}

func (k *killer) run(t *testing.T) {
	before := leftovers(t)
	slots := make([]*slot, 6)
	for i := range slots {
		s := k.fresh()
		slots[i] = &s
	}
	for k.total() < *kills && !t.Failed() {
		var wg sync.WaitGroup
		for _, s := range slots {
			wg.Go(func() { k.step(s) })
		}
		wg.Wait()
		if k.chance(3) == 0 { // a runtime calls GC when no other call is running
			_, valid := running(slots)
			k.call("GC", slot{}, valid, k.when("GC"))
			k.intact(slots)
		}
	}
	k.intact(slots)
	all, valid := running(slots)
	for range 2 {
		if _, done := k.call("GC", slot{}, valid, 0); !done {
			t.Error("GC failed")
		}
		k.intact(slots)
	}
	if records, err := filepath.Glob("/run/weir/endpoints/*"); err != nil || len(records) != len(all) {
		t.Errorf("%d run, and these records are there: %q, %v", len(all), records, err)
	}
	k.call("GC", slot{}, `, "cni.dev/valid-attachments": []`, 0)
	k.Eventually("nothing is left", func() error { // entries in the agent's sets must be gone too
		if diff := leftBehind(t, before); diff != "" {
			return fmt.Errorf("before and after: %s", diff)
		}
		return nil
	})
	t.Logf("killed %v of the calls for %d containers, of which %d ran at the end", k.killed, k.made, len(all))
}

func newKiller(t *testing.T, enforcement string) *killer {
	seed := uint64(time.Now().UnixNano())
	t.Logf("seed %d", seed)
	n := nodetest.NewNode(t, nil)
	return &killer{
		Node: n, rnd: rand.New(rand.NewPCG(seed, 0)), usual: map[string]time.Duration{}, killed: map[string]int{},
		conf: `{"cniVersion": "1.1.0", "name": "weir", "type": "weir", "enforcement": "` + enforcement +
			`", "ranges": [{"subnet": "10.88.0.0/24"}, {"subnet": "fd00:10:88::/64"}]`,
	}
}

// TestKilled: if calls are killed while no agent runs, later calls of the plugin repair what is left.
func TestKilled(t *testing.T) {
	if !nodetest.IsolatedWithWeir(t) {
		return
	}
	newKiller(t, "closed").run(t)
}

// TestKilledBesideAnAgent: an agent removes the attachments whose namespaces are gone. While calls of the plugin are
// killed, the agent removes no attachment in use.
func TestKilledBesideAnAgent(t *testing.T) {
	if !nodetest.IsolatedWithWeir(t) {
		return
	}
	k := newKiller(t, "strict")
	var manifests strings.Builder
	manifests.WriteString(cluster)
	for i := range 2**kills + 100 {
		fmt.Fprintf(&manifests, "---\napiVersion: v1\nkind: Pod\nmetadata: {name: c%d, namespace: ns-1}\n", i)
	}
	k.Manifest("cluster.yaml", manifests.String())
	k.StartAgent()
	k.run(t)
}

// TestAfterAReboot: after a reboot, DEL and GC for an old pod succeed, and the next pod gets other addresses.
func TestAfterAReboot(t *testing.T) {
	if !nodetest.IsolatedWithWeir(t) {
		return
	}
	n := nodetest.NewNode(t, nil)
	netns := nodetest.NewNS(t, "pod")
	var addresses []string
	add := func(id string) {
		t.Helper()
		a := invoke(t, n, container(n, "ADD", id, netns), strings.Replace(config("1.1.0"), `"off"`, `"closed"`, 1))
		if a.exit != 0 {
			t.Fatal(a.stdout)
		}
		var result struct{ IPs []struct{ Address string } }
		if err := json.Unmarshal([]byte(a.stdout), &result); err != nil {
			t.Fatal(err)
		}
		addresses = append(addresses, result.IPs[0].Address, result.IPs[1].Address)
	}
	add("old")
	// As after a reboot: weir's links, rules and sets and /run/weir are gone.
	nodetest.Run(t, "sh", "-ec", `for link in $(ip -br link | grep -o "^weir[^@ ]*"); do ip link del $link; done
		nft flush ruleset; ipset destroy; rm -rf /run/weir`)
	if left := leftovers(t); len(left) > 0 {
		t.Fatalf("left of the old life: %q", left)
	}
	for _, verb := range []string{"DEL", "GC"} { // kubelet and other programs ask for these calls after a reboot
		if a := invoke(t, n, container(n, verb, "old", ""), config("1.1.0")); a.exit != 0 || a.stdout != "" {
			t.Errorf("%s: %s", verb, a.stdout)
		}
	}
	add("new")
	if slices.Contains(addresses[2:], addresses[0]) || slices.Contains(addresses[2:], addresses[1]) {
		t.Errorf("addresses %q: one goes to the next pod at once, whom other nodes may still take for the old one", addresses)
	}
	if held, err := filepath.Glob("/run/weir/addresses/*"); err != nil || len(held) != 2 {
		t.Errorf("held: %q, %v; want the new pod's", held, err)
	}
}
