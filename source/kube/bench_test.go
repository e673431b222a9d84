package kube

import (
	"fmt"
	"testing"

	corev1 "k8s.io/api/core/v1"
	networkingv1 "k8s.io/api/networking/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
)

// BenchmarkPodEvent measures a change of one pod until update is called.
func BenchmarkPodEvent(b *testing.B) {
	v := newViews()
	pod := func(i, version int) *corev1.Pod {
		return newPod(func(p *corev1.Pod) {
			p.Name, p.Labels = fmt.Sprint("p", i), map[string]string{"app": fmt.Sprint(version % 10)}
			p.Status.PodIPs[0].IP = fmt.Sprintf("100.96.%d.%d", i/200, i%200)
		})
	}
	for i := range 5000 {
		v.pods.put(pod(i, 0))
	}
	for i := range 1000 {
		v.policies.put(&networkingv1.NetworkPolicy{ObjectMeta: metav1.ObjectMeta{Namespace: "ns", Name: fmt.Sprint("np", i)}})
	}
	b.ReportAllocs()
	for version := 1; b.Loop(); version++ {
		if !v.pods.put(pod(7, version)) || len(v.objects().Pods) != 5000 {
			b.Fatal("no change")
		}
	}
}
