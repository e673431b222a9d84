package main

import (
	"io"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"

	"github.com/spf13/cobra"

	"github.com/weir-net/weir/plugins/weirctl/client"
)

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
	for _, of := range rootCommand().Commands() {
		for _, flag := range []string{
			"namespace", "pod", "policy", "node", "from", "to", "delete", "source", "output", "fail-on", "reason",
		} {
			if _, known := of.GetFlagCompletionFunc(flag); of.Flags().Lookup(flag) != nil && !known {
				t.Errorf("%s --%s isn't completed", of.Name(), flag)
			}
		}
	}
}

// TestCompleteValues: for a flag that has few values, completion offers the values. After dir:, it offers directories.
func TestCompleteValues(t *testing.T) {
	inDirectory(t, nil)
	for line, want := range map[string][]string{
		"explain -o ": {"text", "json", "yaml"}, "matrix -o ": {"text", "json", "html", "svg", "dot"},
		"drops --output ": {"text", "json"}, "diff --fail-on ": {"any", "closes", "never", "opens"},
		"drops --reason ": reasonNames(), "matrix --source ": {"agent", "kubernetes", "dir:"},
		"matrix --source dir:": {"dir:manifests/"}, "matrix --source dir:m": {"dir:manifests/"},
		"matrix --source dir:x": nil, "suggest --source dir:manifests/": nil,
	} {
		root, out := rootCommand(), &strings.Builder{}
		root.SetOut(out)
		root.SetErr(io.Discard)
		root.SetArgs(append([]string{cobra.ShellCompNoDescRequestCmd}, strings.Split(line, " ")...))
		if err := root.ExecuteContext(t.Context()); err != nil {
			t.Fatal(err)
		}
		all := strings.Fields(out.String())
		if got := all[:len(all)-1]; !slices.Equal(got, want) { // the last line is cobra's directive for the shell
			t.Errorf("%q: %q, want %q", line, got, want)
		}
	}
}

// TestUnknownTopics: the command help fails if its argument isn't a command, and the command completion fails if
// its argument isn't a shell.
func TestUnknownTopics(t *testing.T) {
	for line, want := range map[string]string{
		"help": "", "help drops": "", "help completion bash": "", "completion": "", "drops --help": "",
		"help nope":       `unknown command "nope" for "weirctl": --help lists them`,
		"help drop":       `unknown command "drop" for "weirctl": did you mean drops or dump?`,
		"help drops nope": `unknown command "nope" for "weirctl drops": --help lists them`,
		"completion nope": `unknown command "nope" for "weirctl completion": --help lists them`,
		"completion bsh":  `unknown command "bsh" for "weirctl completion": did you mean bash or fish or zsh?`,
		"completion bash nope": `weirctl completion bash takes no argument, and got "nope"; see weirctl completion bash ` +
			"--help",
	} {
		root, out := rootCommand(), &strings.Builder{}
		root.SetOut(out)
		root.SetErr(io.Discard)
		root.SetArgs(strings.Fields(line))
		code, text := client.Code(root.ExecuteContext(t.Context()))
		wanted := client.ExitOK
		if want != "" {
			wanted = client.ExitUsage
		}
		if code != wanted || text != want || (out.String() == "") != (want != "") {
			t.Errorf("%s: %d, %q, and %d bytes of output", line, code, text, out.Len())
		}
	}
}

// TestHints: if there is neither an agent nor a kubeconfig, each command's error names only flags of this command.
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
