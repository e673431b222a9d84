package main

import (
	"strings"
	"testing"

	"github.com/spf13/cobra"

	"github.com/weir-net/weir/plugins/weirctl/client"
)

// TestPrintWait: if weirctl wait takes too long, it prints what each node lacks, or what the pod itself lacks, and
// ends with ExitTimeout.
func TestPrintWait(t *testing.T) {
	for _, tc := range []struct {
		nodes     []string
		missing   map[string]string
		out, errs string
	}{
		{
			[]string{"n1", "n2"},
			map[string]string{"n2": "the node is not ready"},
			"n2: the node is not ready\n",
			"pod shop/db is not enforced in time: 1 of 2 nodes lack it",
		},
		{
			nil,
			map[string]string{client.NoNode: "the pod has no node or no address yet"},
			"",
			"pod shop/db is not enforced in time: the pod has no node or no address yet (kubectl -n shop describe pod db)",
		},
	} {
		var out strings.Builder
		cmd := &cobra.Command{}
		cmd.SetOut(&out)
		w := client.Waited{Kind: "pod", Namespace: "shop", Name: "db", Nodes: tc.nodes, Missing: tc.missing}
		code, errs := client.Code(printWait(cmd, client.Text, w, client.ErrTimeout))
		if code != client.ExitTimeout || out.String() != tc.out || errs != tc.errs {
			t.Errorf("%v: exit code %d, %q, %q", tc.missing, code, out.String(), errs)
		}
	}
}
