package main

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/containernetworking/cni/libcni"
	"github.com/containernetworking/cni/pkg/types"
	"github.com/containernetworking/cni/pkg/version"

	"github.com/weir-net/weir/test/nodetest"
)

var specVersions = []string{"0.3.1", "0.4.0", "1.0.0", "1.1.0"}

// verbs has the verbs of the specification. since is the first of specVersions that has the verb. required lists the
// variables that a call of the verb must have (CNI specification 1.1, "Section 2").
var verbs = map[string]struct {
	since    string
	required []string
}{
	"ADD":    {"0.3.1", []string{"CNI_CONTAINERID", "CNI_NETNS", "CNI_IFNAME", "CNI_PATH"}},
	"DEL":    {"0.3.1", []string{"CNI_CONTAINERID", "CNI_IFNAME", "CNI_PATH"}},
	"CHECK":  {"0.4.0", []string{"CNI_CONTAINERID", "CNI_NETNS", "CNI_IFNAME", "CNI_PATH"}},
	"GC":     {"1.1.0", []string{"CNI_PATH"}},
	"STATUS": {"1.1.0", []string{"CNI_PATH"}},
}

func knows(spec, verb string) bool {
	ok, _ := version.GreaterThanOrEqualTo(spec, verbs[verb].since)
	return ok
}

type answer struct {
	exit       int
	stdout     string
	CNIVersion string
	Code       uint
	Msg        string
}

func invoke(t *testing.T, n *nodetest.Node, env map[string]string, stdin string) answer {
	t.Helper()
	cmd := exec.Command(filepath.Join(n.Bin, "weir"))
	cmd.Stdin = strings.NewReader(stdin)
	cmd.Env = []string{"PATH=" + os.Getenv("PATH")}
	for k, v := range env {
		cmd.Env = append(cmd.Env, k+"="+v)
	}
	out, err := cmd.Output()
	var exit *exec.ExitError
	if err != nil && !errors.As(err, &exit) {
		t.Fatal(err)
	}
	a := answer{exit: cmd.ProcessState.ExitCode(), stdout: string(out)}
	if len(out) > 0 {
		if err := json.Unmarshal(out, &a); err != nil {
			t.Errorf("stdout is no JSON object: %v: %q", err, out)
		}
		if a.CNIVersion == "" {
			t.Errorf("the answer has no cniVersion: %s", out)
		}
	}
	if failed := a.exit != 0; failed != (a.Code != 0) || failed && (a.Msg == "" || a.Code == types.ErrInternal) {
		t.Errorf("exit code %d with error code %d: %s", a.exit, a.Code, out)
	}
	return a
}

func container(n *nodetest.Node, verb, id, netns string) map[string]string {
	return map[string]string{
		"CNI_COMMAND": verb, "CNI_CONTAINERID": id, "CNI_NETNS": netns, "CNI_IFNAME": "eth0", "CNI_PATH": n.Bin,
		"CNI_ARGS": nodetest.Args("ns-1", id, ""),
	}
}

// config returns a configuration with both families and without enforcement. Each string in more is a further JSON
// key with its value.
func config(spec string, more ...string) string {
	return fmt.Sprintf(`{"cniVersion": %q, "name": "weir", "type": "weir", "enforcement": "off", `+
		`"ranges": [{"subnet": "10.88.0.0/24"}, {"subnet": "fd00:10:88::/64"}]%s}`,
		spec, strings.Join(append([]string{""}, more...), ", "))
}

func TestConformanceOfBadCalls(t *testing.T) {
	if !nodetest.IsolatedWithWeir(t) {
		return
	}
	n := nodetest.NewNode(t, nil)
	netns := nodetest.NewNS(t, "pod")
	before := leftovers(t)
	type bad struct {
		name, stdin string
		env         map[string]string
		code        uint
		want        string // words that the error's message contains
		answers     string // the cniVersion of the answer
	}
	for verb, v := range verbs {
		full := container(n, verb, "c1", netns)
		with := func(key, value string) map[string]string {
			env := maps.Clone(full)
			env[key] = value
			return env
		}
		cases := []bad{
			{"no stdin", "", full, 6, "", "1.1.0"},
			{"stdin is no JSON", "{", full, 6, "", "1.1.0"},
			{"stdin is no object", "[]", full, 6, "", "1.1.0"},
			{"no name", `{"cniVersion": "1.1.0", "type": "weir"}`, full, 7, "name", "1.1.0"},
			{"a name that is none", `{"cniVersion": "1.1.0", "name": "../x", "type": "weir"}`, full, 7, "name", "1.1.0"},
			{"no version", `{"name": "weir", "type": "weir"}`, full, 1, "", "1.1.0"},
			{"a version of old", config("0.2.0"), full, 1, "", "0.2.0"},
			{"a version to come", config("9.9.9"), full, 1, "", "9.9.9"},
			{
				"the verb in small letters", config("1.0.0"), with("CNI_COMMAND", strings.ToLower(verb)), 4, "CNI_COMMAND",
				"1.0.0",
			},
		}
		if i := slices.Index(specVersions, v.since); i > 0 {
			cases = append(cases, bad{"a version before the verb", config(specVersions[i-1]), full, 1, "", specVersions[i-1]})
		}
		for _, key := range v.required {
			env := with(key, "")
			delete(env, key)
			cases = append(cases, bad{"no " + key, config("1.1.0"), env, 4, key, "1.1.0"},
				bad{"empty " + key, config("1.1.0"), with(key, ""), 4, key, "1.1.0"})
		}
		if slices.Contains(v.required, "CNI_IFNAME") {
			for _, name := range []string{"a/b", ".", "a-name-of-17-bytes", "a b", "a:b"} {
				cases = append(cases,
					bad{"CNI_IFNAME " + name, config("1.1.0"), with("CNI_IFNAME", name), 4, "CNI_IFNAME", "1.1.0"})
			}
			for _, id := range []string{"../x", ".", "a:b", "a b"} {
				cases = append(cases,
					bad{"CNI_CONTAINERID " + id, config("1.1.0"), with("CNI_CONTAINERID", id), 4, "CNI_CONTAINERID", "1.1.0"})
			}
		}
		cases = append(cases, bad{"a version that is none", config("one"), full, 1, "one", "1.1.0"})
		switch verb {
		case "ADD", "CHECK", "STATUS":
			cases = append(cases,
				bad{"a key that weir hasn't", config("1.1.0", `"rangs": 1`), full, 2, "rangs: 1", "1.1.0"},
				bad{"a value that can't be", config("1.1.0", `"mtu": 7`), full, 7, "mtu: 7", "1.1.0"})
		case "GC":
			cases = append(cases,
				bad{
					"a list that is none", config("1.1.0", `"cni.dev/valid-attachments": "c1"`), full,
					6, "cni.dev/valid-attachments", "1.1.0",
				},
				bad{
					"an attachment that is none", config("1.1.0", `"cni.dev/valid-attachments": [{"containerID": "c1"}]`), full,
					7, "cni.dev/valid-attachments", "1.1.0",
				})
		}
		if verb == "CHECK" {
			cases = append(cases, bad{"no prevResult", config("1.1.0"), full, 7, "prevResult", "1.1.0"},
				bad{
					"a container that isn't there", config("1.1.0", `"prevResult": {"cniVersion": "1.1.0"}`), full, 3, "c1:eth0",
					"1.1.0",
				})
		}
		for _, tc := range cases {
			t.Run(verb+" "+tc.name, func(t *testing.T) {
				got := invoke(t, n, tc.env, tc.stdin)
				if got.exit != 1 || got.Code != tc.code || got.CNIVersion != tc.answers || !strings.Contains(got.Msg, tc.want) {
					t.Errorf("exit code %d: %s; want 1 with code %d, cniVersion %s and %q", got.exit, got.stdout, tc.code, tc.answers,
						tc.want)
				}
			})
		}
	}
	if diff := leftBehind(t, before); diff != "" {
		t.Errorf("left behind: %s", diff)
	}
}

// TestConformance: in each version of the specification, the version's verbs work if they are called directly,
// through libcni and through cnitool.
func TestConformance(t *testing.T) {
	if !nodetest.IsolatedWithWeir(t) {
		return
	}
	n := nodetest.NewNode(t, nil)
	for i, spec := range specVersions {
		t.Run(spec, func(t *testing.T) {
			netns := nodetest.NewNS(t, fmt.Sprint("pod", i))
			clean := func(when string) {
				t.Helper()
				if left := leftovers(t); len(left) > 0 {
					t.Errorf("left after %s: %q", when, left)
				}
			}
			byHand(t, n, spec, netns)
			clean("the plugin's own")
			byLibcni(t, n, spec, netns)
			clean("libcni")
			byCnitool(t, n, spec, netns)
			clean("cnitool")
		})
	}
	t.Run("without a verb", func(t *testing.T) { // a person may run the program like this, to see what it is
		cmd := exec.Command(filepath.Join(n.Bin, "weir"))
		cmd.Stdin = os.Stdin
		var stdout, stderr bytes.Buffer
		cmd.Stdout, cmd.Stderr = &stdout, &stderr
		if err := cmd.Run(); err != nil || stdout.Len() > 0 || !strings.Contains(stderr.String(), "1.1.0") {
			t.Errorf("%v, stdout %q, stderr %q; want its versions on stderr", err, &stdout, &stderr)
		}
	})
}

func byHand(t *testing.T, n *nodetest.Node, spec, netns string) {
	t.Helper()
	silent := func(verb, stdin string) {
		t.Helper()
		if got := invoke(t, n, container(n, verb, "c1", netns), stdin); got.exit != 0 || got.stdout != "" {
			t.Errorf("%s: exit code %d: %s; want 0 and nothing on stdout", verb, got.exit, got.stdout)
		}
	}
	v := invoke(t, n, map[string]string{"CNI_COMMAND": "VERSION"}, `{"cniVersion": "`+spec+`"}`)
	if v.exit != 0 || v.CNIVersion != spec || !strings.Contains(v.stdout, "supportedVersions") {
		t.Errorf("VERSION: exit code %d: %s", v.exit, v.stdout)
	}
	for _, s := range specVersions {
		if !strings.Contains(v.stdout, `"`+s+`"`) {
			t.Errorf("VERSION lacks %s: %s", s, v.stdout)
		}
	}
	a := invoke(t, n, container(n, "ADD", "c1", netns), config(spec))
	if a.exit != 0 || a.CNIVersion != spec {
		t.Fatalf("ADD: exit code %d: %s", a.exit, a.stdout)
	}
	var result struct {
		Interfaces []struct{ Name, Sandbox string }
		IPs        []struct {
			Version, Address, Gateway string
			Interface                 *int
		}
		Routes []struct{ Dst, GW string }
	}
	if err := json.Unmarshal([]byte(a.stdout), &result); err != nil {
		t.Fatal(err)
	}
	if len(result.IPs) != 2 || len(result.Interfaces) != 3 || result.Interfaces[2].Sandbox != netns ||
		len(result.Routes) != 2 {
		t.Errorf("ADD: %s", a.stdout)
	}
	for _, ip := range result.IPs { // before 1.0.0 each IP has its family in the field Version
		if ip.Interface == nil || *ip.Interface != 2 || (ip.Version == "") != (spec >= "1.0.0") {
			t.Errorf("ADD: %+v", ip)
		}
	}
	if again := invoke(t, n, container(n, "ADD", "c1", netns), config(spec)); again.Code != 4 {
		t.Errorf("ADD again: exit code %d: %s; want code 4", again.exit, again.stdout)
	}
	prev := `"prevResult": ` + a.stdout
	if knows(spec, "CHECK") {
		silent("CHECK", config(spec, prev))
	}
	if knows(spec, "GC") {
		silent("STATUS", config(spec))
		for _, key := range []string{"cni.dev/valid-attachments", "cni.dev/attachments"} {
			silent("GC", config(spec, `"`+key+`": [{"containerID": "c1", "ifname": "eth0"}]`))
			silent("CHECK", config(spec, prev))
		}
		silent("GC", config(spec, `"cni.dev/valid-attachments": []`))
		if got := invoke(t, n, container(n, "CHECK", "c1", netns), config(spec, prev)); got.Code != 3 {
			t.Errorf("CHECK after GC: %s; want code 3", got.stdout)
		}
	}
	silent("DEL", config(spec, prev))
	silent("DEL", config(spec)) // DEL again, without prevResult, which may be lost
	silent("DEL", `{"cniVersion": "`+spec+`", "name": "weir", "type": "weir", "ranges": "broken since"}`)
}

func byLibcni(t *testing.T, n *nodetest.Node, spec, netns string) {
	t.Helper()
	ctx := context.Background()
	list, err := libcni.NetworkConfFromBytes([]byte(fmt.Sprintf(
		`{"cniVersion": "0.3.1", "cniVersions": ["0.3.1", %q], "name": "weir", "plugins": [%s, {"type": "portmap", `+
			`"capabilities": {"portMappings": true}}]}`,
		spec, config(spec))))
	if err != nil {
		t.Fatal(err)
	}
	if list.CNIVersion != spec {
		t.Fatalf("libcni speaks %s", list.CNIVersion)
	}
	cni := libcni.NewCNIConfigWithCacheDir([]string{n.Bin}, t.TempDir(), nil)
	runtime := func(id string) *libcni.RuntimeConf {
		return &libcni.RuntimeConf{
			ContainerID: id,
			NetNS:       netns,
			IfName:      "eth0",
			Args:        [][2]string{{"K8S_POD_NAMESPACE", "ns-1"}, {"K8S_POD_NAME", id}},
			CapabilityArgs: map[string]any{
				"portMappings": []map[string]any{{"hostPort": 8080, "containerPort": 80, "protocol": "tcp"}},
			},
		}
	}
	must := func(verb string, err error) {
		t.Helper()
		if err != nil {
			t.Errorf("%s through libcni: %v", verb, err)
		}
	}
	_, err = cni.ValidateNetworkList(ctx, list)
	must("VERSION", err)
	r, err := cni.AddNetworkList(ctx, list, runtime("c1"))
	must("ADD", err)
	if r == nil || r.Version() != spec {
		t.Fatalf("ADD through libcni: %v", r)
	}
	if err := cni.CheckNetworkList(ctx, list, runtime("c1")); (err == nil) != knows(spec, "CHECK") {
		t.Errorf("CHECK through libcni: %v", err)
	}
	must("STATUS", cni.GetStatusNetworkList(ctx, list))
	valid := &libcni.GCArgs{ValidAttachments: []types.GCAttachment{{ContainerID: "c1", IfName: "eth0"}}}
	must("GC", cni.GCNetworkList(ctx, list, valid))
	if left := leftovers(t); len(left) == 0 {
		t.Error("GC through libcni took a valid attachment away")
	}
	must("DEL", cni.DelNetworkList(ctx, list, runtime("c1")))
	must("DEL again", cni.DelNetworkList(ctx, list, runtime("c1")))
	if knows(spec, "GC") { // libcni's cache doesn't have c2, so only the plugin's GC removes c2
		_, err := libcni.NewCNIConfigWithCacheDir([]string{n.Bin}, t.TempDir(), nil).AddNetworkList(ctx, list, runtime("c2"))
		must("ADD", err)
		must("GC", cni.GCNetworkList(ctx, list, &libcni.GCArgs{}))
	}
}

func byCnitool(t *testing.T, n *nodetest.Node, spec, netns string) {
	t.Helper()
	list := fmt.Sprintf(`{"cniVersion": %q, "name": "weir", "plugins": [%s]}`, spec, config(spec))
	if err := os.WriteFile(filepath.Join(n.ConfDir, "10-weir.conflist"), []byte(list), 0o600); err != nil {
		t.Fatal(err)
	}
	for _, verb := range []string{"add", "check", "status", "gc", "add", "check", "del", "del"} {
		known := verb != "check" || knows(spec, "CHECK")
		if _, err := n.CNI(verb, netns, nodetest.Args("ns-1", "c1", "")); (err == nil) != known {
			t.Errorf("%v", err)
		}
		if verb == "gc" {
			if left := leftovers(t); len(left) > 0 {
				t.Errorf("left after cnitool's gc: %q", left)
			}
		}
	}
}
