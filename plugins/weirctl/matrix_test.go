package main

import (
	"bytes"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/spf13/cobra"

	"github.com/weir-net/weir/plugins/weirctl/client"
)

const shop = `
{kind: Namespace, apiVersion: v1, metadata: {name: shop}}
---
{kind: Pod, apiVersion: v1, metadata: {name: web-0, namespace: shop, labels: {app: web}}, status: {podIP: 10.0.0.2}}
---
{kind: Pod, apiVersion: v1, metadata: {name: web-1, namespace: shop, labels: {app: web}}, status: {podIP: 10.0.0.3}}
---
kind: Pod
apiVersion: v1
metadata: {name: db, namespace: shop, labels: {app: db}}
spec: {containers: [{name: db, ports: [{name: sql, containerPort: 5432}]}]}
status: {podIP: 10.0.0.4}
---
{kind: Pod, apiVersion: v1, metadata: {name: spy, namespace: other}, status: {podIP: 10.0.0.5}}
---
{kind: Service, apiVersion: v1, metadata: {name: db, namespace: shop},
 spec: {selector: {app: db}, ports: [{port: 5000, targetPort: sql}]}}
---
kind: NetworkPolicy
apiVersion: networking.k8s.io/v1
metadata: {name: db, namespace: shop}
spec:
  podSelector: {matchLabels: {app: db}}
  policyTypes: [Ingress, Egress]
  ingress: [{from: [{podSelector: {matchLabels: {app: web}}}], ports: [{port: sql}]}]
  egress: [{to: [{ipBlock: {cidr: 192.0.2.0/24}}], ports: [{port: 53, protocol: UDP}]}]
`

const wider = `
kind: NetworkPolicy
apiVersion: networking.k8s.io/v1
metadata: {name: db, namespace: shop}
spec:
  podSelector: {matchLabels: {app: db}}
  ingress: [{from: [{namespaceSelector: {matchLabels: {kubernetes.io/metadata.name: other}}}]}]
`

func execute(t *testing.T, cmd *cobra.Command, stdin string, args ...string) (out, errs string, code int) {
	t.Helper()
	dir := t.TempDir()
	if err := os.WriteFile(filepath.Join(dir, "shop.yaml"), []byte(shop), 0o600); err != nil {
		t.Fatal(err)
	}
	var stdout, stderr bytes.Buffer
	cmd.SetOut(&stdout)
	cmd.SetErr(&stderr)
	cmd.SetIn(strings.NewReader(stdin))
	cmd.SilenceUsage, cmd.SilenceErrors = true, true
	cmd.SetArgs(append([]string{"--source", "dir:" + dir}, args...))
	code, text := client.Code(cmd.ExecuteContext(t.Context()))
	return stdout.String(), stderr.String() + text, code
}

func TestMatrixCommand(t *testing.T) {
	for _, tc := range []struct {
		args []string
		want string
	}{
		{nil, `the cluster: 4 pods in 3 groups, the world in 2 regions, 1 policy

FROM                                     TO                 PORTS       SERVICES
shop/web (2 pods), the world             other/spy          everything
shop/web (2 pods)                        shop/db            TCP 5432    shop/db:5000
other/spy, shop/web (2 pods), the world  shop/web (2 pods)  everything
other/spy, shop/web (2 pods)             the world          everything
shop/db                                  192.0.2.0/24       UDP 53
`},
		{[]string{"--to", "shop/d*", "--port", "5000-6000"}, `the cluster, to shop/d*, port 5000-6000: ` +
			`4 pods in 3 groups, the world in 2 regions, 1 policy

FROM               TO       PORTS     SERVICES
shop/web (2 pods)  shop/db  TCP 5432  shop/db:5000
`},
		{[]string{"-n", "shop", "--port", "53/udp", "--to", "192.0.2.7"}, `namespace shop, to 192.0.2.7, port 53/udp: ` +
			`4 pods in 3 groups, the world in 2 regions, 1 policy

FROM              TO            PORTS
all pods in shop  192.0.2.0/24  UDP 53
`},
		{[]string{"--from", "world", "--to", "shop/db"}, `the cluster, from world, to shop/db: ` +
			`4 pods in 3 groups, the world in 2 regions, 1 policy

No connection is possible.
`},
	} {
		out, errs, code := execute(t, matrixCommand(), "", tc.args...)
		if diff := cmp.Diff(tc.want, out); diff != "" || errs != "" || code != 0 {
			t.Errorf("%v: %d, %s\n%s\n%s", tc.args, code, errs, diff, out)
		}
	}
}

func TestDiffCommand(t *testing.T) {
	changes := `The change replaces NetworkPolicy shop/db.

Opens (from, to, ports):
+  shop/db    all pods, 0.0.0.0/0 (except 192.0.2.0/24)  everything
+  other/spy  shop/db                                    everything             shop/db:5000
+  shop/db    192.0.2.0/24                               everything but UDP 53

Closes (from, to, ports):
-  shop/web (2 pods)  shop/db  TCP 5432  shop/db:5000
`
	labels := "{kind: Pod, apiVersion: v1, metadata: {name: spy, namespace: other, labels: {app: web}}}"
	for _, tc := range []struct {
		stdin string
		args  []string
		code  int
		want  string
	}{
		{wider, []string{"-f", "-"}, client.ExitChanges, changes},
		{wider, []string{"-f", "-", "--fail-on", "never"}, client.ExitOK, changes},
		{wider, []string{"-f", "-", "--fail-on", "closes", "--from", "other/*"}, client.ExitOK, "" +
			`The change replaces NetworkPolicy shop/db.

Opens (from, to, ports):
+  other/spy  shop/db  everything  shop/db:5000
`},
		{
			labels,
			[]string{"-f", "-"},
			client.ExitOK,
			"The change replaces Pod other/spy.\n\nNo connection opens or closes.\n",
		},
		{"", []string{"--delete", "shop/db", "--port", "22", "--to", "world"}, client.ExitChanges, "" +
			`The change deletes NetworkPolicy shop/db.

Opens (from, to, ports):
+  shop/db  the world  TCP 22
`},
	} {
		out, errs, code := execute(t, diffCommand(), tc.stdin, tc.args...)
		if diff := cmp.Diff(tc.want, out); diff != "" || errs != "" || code != tc.code {
			t.Errorf("%v: %d, %s\n%s\n%s", tc.args, code, errs, diff, out)
		}
	}
}

// TestIdlePolicy: if a policy selects no pod, diff prints a note.
func TestIdlePolicy(t *testing.T) {
	text := "{kind: NetworkPolicy, apiVersion: networking.k8s.io/v1, metadata: {name: db}, spec: {podSelector: {}}}"
	out, errs, code := execute(t, diffCommand(), text, "-f", "-")
	if code != 0 || !strings.Contains(out, "adds NetworkPolicy default/db") ||
		errs != "weirctl: note: NetworkPolicy default/db selects no pod that exists; a manifest without a namespace counts "+
			"for the namespace default\n" {
		t.Errorf("%d, %q\n%s", code, errs, out)
	}
}

// TestDiffNamesUnenforcedPolicies: if the file also has objects that diff can compare, a note names the policy that
// weir doesn't enforce. If the file has only this policy, diff fails, and the error names it.
func TestDiffNamesUnenforcedPolicies(t *testing.T) {
	const cluster = "{kind: ClusterNetworkPolicy, apiVersion: policy.networking.k8s.io/v1alpha2, metadata: {name: c}}"
	const isNotEnforced = "ClusterNetworkPolicy.policy.networking.k8s.io is a kind of policy that weir doesn't enforce: " +
		"ClusterNetworkPolicy c"
	for _, tc := range []struct {
		text, want string
		code       int
	}{
		{wider + "\n---\n" + cluster, "weirctl: note: " + isNotEnforced + "\n", client.ExitChanges},
		{cluster, "-f -: there is no object that policies depend on; " + isNotEnforced, client.ExitError},
	} {
		_, errs, code := execute(t, diffCommand(), tc.text, "-f", "-")
		if code != tc.code || errs != tc.want {
			t.Errorf("%s: %d, %q\nwant %q", tc.text, code, errs, tc.want)
		}
	}
}

// TestAuditedPolicies: if a policy becomes audited, diff prints the connections that open. matrix names audited
// policies.
func TestAuditedPolicies(t *testing.T) {
	audited := strings.Replace(shop, "metadata: {name: db, namespace: shop}\nspec:\n  podSelector",
		"metadata: {name: db, namespace: shop, annotations: {weir.io/audit: \"true\"}}\nspec:\n  podSelector", 1)
	out, errs, code := execute(t, diffCommand(), audited, "-f", "-")
	if code != client.ExitChanges || !strings.Contains(out, "other/spy") || errs != "weirctl: note: NetworkPolicy "+
		"shop/db is enforced, and will be audited: then it isolates nothing and allows nothing\n" {
		t.Errorf("%d, %q\n%s", code, errs, out)
	}
	dir := t.TempDir()
	if err := os.WriteFile(filepath.Join(dir, "a.yaml"), []byte(audited), 0o600); err != nil {
		t.Fatal(err)
	}
	_, errs, code = execute(t, matrixCommand(), "", "--source", "dir:"+dir)
	if code != 0 || errs != "weirctl: note: audited policies, which decide nothing: shop/db\n" {
		t.Errorf("%d, %q", code, errs)
	}
	_, errs, code = execute(t, diffCommand(), shop, "--source", "dir:"+dir, "-f", "-")
	if code != client.ExitChanges || errs != "weirctl: note: NetworkPolicy shop/db is audited, and will be enforced\n" {
		t.Errorf("%d, %q", code, errs)
	}
}

// TestUnreadSource: if a file can't be read, diff fails, and matrix prints a note.
func TestUnreadSource(t *testing.T) {
	dir := t.TempDir()
	write := func(name, text string) {
		if err := os.WriteFile(filepath.Join(dir, name), []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	write("shop.yaml", shop)
	write("pod.yaml", "{kind: Pod, apiVersion: v1, metadata: {name: a, namespace: shop, labels: {app: a b}}}")
	source := "dir:" + dir
	if _, errs, code := execute(t, matrixCommand(), "", "--source", source); code != 0 ||
		!strings.Contains(errs, "shop/a") {
		t.Errorf("a pod is left out: %d, %s", code, errs)
	}
	if _, errs, code := execute(t, diffCommand(), wider, "-f", "-", "--source", source); code != client.ExitChanges ||
		!strings.Contains(errs, "shop/a") {
		t.Errorf("a pod is left out: %d, %s", code, errs)
	}
	write("broken.yaml", "kind: NetworkPolicy: [")
	if _, errs, code := execute(t, matrixCommand(), "", "--source", source); code != 0 ||
		!strings.Contains(errs, "broken.yaml") {
		t.Errorf("matrix: %d, %s", code, errs)
	}
	out, errs, code := execute(t, diffCommand(), wider, "-f", "-", "--source", source)
	if code != client.ExitError || !strings.Contains(errs, "broken.yaml") || out != "" {
		t.Errorf("diff: %d, %s, %s", code, errs, out)
	}
}

// TestServiceAddress: matrix --to prints the same for a Service's address as for the Service's name.
func TestServiceAddress(t *testing.T) {
	dir := t.TempDir()
	text := strings.Replace(shop, "spec: {selector: {app: db}", "spec: {clusterIP: 10.96.0.10, selector: {app: db}", 1)
	if err := os.WriteFile(filepath.Join(dir, "a.yaml"), []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	byName, _, _ := execute(t, matrixCommand(), "", "--source", "dir:"+dir, "--to", "shop/db")
	byAddress, errs, code := execute(t, matrixCommand(), "", "--source", "dir:"+dir, "--to", "10.96.0.10")
	if byAddress != byName || errs != "" || code != 0 || !strings.Contains(byAddress, "shop/web (2 pods)  shop/db") {
		t.Errorf("%d, %s\n%s\nby name:\n%s", code, errs, byAddress, byName)
	}
}

// TestReachBadInput: if an argument is wrong, the command prints one line that says what to do.
func TestReachBadInput(t *testing.T) {
	for _, tc := range []struct {
		diff bool
		args string
		code int
		want string
	}{
		{false, "--port 0", client.ExitUsage, `--port "0": must be a port`},
		{false, "--port 80-79", client.ExitUsage, "must be a port"},
		{false, "--port 80/icmp", client.ExitUsage, "must be a port"},
		{false, "--port 65536", client.ExitUsage, "must be a port"},
		{false, "--rows -1", client.ExitUsage, "--rows -1: must be a number of rows"},
		{false, "--from web", client.ExitUsage, `--from "web": must be NS/NAME`},
		{false, "--to shop/[", client.ExitUsage, `--to "shop/[": must be NS/NAME`},
		{false, "--to shop/bd", client.ExitUsage, "--to shop/bd: no pod, no workload and no Service with pods"},
		{false, "--from 2001:db8::1", client.ExitUsage, "--from 2001:db8::1: it is in a pods' network, or of a family"},
		{true, "--delete shop/db --from shop/bd", client.ExitUsage, "--from shop/bd: no pod"},
		{false, "-o xml", client.ExitUsage, "must be text, json"},
		{false, "-n nowhere", client.ExitUsage, `there is no namespace "nowhere"`},
		{false, "shop", client.ExitUsage, `takes no argument, and got "shop"`},
		{true, "", client.ExitUsage, "use -f FILE"},
		{true, "--delete web", client.ExitUsage, "must be NAMESPACE/NAME"},
		{true, "--delete shop/gone", client.ExitUsage, "there is no NetworkPolicy shop/gone"},
		{true, "-f gone.yaml", client.ExitUsage, "-f gone.yaml: there is no such file or directory"},
		{true, "-f -", client.ExitError, "there is no object"},
		{true, "-f - --fail-on all", client.ExitUsage, "must be any, opens, closes or never"},
	} {
		cmd := matrixCommand()
		if tc.diff {
			cmd = diffCommand()
		}
		out, errs, code := execute(t, cmd, "", strings.Fields(tc.args)...)
		if code != tc.code || !strings.Contains(errs, tc.want) || out != "" || strings.Contains(errs, "\n") {
			t.Errorf("%s: %d, %q, and printed %q", tc.args, code, errs, out)
		}
	}
}
