// Package cluster describes the synthetic cluster of the measurements. Each object is made from its number, and always
// has the same contents.
//
//   - A namespace has up to 100 pods: ten apps of up to ten pods. Each team has ten namespaces.
//   - A namespace has ten policies. Nine select one app each. The tenth isolates all pods of the namespace.
//   - A node has up to 110 pods. The measured node's pods are spread over the first namespaces. The parameter
//     namespaces of New is the number of these namespaces. In all clusters that are large enough, the measured node has
//     the same pods and policies. If these namespaces have 100 pods each, the node's pods also have the same peers.
//   - The second node is the measured node's neighbour. It has only pods that a measurement creates.
package cluster

import (
	"fmt"
	"net/netip"
	"strconv"
	"strings"

	"k8s.io/apimachinery/pkg/types"
)

const (
	// PoliciesPerNamespace is the number of policies in a namespace: one for each app but the last, and one for all
	// pods.
	PoliciesPerNamespace = 10

	podsPerNamespace  = 100
	podsPerApp        = 10
	namespacesPerTeam = 10
	podsPerNode       = 110
)

// Cluster is a cluster whose number of pods is a multiple of 100.
type Cluster struct {
	Pods int
	// Self is the address of the measured node. Neighbour is the address of the second node, in the same subnet.
	Self, Neighbour netip.Addr

	localNamespaces int
	local           map[int]int // the measured node's pods: the place on the node, by the pod's number
}

// New returns a cluster. local is the number of pods on the measured node, at most 110. namespaces is the number of
// namespaces that have these pods. pods must be a multiple of namespaces.
func New(pods, local, namespaces int, self, neighbour netip.Addr) *Cluster {
	c := &Cluster{Pods: pods, Self: self, Neighbour: neighbour, localNamespaces: namespaces, local: map[int]int{}}
	for i := range min(local, podsPerNode, pods) {
		c.local[i%namespaces*c.perNamespace()+i/namespaces] = i
	}
	return c
}

// Namespaces returns the number of namespaces. All have the same number of pods.
func (c *Cluster) Namespaces() int { return c.Pods / c.perNamespace() }

func (c *Cluster) perNamespace() int { return min(podsPerNamespace, c.Pods/c.localNamespaces) }

// place returns a pod's namespace, and the number in its name. The numbers in a namespace are all different, because 37
// and podsPerNamespace (100) have no common divisor.
func (c *Cluster) place(pod int) (ns, k int) {
	ns = pod / c.perNamespace()
	return ns, (pod%c.perNamespace()*37 + ns*13) % podsPerNamespace
}

// Nodes returns the number of nodes, including the measured node and its neighbour.
func (c *Cluster) Nodes() int { return 2 + (c.Pods+podsPerNode-1)/podsPerNode }

func (c *Cluster) Policies() int { return c.Namespaces() * PoliciesPerNamespace }

// Local returns the numbers of the measured node's pods, ordered by their places on the node.
func (c *Cluster) Local() []int {
	all := make([]int, len(c.local))
	for pod, place := range c.local {
		all[place] = pod
	}
	return all
}

func (c *Cluster) node(pod int) (node, place int) {
	if place, ok := c.local[pod]; ok {
		return 0, place
	}
	return 2 + pod/podsPerNode, pod % podsPerNode
}

func podCIDR(node int) netip.Prefix {
	return netip.PrefixFrom(netip.AddrFrom4([4]byte{10, byte(100 + node>>8), byte(node), 0}), 24)
}

// Address returns the address of a place on a node. The cluster's own pods have the places 0 to 109, and none of them
// is on the second node. Measurements may use free places up to 239.
func Address(node, place int) netip.Addr {
	a := podCIDR(node).Addr().As4()
	a[3] = byte(place + 10)
	return netip.AddrFrom4(a)
}

// NodeName returns the name of a node. Node 0 is the measured node, and node 1 its neighbour.
func NodeName(node int) string { return fmt.Sprintf("node-%d", node) }

func nodeAddress(node int) netip.Addr {
	return netip.AddrFrom4([4]byte{172, 20, byte(node >> 8), byte(node)})
}

func NamespaceName(ns int) string { return fmt.Sprintf("tenant-%d", ns) }

func podName(k int) string { return fmt.Sprintf("app-%d-5d8c7f9b4-%02d", k/podsPerApp, k) }

func number(name, prefix string, below int) (int, bool) {
	text, ok := strings.CutPrefix(name, prefix)
	n, err := strconv.Atoi(text)
	return n, ok && err == nil && n >= 0 && n < below
}

// find returns NAMESPACE*each + NUMBER. NAMESPACE is the number of the object's namespace. NUMBER is the object's
// number in the namespace, and is less than each. nameOf returns the object's name for NUMBER.
func (c *Cluster) find(name types.NamespacedName, each int, nameOf func(int) string) (int, bool) {
	ns, ok := number(name.Namespace, "tenant-", c.Namespaces())
	if !ok {
		return 0, false
	}
	k, ok := number(name.Name[strings.LastIndexByte(name.Name, '-')+1:], "", each)
	if !ok || nameOf(k) != name.Name {
		return 0, false
	}
	return ns*each + k, true
}

func uid(kind, i int) types.UID {
	return types.UID(fmt.Sprintf("%08x-0000-4000-8000-%012x", kind, i))
}
