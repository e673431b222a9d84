package podcheck

import (
	"fmt"
	"time"

	corev1 "k8s.io/api/core/v1"
	networkingv1 "k8s.io/api/networking/v1"
	"k8s.io/apimachinery/pkg/api/resource"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apimachinery/pkg/util/intstr"

	"github.com/weir-net/weir/plugins/weirctl/probe"
)

var (
	namespaces = corev1.SchemeGroupVersion.WithResource("namespaces")
	pods       = corev1.SchemeGroupVersion.WithResource("pods")
	services   = corev1.SchemeGroupVersion.WithResource("services")
	events     = corev1.SchemeGroupVersion.WithResource("events")
	nodes      = corev1.SchemeGroupVersion.WithResource("nodes")
	policies   = networkingv1.SchemeGroupVersion.WithResource("networkpolicies")
)

const (
	// CheckLabel marks the namespaces of checks. On a pod, its value is the pod's role.
	CheckLabel = "weir.io/check"
	// aliveAnnotation of a namespace changes while its check runs.
	aliveAnnotation = "weir.io/check-alive"
	indexLabel      = "weir.io/check-node"
	client          = "client"
	server          = "server"

	container   = "probe"
	serviceName = "check"
	servicePort = 80
)

func namespaceObject(name string) *corev1.Namespace {
	return &corev1.Namespace{ObjectMeta: metav1.ObjectMeta{
		Name: name, Annotations: map[string]string{aliveAnnotation: "0"},
		Labels: map[string]string{
			CheckLabel: "true", "app.kubernetes.io/managed-by": "weirctl", "pod-security.kubernetes.io/enforce": "restricted",
		},
	}}
}

func podName(role string, node int) string { return fmt.Sprintf("%s-%d", role, node) }

const nobody = 65532

// podObject returns a pod that names its node, so it needs no scheduler. The pod ends by itself
// after the time lifetime.
func podObject(role string, i int, node, image string, lifetime time.Duration) *corev1.Pod {
	yes, no, user, second, seconds := true, false, int64(nobody), int64(1), int64(lifetime.Seconds())
	return &corev1.Pod{
		ObjectMeta: metav1.ObjectMeta{
			Name: podName(role, i), Labels: map[string]string{CheckLabel: role, indexLabel: fmt.Sprint(i)},
		},
		Spec: corev1.PodSpec{
			NodeName: node, RestartPolicy: corev1.RestartPolicyAlways,
			Tolerations:           []corev1.Toleration{{Operator: corev1.TolerationOpExists}},
			ActiveDeadlineSeconds: &seconds, TerminationGracePeriodSeconds: &second,
			AutomountServiceAccountToken: &no, EnableServiceLinks: &no,
			SecurityContext: &corev1.PodSecurityContext{
				RunAsNonRoot: &yes, RunAsUser: &user, RunAsGroup: &user,
				SeccompProfile: &corev1.SeccompProfile{Type: corev1.SeccompProfileTypeRuntimeDefault},
			},
			Containers: []corev1.Container{{
				Name: container, Image: image, ImagePullPolicy: corev1.PullIfNotPresent,
				Command: []string{"/usr/bin/weirctl", "probe", "serve"},
				Env:     []corev1.EnvVar{{Name: "GOMEMLIMIT", Value: "48MiB"}},
				Ports:   []corev1.ContainerPort{{Name: "probe", ContainerPort: probe.Port}},
				Resources: corev1.ResourceRequirements{
					Requests: corev1.ResourceList{
						corev1.ResourceCPU: resource.MustParse("1m"), corev1.ResourceMemory: resource.MustParse("16Mi"),
					},
					Limits: corev1.ResourceList{corev1.ResourceMemory: resource.MustParse("128Mi")},
				},
				SecurityContext: &corev1.SecurityContext{
					AllowPrivilegeEscalation: &no, ReadOnlyRootFilesystem: &yes,
					Capabilities: &corev1.Capabilities{Drop: []corev1.Capability{"ALL"}},
				},
				// The node's kubelet sends this probe. So the pod becomes ready only if the node reaches its own pods.
				ReadinessProbe: &corev1.Probe{
					ProbeHandler: corev1.ProbeHandler{
						HTTPGet: &corev1.HTTPGetAction{Port: intstr.FromInt32(probe.Port), Path: "/"},
					},
					PeriodSeconds: 1, TimeoutSeconds: 1,
				},
			}},
		},
	}
}

// serviceObject returns a Service whose only endpoint is the server pod of the node. An attempt to reach the Service
// counts only if the direct connections to this endpoint work. So a failure shows that a kube-proxy is broken: that of
// the client's node, or for a nodePort that of the node whose nodePort was tried.
func serviceObject(node int) *corev1.Service {
	families := corev1.IPFamilyPolicyPreferDualStack
	return &corev1.Service{
		ObjectMeta: metav1.ObjectMeta{Name: serviceName},
		Spec: corev1.ServiceSpec{
			Type: corev1.ServiceTypeNodePort, IPFamilyPolicy: &families,
			Selector: map[string]string{CheckLabel: server, indexLabel: fmt.Sprint(node)},
			Ports: []corev1.ServicePort{{
				Port: servicePort, TargetPort: intstr.FromInt32(probe.Port), Protocol: corev1.ProtocolTCP,
			}},
		},
	}
}

func policyObject(name, role string, t networkingv1.PolicyType) *networkingv1.NetworkPolicy {
	return &networkingv1.NetworkPolicy{
		ObjectMeta: metav1.ObjectMeta{Name: name},
		Spec: networkingv1.NetworkPolicySpec{
			PodSelector: metav1.LabelSelector{MatchLabels: map[string]string{CheckLabel: role}},
			PolicyTypes: []networkingv1.PolicyType{t},
		},
	}
}

func allowObject(node int) *networkingv1.NetworkPolicy {
	p := policyObject(allowPolicy, server, networkingv1.PolicyTypeIngress)
	port, tcp := intstr.FromInt32(probe.Port), corev1.ProtocolTCP
	p.Spec.Ingress = []networkingv1.NetworkPolicyIngressRule{{
		From: []networkingv1.NetworkPolicyPeer{{
			PodSelector: &metav1.LabelSelector{MatchLabels: map[string]string{CheckLabel: client, indexLabel: fmt.Sprint(node)}},
		}},
		Ports: []networkingv1.NetworkPolicyPort{{Port: &port, Protocol: &tcp}},
	}}
	return p
}

const (
	denyPolicy   = "deny-ingress"
	allowPolicy  = "allow-one-client"
	egressPolicy = "deny-egress"
)

func resourceOf(o any) schema.GroupVersionResource {
	switch o.(type) {
	case *corev1.Pod:
		return pods
	case *corev1.Service:
		return services
	case *networkingv1.NetworkPolicy:
		return policies
	}
	return namespaces
}
