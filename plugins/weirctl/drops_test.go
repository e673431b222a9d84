package main

import (
	"strings"
	"testing"

	"github.com/weir-net/weir/plugins/weirctl/client"
)

// TestDropsBadInput: if an argument is wrong or no agent answers, the command prints one line that says what to do.
func TestDropsBadInput(t *testing.T) {
	for _, tc := range []struct {
		args string
		code int
		want string
	}{
		{"-o xml", client.ExitUsage, "-o xml: must be text or json"},
		{"--since -5m", client.ExitUsage, "--since -5m0s: must not be negative"},
		{"", client.ExitError, "asks the agent of the node that it runs on"},
	} {
		cmd := dropsCommand()
		cmd.SilenceErrors, cmd.SilenceUsage = true, true
		cmd.SetArgs(strings.Fields(tc.args))
		code, text := client.Code(cmd.ExecuteContext(t.Context()))
		if code != tc.code || !strings.Contains(text, tc.want) || strings.Contains(text, "\n") {
			t.Errorf("%s: %d, %q", tc.args, code, text)
		}
	}
}
