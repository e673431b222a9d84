package nodetest

import (
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"
)

const (
	binEnv = "WEIR_NODETEST_BIN"
	// programsEnv names a directory with weir, weir-agent and weirctl. If it is set, tests run these programs.
	programsEnv = "WEIR_PROGRAMS"
	// shippedEnv makes tests build weir-agent without the race detector.
	shippedEnv = "WEIR_NODETEST_AS_SHIPPED"
)

var build = sync.OnceValues(func() (string, error) {
	dir, err := os.MkdirTemp("", "weir-test-bin-")
	if err != nil {
		return "", err
	}
	return dir, errors.Join(buildWeir(dir), goBuild(dir, "-trimpath", "-ldflags=-s -w",
		"github.com/containernetworking/cni/cnitool", "github.com/containernetworking/plugins/plugins/meta/portmap"))
})

func buildWeir(dir string) error {
	if given := os.Getenv(programsEnv); given != "" {
		var errs []error
		for _, name := range []string{"weir", "weir-agent", "weirctl"} {
			program, err := filepath.Abs(filepath.Join(given, name))
			if err == nil {
				_, err = os.Stat(program)
			}
			errs = append(errs, err, os.Symlink(program, filepath.Join(dir, name)))
		}
		return errors.Join(errs...)
	}
	agent := []string{"github.com/weir-net/weir/plugins/weir-agent"}
	if raceDetector && os.Getenv(shippedEnv) == "" {
		agent = append([]string{"-race"}, agent...)
	}
	return errors.Join(goBuild(dir, "-trimpath", "-ldflags=-s -w",
		"github.com/weir-net/weir/plugins/weir", "github.com/weir-net/weir/plugins/weirctl"), goBuild(dir, agent...))
}

var official = struct {
	sync.Mutex
	built map[string]bool
}{built: map[string]bool{}}

// buildOfficial builds plugins of github.com/containernetworking/plugins, by names such as "main/ptp".
func buildOfficial(dir string, names []string) error {
	official.Lock()
	defer official.Unlock()
	var packages []string
	for _, name := range names {
		if !official.built[name] {
			packages = append(packages, "github.com/containernetworking/plugins/plugins/"+name)
			official.built[name] = true
		}
	}
	if len(packages) == 0 {
		return nil
	}
	return goBuild(dir, append([]string{"-trimpath", "-ldflags=-s -w"}, packages...)...)
}

func goBuild(dir string, args ...string) error {
	if out, err := exec.Command("go", append([]string{"build", "-o", dir}, args...)...).CombinedOutput(); err != nil {
		return fmt.Errorf("go build %s: %w\n%s", args, err, out)
	}
	return nil
}

// Main is the TestMain of packages with tests that use a Node. It removes the programs that were built for the tests.
func Main(m *testing.M) {
	code := m.Run()
	if os.Getenv(inside) == "" {
		if dir, err := build(); err == nil {
			_ = os.RemoveAll(dir)
		}
	}
	os.Exit(code)
}

// MainAsShipped is like Main, but weir-agent is built without the race detector, which would make it several times
// slower.
func MainAsShipped(m *testing.M) {
	if err := os.Setenv(shippedEnv, "1"); err != nil {
		panic(err)
	}
	Main(m)
}

// IsolatedWithWeir is like Isolated, for tests that run weir's programs and the named plugins of the CNI project.
func IsolatedWithWeir(t *testing.T, plugins ...string) bool {
	t.Helper()
	if os.Getenv(inside) == "" {
		dir, err := build()
		if err == nil {
			err = buildOfficial(dir, plugins)
		}
		if err != nil {
			t.Fatal(err)
		}
		if err := os.Setenv(binEnv, dir); err != nil {
			t.Fatal(err)
		}
	}
	return Isolated(t)
}

// Node is a node on which weir is installed, with a CNI configuration of weir and portmap, a directory of manifests,
// and a host outside of the cluster.
type Node struct {
	testing.TB
	Bin       string
	ConfDir   string
	Manifests string
	Outside   string // path of the network namespace at the other end of the node's uplink
	agent     *exec.Cmd
	agentLog  *os.File
}

// Conf is a plugin's part of the CNI configuration, or an object in it.
type Conf map[string]any

// NewNode installs weir on the test's own node. Keys of conf replace keys of the plugin's configuration.
func NewNode(t testing.TB, conf Conf) *Node {
	t.Helper()
	n := &Node{TB: t, Bin: os.Getenv(binEnv), ConfDir: t.TempDir(), Manifests: t.TempDir(), Outside: Outside(t)}
	n.Configure(conf)
	return n
}

// Configure writes a CNI configuration of weir and portmap. weir has the range 10.88.0.0/24, unless conf replaces it.
func (n *Node) Configure(conf Conf) {
	n.Helper()
	plugin := Conf{"type": "weir", "ranges": []any{Conf{"subnet": "10.88.0.0/24"}}}
	for k, v := range conf {
		plugin[k] = v
	}
	n.ConfigureList(plugin, Conf{"type": "portmap", "capabilities": Conf{"portMappings": true}})
}

// ConfigureList writes a CNI configuration of these plugins, in this order.
func (n *Node) ConfigureList(plugins ...Conf) {
	n.Helper()
	list, err := json.Marshal(Conf{"cniVersion": "1.0.0", "name": "weir", "plugins": plugins})
	if err == nil {
		err = os.WriteFile(filepath.Join(n.ConfDir, "10-weir.conflist"), list, 0o600)
	}
	if err != nil {
		n.Fatal(err)
	}
}

// StartAgent starts weir-agent, and waits until it is ready.
func (n *Node) StartAgent() {
	n.Helper()
	n.SpawnAgent()
	n.Eventually("the agent is ready", func() error {
		_, err := n.Ctl("status")
		return err
	})
}

func (n *Node) Ctl(args ...string) (string, error) {
	out, err := exec.Command(filepath.Join(n.Bin, "weirctl"), args...).CombinedOutput()
	if err != nil {
		err = fmt.Errorf("weirctl %s: %w: %s", strings.Join(args, " "), err, out)
	}
	return string(out), err
}

const backendEnv = "WEIR_BACKEND"

func withBackend(flags []string) []string {
	named := slices.ContainsFunc(flags, func(f string) bool { return strings.HasPrefix(f, "--backend") })
	if b := os.Getenv(backendEnv); b != "" && !named {
		return append(slices.Clip(flags), "--backend="+b)
	}
	return flags
}

// SpawnAgent starts weir-agent, and doesn't wait until it is ready. Without flags, the agent reads the node's
// manifests. If the agent has a data race, the test fails.
func (n *Node) SpawnAgent(flags ...string) {
	n.Helper()
	if len(flags) == 0 {
		flags = []string{"--source", "dir:" + n.Manifests}
	}
	log, err := os.OpenFile(filepath.Join(n.TempDir(), "agent.log"), os.O_CREATE|os.O_APPEND|os.O_RDWR, 0o600)
	if err != nil {
		n.Fatal(err)
	}
	n.agentLog = log
	n.agent = exec.Command(filepath.Join(n.Bin, "weir-agent"), append([]string{"run"}, withBackend(flags)...)...)
	n.agent.Stderr = log
	n.agent.Env = append(os.Environ(), "GORACE=halt_on_error=1")
	if err := n.agent.Start(); err != nil {
		n.Fatal(err)
	}
	n.Cleanup(func() {
		n.KillAgent()
		if n.Failed() {
			n.Logf("weir-agent said:\n%s", n.AgentLog())
		}
		if strings.Contains(n.AgentLog(), "DATA RACE") {
			n.Errorf("weir-agent has a data race:\n%s", n.AgentLog())
		}
	})
}

// AgentPID returns the agent's process ID. It panics if no agent runs.
func (n *Node) AgentPID() int { return n.agent.Process.Pid }

// AgentLog returns the log of the agent that was started last.
func (n *Node) AgentLog() string {
	n.Helper()
	data, err := os.ReadFile(n.agentLog.Name())
	if err != nil {
		n.Fatal(err)
	}
	return string(data)
}

// KillAgent ends the agent at once, as a crash does.
func (n *Node) KillAgent() { n.signal(syscall.SIGKILL) }

// StopAgent ends the agent with SIGTERM, as kubelet does. The agent's exit code must be 0.
func (n *Node) StopAgent() { n.signal(syscall.SIGTERM) }

func (n *Node) signal(s os.Signal) {
	n.Helper()
	if n.agent == nil {
		return
	}
	if err := n.agent.Process.Signal(s); err != nil {
		n.Fatalf("end the agent: %v", err)
	}
	err := n.agent.Wait()
	n.agent = nil
	var exit *exec.ExitError
	if s == syscall.SIGTERM && err != nil || err != nil && !errors.As(err, &exit) {
		n.Errorf("weir-agent: %v", err)
	}
}

// Manifest writes a manifest in one step. If the text is empty, it removes the manifest.
func (n *Node) Manifest(name, text string) {
	n.Helper()
	path := filepath.Join(n.Manifests, name)
	var err error
	if text == "" {
		err = os.Remove(path)
	} else if err = os.WriteFile(path+".tmp", []byte(text), 0o600); err == nil {
		err = os.Rename(path+".tmp", path)
	}
	if err != nil {
		n.Fatal(err)
	}
}
