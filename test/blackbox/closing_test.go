package blackbox

import (
	"errors"
	"fmt"
	"strings"
	"testing"

	"github.com/weir-net/weir/test/nodetest"
)

// TestAFlushWhileTheKernelRefuses: another program deletes the rules that check packets, and the kernel refuses one of
// these rules when the agent writes them again. Then no connection to an isolated pod succeeds.
func TestAFlushWhileTheKernelRefuses(t *testing.T) {
	// Each entry says which rules are refused. The key is a part of the rules' text for iptables. The value is a part
	// of the rules' nf_tables requests.
	for refused, request := range map[string]string{
		"connlabel": "\x08\x00\x02\x00\x00\x00\x00\x0d", // NFT_CT_LABELS
		"comment":   "weir: connections that were let through",
		"match-set": "lookup\x00",
	} {
		t.Run(refused, func(t *testing.T) { testFlushWhileRefused(t, refused, request) })
	}
}

func testFlushWhileRefused(t *testing.T, refused, request string) {
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
	if nodetest.Nftables() {
		refuseRequests(t, newRule, request)
	}
	for _, program := range []string{"iptables-nft-restore", "ip6tables-nft-restore"} {
		wrapped(t, program, fmt.Sprintf(`
all=$(cat)
if [ -e /run/loaded ] || ! grep -q -- '%s' <<<"$all"; then exec $real "$@" <<<"$all"; fi
echo "refused" >&2
exit 1`, refused))
	}
	n.StartAgent()
	nodetest.RunEach(t, nodetest.FlushChecks())
	n.Eventually("the node says that it isn't ready", func() error {
		if out, err := n.Ctl("status"); err == nil {
			return errors.New("it is ready: " + out)
		}
		return nil
	})
	n.Reach(client, web.IP+":80", false)
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
		rules, err := nodetest.ListChecks()
		if err != nil {
			return err
		}
		if !strings.Contains(rules, "connlabel") && !strings.Contains(rules, "ct label") {
			return errors.New(out + rules)
		}
		return nil
	})
	n.Reach(client, web.IP+":80", false)
	n.Manifest("policies.yaml", fmt.Sprintf(twoPolicies, harmless))
	n.Reach(client, web.IP+":80", true)
}
