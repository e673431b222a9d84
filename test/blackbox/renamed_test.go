package blackbox

import (
	"fmt"
	"regexp"
	"strings"
	"testing"

	"github.com/weir-net/weir/test/nodetest"
)

func TestALinkThatIsRenamedBehindPtp(t *testing.T)    { aLinkThatIsRenamed(t, "ptp") }
func TestALinkThatIsRenamedBehindBridge(t *testing.T) { aLinkThatIsRenamed(t, "bridge") }

// aLinkThatIsRenamed checks that a pod stays isolated if another program renames the node's end of the pod's link. The
// agent may end an attachment only if its link is gone, and a renamed link isn't gone.
func aLinkThatIsRenamed(t *testing.T, plugin string) {
	if !isolatedBehind(t, plugin) {
		return
	}
	n := attachedBy(t, plugin, isolated)
	server, client, other := n.AddPod("shop", "server"), n.AddPod("shop", "client"), n.AddPod("shop", "other")
	n.Serve(server.Netns, "tcp", ":80")
	n.StopAgent()
	nodetest.RunEach(t, "ip link set "+linkOf(t, server)+" name renamed")
	gone := linkOf(t, client)
	nodetest.DelNS(t, client.Netns)
	n.Eventually("the other pod's link is gone", func() error {
		if _, err := nodetest.Try("ip", "link", "show", gone); err == nil {
			return fmt.Errorf("%s is there", gone)
		}
		return nil
	})
	n.StartAgent()
	n.Eventually("the agent has ended the attachment whose link is gone", func() error {
		pods, err := n.Ctl("pods")
		if err != nil || strings.Contains(pods, "shop/client") {
			return fmt.Errorf("%w\n%s", err, pods)
		}
		return nil
	})
	if pods, err := n.Ctl("pods"); err != nil || !strings.Contains(pods, "shop/server") {
		t.Errorf("the agent has ended the attachment of a pod that runs: %v\n%s", err, pods)
	}
	if _, err := nodetest.Get(t, other.Netns, server.IP+":80"); err == nil {
		t.Error("another pod reaches the isolated pod")
	}
	n.DelPod(server)
}

var indexOfPeer = regexp.MustCompile(`eth0@if(\d+):`)

// linkOf returns the name of the node's end of the pod's link.
func linkOf(t *testing.T, p *nodetest.Pod) string {
	t.Helper()
	inside := nodetest.Run(t, "nsenter", "--net="+p.Netns, "ip", "-o", "link", "show", "eth0")
	index := indexOfPeer.FindStringSubmatch(inside)
	if index == nil {
		t.Fatalf("eth0 is no end of a pair: %s", inside)
	}
	for line := range strings.Lines(nodetest.Run(t, "ip", "-o", "link")) {
		if fields := strings.Fields(line); fields[0] == index[1]+":" {
			name, _, _ := strings.Cut(fields[1], "@")
			return name
		}
	}
	t.Fatalf("no link of the node has index %s", index[1])
	return ""
}
