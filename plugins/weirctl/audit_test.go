package main

import (
	"strings"
	"testing"

	"github.com/weir-net/weir/plugins/weirctl/client"
)

// TestAuditBadInput: if an argument is wrong or no agent answers, the command prints one line that says what to do.
func TestAuditBadInput(t *testing.T) {
	for _, tc := range []struct {
		args []string
		code int
		want string
	}{
		{[]string{"db"}, client.ExitUsage, `"db": must be NAMESPACE/NAME`},
		{[]string{"shop/"}, client.ExitUsage, "must be NAMESPACE/NAME"},
		{[]string{"shop/db", "--since", "0"}, client.ExitUsage, "must be a length of time above 0"},
		{[]string{"-o", "xml"}, client.ExitUsage, "must be text or json"},
		{[]string{"shop/db", "shop/web"}, client.ExitUsage, "audit takes one policy, NAMESPACE/NAME, and got 2"},
		{[]string{"shop/db"}, client.ExitError, "--cluster asks the agents of all nodes"},
	} {
		cmd := rootCommand()
		cmd.SetArgs(append([]string{"audit"}, tc.args...))
		code, text := client.Code(cmd.ExecuteContext(t.Context()))
		if code != tc.code || !strings.Contains(text, tc.want) || strings.Contains(text, "\n") {
			t.Errorf("%q: %d, %q", tc.args, code, text)
		}
	}
}
