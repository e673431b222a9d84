package main

import (
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"

	"github.com/spf13/cobra"

	"github.com/weir-net/weir/plugins/weirctl/client"
)

// TestCompleteNames: a shell gets the names of objects for arguments and flags.
func TestCompleteNames(t *testing.T) {
	manifest, err := os.ReadFile("testdata/why/load-balancer.yaml")
	if err != nil {
		t.Fatal(err)
	}
	inDirectory(t, manifest)
	var nodes client.NodeFlags
	nodes.Place = "dir:manifests"
	cmd := &cobra.Command{}
	cmd.SetContext(t.Context())
	for _, tc := range []struct {
		complete cobra.CompletionFunc
		args     []string
		begin    string
		want     []string
	}{
		{completeWaited(&nodes), nil, "", []string{"policy", "pod"}},
		{completeWaited(&nodes), []string{"pod"}, "sh", []string{"shop/web"}},
		{completeWaited(&nodes), []string{"policy"}, "x", nil},
		{completeWaited(&nodes), []string{"pod", "shop/web"}, "", nil},
		{nodes.CompleteNodes(), nil, "node-", []string{"node-1", "node-2"}},
		{nodes.CompletePods(), nil, "", []string{"shop/web"}},
	} {
		if got, _ := tc.complete(cmd, tc.args, tc.begin); !slices.Equal(got, tc.want) {
			t.Errorf("%q %q: %q, want %q", tc.args, tc.begin, got, tc.want)
		}
	}
	for name, of := range map[string]*cobra.Command{
		"drops": dropsCommand(), "check": checkCommand(), "status": statusCommand(), "explain": explainCommand(),
		"matrix": matrixCommand(), "diff": diffCommand(), "flows": flowsCommand(), "suggest": suggestCommand(),
		"audit": auditCommand(), "wait": waitCommand(), "dump": dumpCommand(), "pods": podsCommand(),
	} {
		for _, flag := range []string{"namespace", "pod", "policy", "node", "from", "to", "delete"} {
			if _, known := of.GetFlagCompletionFunc(flag); of.Flags().Lookup(flag) != nil && !known {
				t.Errorf("%s --%s isn't completed", name, flag)
			}
		}
	}
}

// TestHints: if there is neither an agent nor a kubeconfig, each command's error names only flags that it has.
func TestHints(t *testing.T) {
	t.Setenv("KUBECONFIG", filepath.Join(t.TempDir(), "none"))
	t.Setenv("HOME", t.TempDir())
	for _, tc := range []struct {
		cmd  *cobra.Command
		args string
	}{
		{flowsCommand(), ""},
		{flowsCommand(), "--cluster"},
		{suggestCommand(), "-n shop"},
		{auditCommand(), "shop/db"},
		{dropsCommand(), ""},
		{dropsCommand(), "--node n1"},
		{statusCommand(), "--cluster"},
		{waitCommand(), "pod shop/db"},
		{explainCommand(), "shop/db shop/web:80"},
		{explainCommand(), "shop/db shop/web:80 --source agent"},
		{explainCommand(), "shop/db shop/web:80 --cluster"},
		{matrixCommand(), ""},
		{dumpCommand(), filepath.Join(t.TempDir(), "bundle.tar.gz")},
	} {
		cmd := tc.cmd
		cmd.SilenceErrors, cmd.SilenceUsage = true, true
		cmd.SetArgs(strings.Fields(tc.args))
		_, text := client.Code(cmd.ExecuteContext(t.Context()))
		hints := regexp.MustCompile(`--[a-z][a-z-]*`).FindAllString(text, -1)
		if len(hints) == 0 {
			t.Errorf("%s %s: no hint: %q", cmd.Name(), tc.args, text)
		}
		for _, flag := range hints {
			if cmd.Flags().Lookup(flag[2:]) == nil {
				t.Errorf("%s %s: there is no flag %s: %q", cmd.Name(), tc.args, flag, text)
			}
		}
	}
}
