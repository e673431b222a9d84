package cluster

import (
	"fmt"
	"time"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/resource"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/apimachinery/pkg/util/intstr"

	"github.com/weir-net/weir/test/scale/apiserver"
)

// born is when all objects were created.
var born = metav1.NewTime(time.Date(2026, 1, 1, 0, 0, 0, 0, time.UTC))

type PodBase struct{ *Cluster }

func (b PodBase) Len() int { return b.Pods }

// Find returns the pod's number in the cluster, or false if there is no such pod.
func (b PodBase) Find(name types.NamespacedName) (int, bool) {
	i, ok := b.find(name, podsPerNamespace, podName)
	ns, k := i/podsPerNamespace, i%podsPerNamespace
	// This computation inverts that of the method place, because 37 * 73 = 1 modulo 100.
	at := (k - ns*13%podsPerNamespace + podsPerNamespace) * 73 % podsPerNamespace
	return ns*b.perNamespace() + at, ok && at < b.perNamespace()
}

// At returns a pod. A pod of the measured node has no address until the node publishes one.
func (b PodBase) At(i int, beat uint32) apiserver.Object {
	node, place := b.node(i)
	ns, k := b.place(i)
	p := NewPod(NamespaceName(ns), podName(k), fmt.Sprintf("app-%d", k/podsPerApp), uid(1, i))
	p.Spec.NodeName = NodeName(node)
	if node != 0 {
		run(p, Address(node, place).String())
	}
	Beat(p, beat)
	return p
}

// NewPod returns a pod that doesn't run yet. The caller must set its node. A running pod has about 5 KB as JSON.
func NewPod(namespace, name, app string, uid types.UID) *corev1.Pod {
	yes, no := true, false
	p := &corev1.Pod{
		ObjectMeta: metav1.ObjectMeta{
			Namespace: namespace, Name: name, UID: uid, GenerateName: app + "-5d8c7f9b4-", CreationTimestamp: born,
			Labels: map[string]string{
				"app": app, "app.kubernetes.io/instance": app + "-" + namespace, "pod-template-hash": "5d8c7f9b4",
			},
			Annotations: map[string]string{
				"prometheus.io/scrape": "true", "prometheus.io/port": "9090",
				"checksum/config": "4be1a1e8c5f0b6e3b2c5a1f7d9e8c7b6",
			},
			OwnerReferences: []metav1.OwnerReference{{
				APIVersion: "apps/v1", Kind: "ReplicaSet", Name: app + "-5d8c7f9b4",
				UID: "0f8f6a1c-3d0e-4c57-9f0a-2b5f6f0f7a11", Controller: &yes, BlockOwnerDeletion: &yes,
			}},
			ManagedFields: []metav1.ManagedFieldsEntry{
				managed("kube-controller-manager", "", createdFields), managed("kubelet", "status", statusFields),
			},
		},
		Spec: corev1.PodSpec{
			Volumes: []corev1.Volume{
				{Name: "config", VolumeSource: corev1.VolumeSource{ConfigMap: &corev1.ConfigMapVolumeSource{
					LocalObjectReference: corev1.LocalObjectReference{Name: app + "-config"},
				}}},
				{Name: "kube-api-access-x7k2p", VolumeSource: corev1.VolumeSource{Projected: token()}},
			},
			Containers: []corev1.Container{container(app, 8080), container("log-shipper", 9090)},
			NodeName:   "", ServiceAccountName: app, DeprecatedServiceAccount: app, SchedulerName: "default-scheduler",
			RestartPolicy: corev1.RestartPolicyAlways, DNSPolicy: corev1.DNSClusterFirst,
			SecurityContext: &corev1.PodSecurityContext{RunAsNonRoot: &yes}, EnableServiceLinks: &no,
			Tolerations: []corev1.Toleration{
				{Key: "node.kubernetes.io/not-ready", Operator: corev1.TolerationOpExists, Effect: corev1.TaintEffectNoExecute},
				{Key: "node.kubernetes.io/unreachable", Operator: corev1.TolerationOpExists, Effect: corev1.TaintEffectNoExecute},
			},
		},
		Status: corev1.PodStatus{
			Phase: corev1.PodPending, QOSClass: corev1.PodQOSBurstable,
			Conditions: []corev1.PodCondition{condition(corev1.PodScheduled, corev1.ConditionTrue)},
		},
	}
	return p
}

func managed(manager, subresource, fields string) metav1.ManagedFieldsEntry {
	at := born
	return metav1.ManagedFieldsEntry{
		Manager: manager, Operation: metav1.ManagedFieldsOperationUpdate, APIVersion: "v1", Time: &at,
		FieldsType: "FieldsV1", FieldsV1: metav1.NewFieldsV1(fields), Subresource: subresource,
	}
}

const (
	createdFields = `{"f:metadata":{"f:annotations":{".":{},"f:checksum/config":{},"f:prometheus.io/port":{}},` +
		`"f:generateName":{},"f:labels":{".":{},"f:app":{},"f:pod-template-hash":{}},"f:ownerReferences":{".":{},` +
		`"k:{\"uid\":\"0f8f6a1c-3d0e-4c57-9f0a-2b5f6f0f7a11\"}":{}}},"f:spec":{"f:containers":{` +
		`"k:{\"name\":\"log-shipper\"}":{".":{},"f:image":{},"f:name":{}}},"f:restartPolicy":{},"f:volumes":{}}}`
	statusFields = `{"f:status":{"f:conditions":{"k:{\"type\":\"ContainersReady\"}":{".":{},"f:lastTransitionTime":{},` +
		`"f:status":{},"f:type":{}},"k:{\"type\":\"Ready\"}":{".":{},"f:lastTransitionTime":{},"f:status":{}}},` +
		`"f:containerStatuses":{},"f:hostIP":{},"f:phase":{},"f:podIP":{},"f:podIPs":{},"f:startTime":{}}}`
)

func token() *corev1.ProjectedVolumeSource {
	expires := int64(3607)
	return &corev1.ProjectedVolumeSource{Sources: []corev1.VolumeProjection{
		{ServiceAccountToken: &corev1.ServiceAccountTokenProjection{Path: "token", ExpirationSeconds: &expires}},
		{ConfigMap: &corev1.ConfigMapProjection{
			LocalObjectReference: corev1.LocalObjectReference{Name: "kube-root-ca.crt"},
			Items:                []corev1.KeyToPath{{Key: "ca.crt", Path: "ca.crt"}},
		}},
	}}
}

func container(name string, port int32) corev1.Container {
	no := false
	probe := func(path string) *corev1.Probe {
		return &corev1.Probe{
			ProbeHandler: corev1.ProbeHandler{HTTPGet: &corev1.HTTPGetAction{
				Path: path, Port: intstr.FromString("http"), Scheme: corev1.URISchemeHTTP,
			}},
			TimeoutSeconds: 1, PeriodSeconds: 10, SuccessThreshold: 1, FailureThreshold: 3,
		}
	}
	return corev1.Container{
		Name: name, Image: "registry.example.com/team/" + name + ":v1.42.7", ImagePullPolicy: corev1.PullIfNotPresent,
		Ports: []corev1.ContainerPort{{Name: "http", ContainerPort: port, Protocol: corev1.ProtocolTCP}},
		Env: []corev1.EnvVar{
			{Name: "LOG_LEVEL", Value: "info"},
			{Name: "DATABASE_URL", Value: "postgres://db.example.com:5432/" + name + "?sslmode=verify-full"},
			{Name: "POD_IP", ValueFrom: &corev1.EnvVarSource{FieldRef: &corev1.ObjectFieldSelector{
				APIVersion: "v1", FieldPath: "status.podIP",
			}}},
		},
		Resources: corev1.ResourceRequirements{
			Limits:   corev1.ResourceList{corev1.ResourceMemory: resource.MustParse("512Mi")},
			Requests: corev1.ResourceList{corev1.ResourceCPU: resource.MustParse("100m")},
		},
		VolumeMounts: []corev1.VolumeMount{
			{Name: "config", ReadOnly: true, MountPath: "/etc/" + name},
			{Name: "kube-api-access-x7k2p", ReadOnly: true, MountPath: "/var/run/secrets/kubernetes.io/serviceaccount"},
		},
		ReadinessProbe:         probe("/readyz"),
		TerminationMessagePath: "/dev/termination-log", TerminationMessagePolicy: corev1.TerminationMessageReadFile,
		SecurityContext: &corev1.SecurityContext{AllowPrivilegeEscalation: &no},
	}
}

func condition(kind corev1.PodConditionType, status corev1.ConditionStatus) corev1.PodCondition {
	return corev1.PodCondition{Type: kind, Status: status, LastTransitionTime: born}
}

func run(p *corev1.Pod, address string) {
	at, yes := born, true
	p.Status.Phase, p.Status.StartTime, p.Status.HostIP = corev1.PodRunning, &at, "172.20.0.1"
	p.Status.HostIPs = []corev1.HostIP{{IP: "172.20.0.1"}}
	p.Status.PodIP, p.Status.PodIPs = address, []corev1.PodIP{{IP: address}}
	p.Status.Conditions = nil
	for _, kind := range []corev1.PodConditionType{
		corev1.PodReadyToStartContainers, corev1.PodInitialized, corev1.PodReady, corev1.ContainersReady, corev1.PodScheduled,
	} {
		p.Status.Conditions = append(p.Status.Conditions, condition(kind, corev1.ConditionTrue))
	}
	p.Status.ContainerStatuses = nil
	for _, c := range p.Spec.Containers {
		p.Status.ContainerStatuses = append(p.Status.ContainerStatuses, corev1.ContainerStatus{
			Name: c.Name, Ready: true, Started: &yes, Image: c.Image,
			State: corev1.ContainerState{Running: &corev1.ContainerStateRunning{StartedAt: born}},
			ImageID: "registry.example.com/team/" + c.Name +
				"@sha256:9f86d081884c7d659a2feaa0c55ad015a3bf4f1b2b0b822cd15d6c15b0f00a08",
			ContainerID: "containerd://2c26b46b68ffc68ff99b453c1d30413413422d706483bfa0f98a5e886266e7ae",
		})
	}
}

// Run fills in the status of a running pod, as kubelet does.
func Run(p *corev1.Pod, address string) { run(p, address) }

// Beat changes parts of the pod's status on which no policy depends. An odd beat makes a running pod not ready, and an
// even beat makes it ready. Beat 0 changes nothing.
func Beat(p *corev1.Pod, beat uint32) {
	if beat == 0 {
		return
	}
	at := metav1.NewTime(born.Add(time.Duration(beat) * time.Second))
	for i := range p.Status.Conditions {
		c := &p.Status.Conditions[i]
		if c.Type == corev1.PodReady || c.Type == corev1.ContainersReady {
			c.LastTransitionTime, c.Status = at, corev1.ConditionTrue
			if beat%2 == 1 {
				c.Status = corev1.ConditionFalse
			}
		}
	}
}
