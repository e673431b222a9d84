package blackbox

import (
	"errors"
	"fmt"
	"strings"
	"testing"

	"github.com/weir-net/weir/test/nodetest"
)

// TestAFlushWhileTheKernelRefuses: if the table is flushed and the kernel refuses one of weir's rules, isolated
// pods are closed.
func TestAFlushWhileTheKernelRefuses(t *testing.T) {
	for _, refused := range []string{"connlabel", "comment", "match-set"} {
		t.Run(refused, func(t *testing.T) { testFlushWhileRefused(t, refused) })
	}
}

func testFlushWhileRefused(t *testing.T, refused string) {
	if !nodetest.IsolatedWithWeir(t) {
		return
	}
	n := nodetest.NewNode(t, nil)
	n.Manifest("policies.yaml", fmt.Sprintf(twoPolicies, "{podSelector: {matchLabels: {app: web}}}"))
	n.StartAgent()
	web, client := n.AddPod("shop", "web"), n.AddPod("shop", "client")
	n.Serve(web.Netns, "tcp", ":80")
	n.Reach(client, web.IP+":80", false)
	n.StopAgent()
	for _, program := range []string{"iptables-nft-restore", "ip6tables-nft-restore"} {
		wrapped(t, program, fmt.Sprintf(`
all=$(cat)
if [ -e /run/loaded ] || ! grep -q -- '%s' <<<"$all"; then exec $real "$@" <<<"$all"; fi
echo "refused" >&2
exit 1`, refused))
	}
	n.StartAgent()
	nodetest.Run(t, "iptables-nft", "-t", "mangle", "-F")
	n.Eventually("the node says that it isn't ready", func() error {
		if out, err := n.Ctl("status"); err == nil {
			return errors.New("it is ready: " + out)
		}
		return nil
	})
	n.Eventually("the pods are closed", func() error {
		if _, err := nodetest.Get(t, client.Netns, web.IP+":80"); err == nil {
			return errors.New("the client reaches the server, which a policy isolates")
		}
		return nil
	})
	for range 10 {
		if _, err := nodetest.Get(t, client.Netns, web.IP+":80"); err == nil {
			t.Fatal("the pods opened again")
		}
	}
	nodetest.Run(t, "touch", "/run/loaded")
	n.Eventually("weir's own rules are back", func() error {
		out, err := n.Ctl("status")
		if err != nil {
			return err
		}
		rules, err := nodetest.Try("iptables-nft", "-t", "mangle", "-S")
		if err != nil {
			return err
		}
		if !strings.Contains(rules, "connlabel") {
			return errors.New(out + rules)
		}
		return nil
	})
	n.Reach(client, web.IP+":80", false)
	n.Manifest("policies.yaml", fmt.Sprintf(twoPolicies, harmless))
	n.Reach(client, web.IP+":80", true)
}
