package cluster

import "github.com/weir-net/weir/test/scale/apiserver"

// Serve starts an API server with the cluster's objects.
func (c *Cluster) Serve(address string) (*apiserver.Server, error) {
	return apiserver.New(address, apiserver.Pods(PodBase{c}), apiserver.Namespaces(NamespaceBase{c}),
		apiserver.Nodes(NodeBase{c}), apiserver.NetworkPolicies(PolicyBase{c}), apiserver.Events())
}
