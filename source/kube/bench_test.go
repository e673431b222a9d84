package kube

import (
	"context"
	"fmt"
	"runtime"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	apiruntime "k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/serializer/protobuf"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/apimachinery/pkg/watch"
	clientscheme "k8s.io/client-go/kubernetes/scheme"

	"github.com/weir-net/weir/policy"
)

// realisticPod returns the i-th pod of a cluster as an API server sends it, about 5 KB long: a Deployment's pod of ten
// replicas with two containers. With unique labels, no two pods have the same labels.
func realisticPod(i int, unique bool) *corev1.Pod {
	of := i / 10
	hash := fmt.Sprintf("%010x", of*7919)
	app := fmt.Sprintf("service-%d", of)
	p := &corev1.Pod{
		ObjectMeta: metav1.ObjectMeta{
			Namespace: fmt.Sprintf("team-%d", i/100), Name: fmt.Sprintf("%s-%s-%05x", app, hash, i%1048576),
			GenerateName: app + "-" + hash + "-", UID: types.UID(fmt.Sprintf("4f3c2a10-7b1e-4c55-9d0a-%012x", i)),
			ResourceVersion: fmt.Sprint(1000 + i), CreationTimestamp: metav1.NewTime(time.Unix(1_700_000_000+int64(i), 0)),
			Labels: map[string]string{
				"app.kubernetes.io/name": app, "app.kubernetes.io/instance": app + "-prod",
				"app.kubernetes.io/managed-by": "Helm", "app.kubernetes.io/component": "server",
				"helm.sh/chart": "service-1.14.2", "pod-template-hash": hash,
			},
			Annotations: map[string]string{
				"prometheus.io/scrape": "true", "prometheus.io/port": "9090",
				"checksum/config": "6a1f0c9be3f1dd3d6a1f0c9be3f1dd3d6a1f0c9be3f1dd3d6a1f0c9be3f1dd3d",
			},
			OwnerReferences: []metav1.OwnerReference{{
				APIVersion: "apps/v1", Kind: "ReplicaSet", Name: app + "-" + hash, UID: "0d7f9be2-5d6b-4a0e-8f5b-8e3f6f1f2a01",
			}},
			ManagedFields: []metav1.ManagedFieldsEntry{
				{Manager: "kube-controller-manager", Operation: "Update", APIVersion: "v1", FieldsV1: fields(1200)},
				{Manager: "kubelet", Operation: "Update", APIVersion: "v1", Subresource: "status", FieldsV1: fields(900)},
			},
		},
		Spec: corev1.PodSpec{
			NodeName: fmt.Sprintf("ip-10-0-%d-%d.eu-central-1.compute.internal", i/100/250, i/100%250),
			Containers: []corev1.Container{
				realisticContainer(app, "http", 8080), realisticContainer("metrics-proxy", "metrics", 9090),
			},
			ServiceAccountName: app, RestartPolicy: corev1.RestartPolicyAlways, DNSPolicy: corev1.DNSClusterFirst,
			SchedulerName: "default-scheduler", SecurityContext: &corev1.PodSecurityContext{},
			Volumes: []corev1.Volume{{Name: "kube-api-access-x2x4z", VolumeSource: corev1.VolumeSource{
				ConfigMap: &corev1.ConfigMapVolumeSource{
					LocalObjectReference: corev1.LocalObjectReference{Name: "kube-root-ca.crt"},
				},
			}}},
			Tolerations: []corev1.Toleration{
				{Key: "node.kubernetes.io/not-ready", Operator: "Exists", Effect: "NoExecute"},
				{Key: "node.kubernetes.io/unreachable", Operator: "Exists", Effect: "NoExecute"},
			},
		},
		Status: corev1.PodStatus{
			Phase: corev1.PodRunning, HostIP: "10.0.1.17", QOSClass: corev1.PodQOSBurstable,
			PodIP:  fmt.Sprintf("100.%d.%d.%d", 64+i/65536, i/256%256, i%256),
			PodIPs: []corev1.PodIP{{IP: fmt.Sprintf("100.%d.%d.%d", 64+i/65536, i/256%256, i%256)}},
		},
	}
	if unique {
		p.Labels["statefulset.kubernetes.io/pod-name"] = p.Name
	}
	for _, c := range p.Spec.Containers {
		p.Status.ContainerStatuses = append(p.Status.ContainerStatuses, corev1.ContainerStatus{
			Name: c.Name, Ready: true, Image: c.Image,
			ImageID:     c.Image + "@sha256:9f8b1c9f8b1c9f8b1c9f8b1c9f8b1c9f8b1c9f8b1c9f8b1c9f8b1c9f8b1c9f8b",
			ContainerID: "containerd://7c1d7c1d7c1d7c1d7c1d7c1d7c1d7c1d7c1d7c1d7c1d7c1d7c1d7c1d7c1d7c1d",
		})
	}
	for _, kind := range []corev1.PodConditionType{
		"PodReadyToStartContainers", "Initialized", "Ready", "ContainersReady", "PodScheduled",
	} {
		p.Status.Conditions = append(p.Status.Conditions, corev1.PodCondition{
			Type: kind, Status: corev1.ConditionTrue, LastTransitionTime: metav1.NewTime(time.Unix(1_700_000_100, 0)),
		})
	}
	return p
}

func realisticContainer(name, port string, number int32) corev1.Container {
	c := corev1.Container{
		Name: name, Image: "registry.example.com/team/" + name + ":2.31.4", ImagePullPolicy: corev1.PullIfNotPresent,
		Ports: []corev1.ContainerPort{{Name: port, ContainerPort: number, Protocol: corev1.ProtocolTCP}},
		VolumeMounts: []corev1.VolumeMount{{
			Name: "kube-api-access-x2x4z", ReadOnly: true, MountPath: "/var/run/secrets/kubernetes.io/serviceaccount",
		}},
		TerminationMessagePath: "/dev/termination-log", TerminationMessagePolicy: corev1.TerminationMessageReadFile,
	}
	for i := range 12 {
		c.Env = append(c.Env, corev1.EnvVar{Name: fmt.Sprint("SETTING_", i), Value: "a value of the usual length"})
	}
	return c
}

func fields(size int) *metav1.FieldsV1 {
	raw := make([]byte, size)
	for i := range raw {
		raw[i] = `{"f:metadata":{}}`[i%17]
	}
	return &metav1.FieldsV1{Raw: raw}
}

// BenchmarkPodEvent measures an event of one of 10,000 pods, from the decoded object until the loop would be woken.
func BenchmarkPodEvent(b *testing.B) {
	for _, bc := range []struct {
		name   string
		change func(p *corev1.Pod, i int)
	}{
		{"means nothing", func(*corev1.Pod, int) {}},
		{"label", func(p *corev1.Pod, i int) { p.Labels["app.kubernetes.io/component"] = fmt.Sprint(i % 2) }},
	} {
		b.Run(bc.name, func(b *testing.B) {
			c := began(b)
			for i := range 10_000 {
				add(b, c.mirrors.pods, realisticPod(i, false))
			}
			c.take()
			pods := [2]*corev1.Pod{realisticPod(77, false), realisticPod(77, false)}
			for i := range pods {
				bc.change(pods[i], i)
			}
			b.ReportAllocs()
			for i := 0; b.Loop(); i++ {
				_ = c.mirrors.pods.Update(pods[i%2])
			}
		})
	}
}

// BenchmarkDecode measures how the client decodes a pod: what each event costs before the source sees it.
func BenchmarkDecode(b *testing.B) {
	raw := encode(b, realisticPod(77, false))
	decoder := clientscheme.Codecs.UniversalDeserializer()
	b.SetBytes(int64(len(raw)))
	b.ReportAllocs()
	for b.Loop() {
		if _, _, err := decoder.Decode(raw, nil, nil); err != nil {
			b.Fatal(err)
		}
	}
}

func encode(b *testing.B, o apiruntime.Object) []byte {
	b.Helper()
	raw, err := apiruntime.Encode(clientscheme.Codecs.EncoderForVersion(
		protobuf.NewSerializer(clientscheme.Scheme, clientscheme.Scheme), corev1.SchemeGroupVersion), o)
	if err != nil {
		b.Fatal(err)
	}
	return raw
}

// BenchmarkMemory measures what 100,000 pods need after they have streamed in, and how long the source takes to decode
// and store them. The decoding of a list that streams in is that of an event.
func BenchmarkMemory(b *testing.B) {
	const pods = 100_000
	for _, unique := range []bool{false, true} {
		b.Run(map[bool]string{false: "ten replicas", true: "unique labels"}[unique], func(b *testing.B) {
			for b.Loop() {
				before := live()
				c := began(b)
				decoder := clientscheme.Codecs.UniversalDeserializer()
				var list []any
				var cpu time.Duration
				for i := range pods {
					raw := encode(b, realisticPod(i, unique))
					at := time.Now()
					o, _, err := decoder.Decode(raw, nil, nil)
					if err != nil {
						b.Fatal(err)
					}
					list = append(list, stream(b, c.mirrors.pods, o.(*corev1.Pod)))
					cpu += time.Since(at)
				}
				streamed := live()
				at := time.Now()
				if err := c.mirrors.pods.Replace(list, "1"); err != nil {
					b.Fatal(err)
				}
				replaced := time.Since(at)
				list = nil
				c.take()
				b.ReportMetric(float64(live()-before)/pods, "B/pod")
				b.ReportMetric(float64(streamed-before)/pods, "B/pod-while-streaming")
				b.ReportMetric(cpu.Seconds(), "s-decoding")
				b.ReportMetric(replaced.Seconds(), "s-replacing")
				runtime.KeepAlive(c)
			}
		})
	}
}

// live returns the size of the live heap.
func live() uint64 {
	runtime.GC()
	runtime.GC()
	var m runtime.MemStats
	runtime.ReadMemStats(&m)
	return m.HeapAlloc
}

// BenchmarkStart measures Run against an API server that streams 100,000 pods, from its start to the first delta.
func BenchmarkStart(b *testing.B) {
	const pods = 100_000
	server, config := newStreams(b)
	answer := podWatch{end: make(chan struct{})}
	for i := range pods {
		answer.events = append(answer.events, watch.Event{Type: watch.Added, Object: realisticPod(i, false)})
	}
	answer.events = append(answer.events, bookmark(&corev1.Pod{}))
	for b.Loop() {
		source := sourceOf(b, config)
		ctx, cancel := context.WithCancel(b.Context())
		first, done := make(chan *policy.Delta, 1), make(chan error, 1)
		go func() {
			done <- source.Run(ctx, func(d *policy.Delta, _ error) {
				if len(d.Pods) > 0 {
					first <- d
				}
			})
		}()
		server.pods <- answer
		<-first
		cancel()
		if err := <-done; err != nil {
			b.Error(err)
		}
	}
}
