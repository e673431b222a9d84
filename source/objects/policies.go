package objects

import "strings"

// policyKinds has kinds of network policies of other programs. A key is the end of an API group's name. Kinds with
// NetworkPolicy in their names needn't be here, because IsPolicy recognises them by the name.
var policyKinds = map[string][]string{
	"cilium.io":                        {"CiliumEgressGatewayPolicy", "CiliumLocalRedirectPolicy"},
	"k8s.ovn.org":                      {"EgressFirewall"},
	"network.openshift.io":             {"EgressFirewall"},
	"ingressnodefirewall.openshift.io": {"IngressNodeFirewall", "IngressNodeFirewallNodeState"},
	"nsx.vmware.com":                   {"SecurityPolicy"},
	"kubeovn.io":                       {"SecurityGroup"},
	"istio.io":                         {"AuthorizationPolicy"},
	"linkerd.io":                       {"AuthorizationPolicy", "Server", "ServerAuthorization"},
	"kuma.io":                          {"MeshTrafficPermission", "TrafficPermission"},
	"consul.hashicorp.com":             {"ServiceIntentions"},
	"smi-spec.io":                      {"TrafficTarget"},
	"kubearmor.com":                    {"KubeArmorPolicy", "KubeArmorClusterPolicy", "KubeArmorHostPolicy"},
	"neuvector.com":                    {"NvSecurityRule", "NvClusterSecurityRule", "NvGroupDefinition"},
	"otterize.com":                     {"ClientIntents"},
	"vpcresources.k8s.aws":             {"SecurityGroupPolicy"},
}

// IsPolicy reports whether the kind is a kind of network policies that weir doesn't enforce, such as
// CiliumNetworkPolicy.
func IsPolicy(group, kind string) bool {
	group = strings.ToLower(group)
	if group == "networking.k8s.io" {
		return false
	}
	if strings.Contains(strings.ToLower(kind), "networkpolicy") {
		return true
	}
	for end, kinds := range policyKinds {
		if group != end && !strings.HasSuffix(group, "."+end) {
			continue
		}
		for _, k := range kinds {
			if strings.EqualFold(k, kind) {
				return true
			}
		}
	}
	return false
}
