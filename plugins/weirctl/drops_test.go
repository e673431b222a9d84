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

func TestPortFlag(t *testing.T) {
	for text, want := range map[string]uint16{
		"1": 1, "65535": 65535, "0": 0, "65536": 0, "-1": 0, "http": 0, "": 0, "80" + " ": 0,
	} {
		port := uint16(0)
		err := (*portFlag)(&port).Set(text)
		if port != want || (err == nil) != (want > 0) {
			t.Errorf("%q: %d, %v", text, port, err)
		}
	}
}
