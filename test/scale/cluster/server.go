package cluster

import "github.com/weir-net/weir/test/scale/apiserver"

func (c *Cluster) Serve(address string) (*apiserver.Server, error) {
	return apiserver.New(address, apiserver.Pods(PodBase{c}), apiserver.Namespaces(NamespaceBase{c}),
		apiserver.Nodes(NodeBase{c}), apiserver.NetworkPolicies(PolicyBase{c}), apiserver.Events())
}
