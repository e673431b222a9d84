package blackbox

import (
	"strings"
	"testing"

	"github.com/weir-net/weir/test/nodetest"
)

// TestIdentityFromTheConfiguration: if CNI_ARGS lacks the pod's namespace or name, ADD takes the missing value from
// args.cni in the network configuration: from its keys or its labels.
func TestIdentityFromTheConfiguration(t *testing.T) {
	if !nodetest.IsolatedWithWeir(t) {
		return
	}
	n := nodetest.NewNode(t, nil)
	n.Manifest("shop.yaml", shop)
	n.Manifest("deny.yaml", denyJSON)
	n.StartAgent()
	client := n.AddPod("shop", "client")
	attach := func(netns, args string, cni nodetest.Conf) (*nodetest.Pod, error) {
		n.Configure(nodetest.Conf{"args": nodetest.Conf{"cni": cni}})
		path := nodetest.NewNS(n, netns)
		out, err := n.CNI("add", path, args)
		_, rest, _ := strings.Cut(out, `"address": "`)
		ip, _, _ := strings.Cut(rest, "/")
		return &nodetest.Pod{Netns: path, IP: ip}, err
	}
	labels := []any{
		nodetest.Conf{"key": "io.kubernetes.pod.namespace", "value": "shop"},
		nodetest.Conf{"key": "io.kubernetes.pod.name", "value": "server"},
	}
	for name, c := range map[string]struct {
		args string
		cni  nodetest.Conf
		want bool
	}{
		"podman":  {"IgnoreUnknown=1;K8S_POD_NAME=other", nodetest.Conf{"K8S_POD_NAMESPACE": "shop"}, true},
		"nerdctl": {"IgnoreUnknown=1", nodetest.Conf{"K8S_POD_NAMESPACE": "shop", "K8S_POD_NAME": "server"}, false},
		"labels":  {"IgnoreUnknown=1", nodetest.Conf{"labels": labels}, false},
	} {
		pod, err := attach(name, c.args, c.cni)
		if err != nil {
			t.Errorf("%s: %v", name, err)
			continue
		}
		n.Serve(pod.Netns, "tcp", pod.IP+":80")
		n.Reach(client, pod.IP+":80", c.want)
	}
	_, err := attach("none", "IgnoreUnknown=1", nodetest.Conf{})
	for _, words := range []string{"args.cni", "K8S_POD_NAMESPACE", "io.kubernetes.pod.name"} {
		if err == nil || !strings.Contains(err.Error(), words) {
			t.Errorf("%v: doesn't say what to do about it: %s", err, words)
		}
	}
}
