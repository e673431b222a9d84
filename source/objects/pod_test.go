package objects

import (
	"math/rand/v2"
	"reflect"
	"testing"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/types"
)

func randomPod(r *rand.Rand) *corev1.Pod {
	pick := func(of ...string) string { return of[r.IntN(len(of))] }
	p := &corev1.Pod{}
	p.Namespace, p.Name, p.UID = "ns", pick("a", "a", "b"), types.UID(pick("1", "1", "2"))
	p.Spec.NodeName = pick("n", "n", "m")
	p.Spec.HostNetwork = r.IntN(8) == 0
	p.Status.Phase = corev1.PodPhase(pick("", "Running", "Running", "Failed", "Succeeded"))
	if r.IntN(8) == 0 {
		p.Annotations = map[string]string{corev1.MirrorPodAnnotationKey: pick("", "1", "3")}
	}
	for range r.IntN(3) {
		if p.Labels == nil {
			p.Labels = map[string]string{}
		}
		p.Labels[pick("app", "tier")] = pick("x", "y")
	}
	p.Status.PodIP = pick("", "10.0.0.1")
	for range r.IntN(3) {
		p.Status.PodIPs = append(p.Status.PodIPs,
			corev1.PodIP{IP: pick("10.0.0.1", "10.0.0.1", "::ffff:10.0.0.1", "fd00::1", "0.0.0.0", "?")})
	}
	port := func() corev1.ContainerPort {
		return corev1.ContainerPort{
			Name: pick("", "http", "dns"), ContainerPort: int32(80 + r.IntN(2)),
			Protocol: corev1.Protocol(pick("", "TCP", "UDP", "Tcp")),
			HostPort: int32(r.IntN(3)), HostIP: pick("", "", "0.0.0.0", "192.0.2.1", "?"),
		}
	}
	for range r.IntN(3) {
		c := corev1.Container{Name: "c", Ports: []corev1.ContainerPort{port()}}
		if r.IntN(8) == 0 {
			c.Ports[0].ContainerPort = 70000
		}
		p.Spec.Containers = append(p.Spec.Containers, c)
	}
	if r.IntN(4) == 0 {
		always := corev1.ContainerRestartPolicy(pick("Always", "Never"))
		p.Spec.InitContainers = []corev1.Container{{RestartPolicy: &always, Ports: []corev1.ContainerPort{port()}}}
	}
	return p
}

// TestIsPod: IsPod returns true if and only if the converted pod, its first argument, equals the result of Pod for the
// second argument, and Pod finds no problems. IsPod allocates no memory.
func TestIsPod(t *testing.T) {
	r := rand.New(rand.NewPCG(1, 2))
	alike := 0
	for range 50_000 {
		was, now := randomPod(r), randomPod(r)
		known, problems := Pod(was)
		if IsPod(&known, was) != (problems == nil) {
			t.Fatalf("%+v is %+v, with the problems %v", was, known, problems)
		}
		read, problems := Pod(now)
		equal := problems == nil && reflect.DeepEqual(read, known)
		if IsPod(&known, now) != equal {
			t.Fatalf("%+v is %+v: %v", now, known, equal)
		}
		if equal {
			alike++
		}
	}
	if alike < 10 {
		t.Errorf("only %d pairs of pods are alike", alike)
	}
	pod := &corev1.Pod{
		Spec: corev1.PodSpec{Containers: []corev1.Container{{Ports: []corev1.ContainerPort{
			{Name: "http", ContainerPort: 80, Protocol: corev1.ProtocolTCP},
			{ContainerPort: 443, HostPort: 8443, HostIP: "192.0.2.1", Protocol: corev1.ProtocolTCP},
		}}}},
		Status: corev1.PodStatus{PodIPs: []corev1.PodIP{{IP: "10.0.0.1"}}},
	}
	known, _ := Pod(pod)
	if !IsPod(&known, pod) {
		t.Errorf("%+v isn't %+v", pod, known)
	}
	if n := testing.AllocsPerRun(100, func() { IsPod(&known, pod) }); n > 0 {
		t.Errorf("IsPod allocates %v times", n)
	}
}
