package objects

import (
	"strings"
	"testing"
)

func TestIsPolicy(t *testing.T) {
	for kind, want := range map[string]bool{
		"CiliumNetworkPolicy.cilium.io": true, "CiliumClusterwideNetworkPolicy.cilium.io": true,
		"CiliumEndpoint.cilium.io":            false,
		"NetworkPolicy.crd.projectcalico.org": true, "GlobalNetworkPolicy.projectcalico.org": true,
		"GlobalNetworkSet.projectcalico.org":          false,
		"AdminNetworkPolicy.policy.networking.k8s.io": true, "ClusterNetworkPolicy.policy.networking.k8s.io": true,
		"NetworkPolicy.crd.antrea.io": true, "Tier.crd.antrea.io": false, "MultiNetworkPolicy.k8s.cni.cncf.io": true,
		"EgressNetworkPolicy.network.openshift.io": true, "EgressFirewall.k8s.ovn.org": true,
		"egressfirewall.K8s.ovn.org": true, "AuthorizationPolicy.security.istio.io": true,
		"SecurityGroupPolicy.vpcresources.k8s.aws": true,
		"Server.policy.linkerd.io":                 true, "Server.example.com": false, "MeshTrafficPermission.kuma.io": true,
		"XNetworkPolicy.example.com":      true,
		"NetworkPolicy.networking.k8s.io": false, "Ingress.networking.k8s.io": false, "PodDisruptionBudget.policy": false,
		"PodSecurityPolicy.policy": false, "ClusterPolicy.kyverno.io": false, "AuthorizationPolicy.notistio.io": false,
	} {
		name, group, _ := strings.Cut(kind, ".")
		if got := IsPolicy(group, name); got != want {
			t.Errorf("%s: %v, want %v", kind, got, want)
		}
	}
}
