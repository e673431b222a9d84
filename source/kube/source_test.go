package kube

import (
	"context"
	"errors"
	"log/slog"
	"net/netip"
	"slices"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	networkingv1 "k8s.io/api/networking/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/client-go/kubernetes/fake"
	ktesting "k8s.io/client-go/testing"

	"github.com/weir-net/weir/endpoint"
	"github.com/weir-net/weir/policy"
	"github.com/weir-net/weir/policy/ruleset"
	"github.com/weir-net/weir/test/deltas"
)

func someObjects() []runtime.Object {
	return []runtime.Object{
		&corev1.Namespace{ObjectMeta: metav1.ObjectMeta{Name: "ns-1"}},
		&corev1.Pod{
			ObjectMeta: metav1.ObjectMeta{Namespace: "ns-1", Name: "a", UID: "one", Labels: map[string]string{"app": "a"}},
			Spec: corev1.PodSpec{
				NodeName: "n1",
				Containers: []corev1.Container{
					{Image: "x", Ports: []corev1.ContainerPort{{ContainerPort: 81}, {Name: "http", ContainerPort: 80}}}, {Image: "y"},
				},
				InitContainers: []corev1.Container{{Ports: []corev1.ContainerPort{{Name: "once", ContainerPort: 9}}}, sidecar()},
			},
			Status: corev1.PodStatus{PodIPs: []corev1.PodIP{{IP: "100.96.1.2"}}},
		},
		&corev1.Pod{ObjectMeta: metav1.ObjectMeta{
			Namespace:   "kube-system",
			Name:        "static-n1",
			UID:         "api",
			Annotations: map[string]string{corev1.MirrorPodAnnotationKey: "runtime"},
		}},
		&corev1.Node{
			ObjectMeta: metav1.ObjectMeta{Name: "n1"}, Spec: corev1.NodeSpec{PodCIDRs: []string{"100.96.1.0/24", "bad"}},
			Status: corev1.NodeStatus{Addresses: []corev1.NodeAddress{
				{Type: corev1.NodeHostName, Address: "n1"}, {Type: corev1.NodeInternalIP, Address: "172.20.1.10"},
			}},
		},
		&networkingv1.NetworkPolicy{ObjectMeta: metav1.ObjectMeta{Namespace: "ns-1", Name: "deny"}},
	}
}

func sidecar() corev1.Container {
	always := corev1.ContainerRestartPolicyAlways
	return corev1.Container{
		RestartPolicy: &always,
		Ports:         []corev1.ContainerPort{{Name: "metrics", ContainerPort: 9090, Protocol: corev1.ProtocolTCP}},
	}
}

func TestRun(t *testing.T) {
	client := fake.NewClientset(someObjects()...)
	watched := podsWatched(client)
	updates := make(chan *policy.Objects)
	errs := make(chan error, 100)
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() {
		all := deltas.NewSum()
		done <- (&Source{Client: client, Log: slog.Default()}).Run(ctx, func(d *policy.Delta, err error) {
			errs <- err
			select {
			case updates <- all.Add(d):
			case <-ctx.Done():
			}
		})
	}()
	next := func() *policy.Objects {
		t.Helper()
		select {
		case o := <-updates:
			return o
		case <-time.After(time.Minute):
			t.Fatal("no update within a minute")
			return nil
		}
	}
	first := next()
	if len(first.Pods) != 2 || len(first.Namespaces) != 1 || len(first.Nodes) != 1 || len(first.Policies) != 1 {
		t.Fatalf("the first state isn't the whole cluster: %+v", first)
	}
	if err := <-errs; err != nil {
		t.Errorf("the source has an error: %v", err)
	}
	if p := first.Problems; len(p) != 1 || p[0].String() != `Node n1: spec.podCIDRs[1]: "bad" is no CIDR of pods` {
		t.Errorf("problems %v, want one with the bad podCIDR", p)
	}
	find := func(o *policy.Objects, name string) policy.Pod {
		i := slices.IndexFunc(o.Pods, func(p policy.Pod) bool { return p.Name == name })
		if i < 0 {
			return policy.Pod{}
		}
		return o.Pods[i]
	}
	if p := find(first, "a"); p.UID != "one" ||
		!slices.Equal(p.Addresses, []netip.Addr{netip.MustParseAddr("100.96.1.2")}) || p.Labels["app"] != "a" ||
		p.NodeName != "n1" {
		t.Errorf("pod a is %+v", p)
	}
	ports := []policy.NamedPort{
		{Name: "http", Proto: ruleset.TCP, Number: 80},
		{Name: "metrics", Proto: ruleset.TCP, Number: 9090},
	}
	if p := find(first, "a"); !slices.Equal(p.Ports, ports) {
		t.Errorf("pod a's named ports are %+v, want %+v", p.Ports, ports)
	}
	if p := find(first, "static-n1"); p.UID != "runtime" {
		t.Errorf("a static pod's UID is %q, want the runtime's", p.UID)
	}
	if n := first.Nodes[0]; len(n.Addresses) != 1 || len(n.PodCIDRs) != 1 {
		t.Errorf("node n1 is %+v", n)
	}
	if first.Namespaces[0].Labels[corev1.LabelMetadataName] != "ns-1" {
		t.Error("the namespace lacks the label with its name")
	}

	// until waits for an update that ok accepts. It reads at most ten updates. One update may contain several changes.
	until := func(what string, ok func(*policy.Objects) bool) {
		t.Helper()
		for range 10 {
			if ok(next()) {
				return
			}
		}
		t.Fatalf("never told that %s", what)
	}
	<-watched
	pods := client.CoreV1().Pods("ns-1")
	if _, err := pods.Create(ctx, &corev1.Pod{ObjectMeta: metav1.ObjectMeta{Namespace: "ns-1", Name: "b"}},
		metav1.CreateOptions{}); err != nil {
		t.Fatal(err)
	}
	until("pod b came", func(o *policy.Objects) bool { return find(o, "b").Name != "" })
	if err := pods.Delete(ctx, "a", metav1.DeleteOptions{}); err != nil {
		t.Fatal(err)
	}
	until("pod a went", func(o *policy.Objects) bool { return find(o, "a").Name == "" })
	cancel()
	if err := <-done; err != nil {
		t.Errorf("Run ended with %v", err)
	}
}

func TestLookup(t *testing.T) {
	client := fake.NewClientset(someObjects()...)
	s := &Source{Client: client}
	if p, ok, err := s.Lookup(t.Context(), endpoint.Pod{Namespace: "ns-1", Name: "a"}); !ok || err != nil ||
		p.UID != "one" {
		t.Errorf("%+v, %v, %v", p, ok, err)
	}
	if _, ok, err := s.Lookup(t.Context(), endpoint.Pod{Namespace: "ns-1", Name: "none"}); ok || err != nil {
		t.Errorf("a pod that isn't: %v, %v", ok, err)
	}
	client.PrependReactor("get", "pods", func(ktesting.Action) (bool, runtime.Object, error) {
		return true, nil, errors.New("away")
	})
	if _, _, err := s.Lookup(t.Context(), endpoint.Pod{Namespace: "ns-1", Name: "a"}); err == nil {
		t.Error("no error while the API server is away")
	}
}
