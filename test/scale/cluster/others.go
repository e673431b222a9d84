package cluster

import (
	"fmt"
	"time"

	corev1 "k8s.io/api/core/v1"
	networkingv1 "k8s.io/api/networking/v1"
	"k8s.io/apimachinery/pkg/api/resource"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/apimachinery/pkg/util/intstr"

	"github.com/weir-net/weir/test/scale/apiserver"
)

type NamespaceBase struct{ *Cluster }

func (b NamespaceBase) Len() int { return b.Namespaces() }

// Find returns the number in the namespace's name, or false if there is no such namespace.
func (b NamespaceBase) Find(name types.NamespacedName) (int, bool) {
	return number(name.Name, "tenant-", b.Namespaces())
}

// At returns a namespace with the label of its team. Namespaces never change.
func (b NamespaceBase) At(i int, _ uint32) apiserver.Object {
	return NewNamespace(NamespaceName(i), fmt.Sprintf("team-%d", i/namespacesPerTeam))
}

func NewNamespace(name, team string) *corev1.Namespace {
	return &corev1.Namespace{
		ObjectMeta: metav1.ObjectMeta{
			Name: name, UID: types.UID("uid-of-" + name), CreationTimestamp: born,
			Labels: map[string]string{
				corev1.LabelMetadataName: name, "team": team, "pod-security.kubernetes.io/enforce": "restricted",
			},
		},
		Status: corev1.NamespaceStatus{Phase: corev1.NamespaceActive},
	}
}

type NodeBase struct{ *Cluster }

func (b NodeBase) Len() int { return b.Nodes() }

// Find returns the number in the node's name, or false if there is no such node.
func (b NodeBase) Find(name types.NamespacedName) (int, bool) {
	return number(name.Name, "node-", b.Nodes())
}

// At returns a node as kubelet reports it. Each beat adds five minutes to the time of the node's heartbeat.
func (b NodeBase) At(i int, beat uint32) apiserver.Object {
	address := nodeAddress(i)
	switch i {
	case 0:
		address = b.Self
	case 1:
		address = b.Neighbour
	}
	n := &corev1.Node{
		ObjectMeta: metav1.ObjectMeta{
			Name: NodeName(i), UID: uid(2, i), CreationTimestamp: born,
			Labels: map[string]string{
				corev1.LabelHostname: NodeName(i), corev1.LabelOSStable: "linux", corev1.LabelArchStable: "amd64",
				corev1.LabelTopologyZone: fmt.Sprintf("zone-%d", i%3), corev1.LabelInstanceTypeStable: "m7i.4xlarge",
			},
			ManagedFields: []metav1.ManagedFieldsEntry{managed("kubelet", "status", statusFields)},
		},
		Spec: corev1.NodeSpec{PodCIDR: podCIDR(i).String(), PodCIDRs: []string{podCIDR(i).String()}},
		Status: corev1.NodeStatus{
			Addresses: []corev1.NodeAddress{
				{Type: corev1.NodeInternalIP, Address: address.String()}, {Type: corev1.NodeHostName, Address: NodeName(i)},
			},
			Capacity: corev1.ResourceList{
				corev1.ResourceCPU: resource.MustParse("16"), corev1.ResourceMemory: resource.MustParse("64Gi"),
				corev1.ResourcePods: resource.MustParse("110"),
			},
			Conditions: []corev1.NodeCondition{{
				Type: corev1.NodeReady, Status: corev1.ConditionTrue, Reason: "KubeletReady",
				LastTransitionTime: born,
			}},
			NodeInfo: corev1.NodeSystemInfo{
				KubeletVersion: "v1.37.2", ContainerRuntimeVersion: "containerd://2.1.4", OSImage: "Debian GNU/Linux 13",
			},
		},
	}
	n.Status.Conditions[0].LastHeartbeatTime = metav1.NewTime(born.Add(time.Duration(beat) * 5 * time.Minute))
	for k := range 20 {
		n.Status.Images = append(n.Status.Images, corev1.ContainerImage{
			Names: []string{
				fmt.Sprintf("registry.example.com/team/app-%d@sha256:9f86d081884c7d659a2feaa0c55ad015a3bf4f1b", k),
				fmt.Sprintf("registry.example.com/team/app-%d:v1.42.%d", k, k),
			},
			SizeBytes: int64(k) << 20,
		})
	}
	return n
}

type PolicyBase struct{ *Cluster }

func (b PolicyBase) Len() int { return b.Policies() }

// Find returns the policy's number in the cluster, or false if there is no such policy.
func (b PolicyBase) Find(name types.NamespacedName) (int, bool) {
	return b.find(name, PoliciesPerNamespace, policyName)
}

func policyName(k int) string { return fmt.Sprintf("policy-%d", k) }

// At returns a policy. The last policy of a namespace isolates all pods. Each other policy allows an app ingress from
// two other apps and from an ipBlock. Every third of these policies also isolates the app for egress.
func (b PolicyBase) At(i int, _ uint32) apiserver.Object {
	ns, k := i/PoliciesPerNamespace, i%PoliciesPerNamespace
	p := &networkingv1.NetworkPolicy{
		ObjectMeta: metav1.ObjectMeta{
			Namespace: NamespaceName(ns), Name: policyName(k), UID: uid(3, i), CreationTimestamp: born,
			ManagedFields: []metav1.ManagedFieldsEntry{managed("helm", "", createdFields)},
		},
		Spec: networkingv1.NetworkPolicySpec{PolicyTypes: []networkingv1.PolicyType{networkingv1.PolicyTypeIngress}},
	}
	if k == PoliciesPerNamespace-1 {
		return p
	}
	p.Spec.PodSelector = appSelector(k)
	next, teams := appSelector((k+1)%podsPerApp), appSelector((k+2)%podsPerApp)
	team := metav1.LabelSelector{MatchLabels: map[string]string{"team": fmt.Sprintf("team-%d", ns/namespacesPerTeam)}}
	port, udp := intstr.FromInt32(8080), corev1.ProtocolUDP
	dns := intstr.FromInt32(53)
	p.Spec.Ingress = []networkingv1.NetworkPolicyIngressRule{{
		Ports: []networkingv1.NetworkPolicyPort{{Port: &port}},
		From: []networkingv1.NetworkPolicyPeer{
			{PodSelector: &next},
			{PodSelector: &teams, NamespaceSelector: &team},
			{IPBlock: &networkingv1.IPBlock{CIDR: "198.51.100.0/24", Except: []string{"198.51.100.128/25"}}},
		},
	}}
	if k%3 == 0 {
		p.Spec.PolicyTypes = append(p.Spec.PolicyTypes, networkingv1.PolicyTypeEgress)
		p.Spec.Egress = []networkingv1.NetworkPolicyEgressRule{
			{Ports: []networkingv1.NetworkPolicyPort{{Port: &dns, Protocol: &udp}}},
			{To: []networkingv1.NetworkPolicyPeer{{PodSelector: &next}}},
		}
	}
	return p
}

func appSelector(app int) metav1.LabelSelector {
	return metav1.LabelSelector{MatchLabels: map[string]string{"app": fmt.Sprintf("app-%d", app)}}
}
