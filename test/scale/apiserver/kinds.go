package apiserver

import (
	corev1 "k8s.io/api/core/v1"
	networkingv1 "k8s.io/api/networking/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
)

// Pods returns the kind Pod. If base is nil, there are no pods at first.
func Pods(base Base) Kind {
	return Kind{
		Version: "v1", Kind: "Pod", Resource: "pods", Namespaced: true, Base: base,
		New: func() Object { return &corev1.Pod{} },
		NewList: func(meta metav1.ListMeta, items []Object) runtime.Object {
			return &corev1.PodList{ListMeta: meta, Items: values[corev1.Pod](items)}
		},
	}
}

// Namespaces returns the kind Namespace. If base is nil, there are no namespaces at first.
func Namespaces(base Base) Kind {
	return Kind{
		Version: "v1", Kind: "Namespace", Resource: "namespaces", Base: base,
		New: func() Object { return &corev1.Namespace{} },
		NewList: func(meta metav1.ListMeta, items []Object) runtime.Object {
			return &corev1.NamespaceList{ListMeta: meta, Items: values[corev1.Namespace](items)}
		},
	}
}

// Nodes returns the kind Node. If base is nil, there are no nodes at first.
func Nodes(base Base) Kind {
	return Kind{
		Version: "v1", Kind: "Node", Resource: "nodes", Base: base,
		New: func() Object { return &corev1.Node{} },
		NewList: func(meta metav1.ListMeta, items []Object) runtime.Object {
			return &corev1.NodeList{ListMeta: meta, Items: values[corev1.Node](items)}
		},
	}
}

// NetworkPolicies returns the kind NetworkPolicy. If base is nil, there are no policies at first.
func NetworkPolicies(base Base) Kind {
	return Kind{
		Group: "networking.k8s.io", Version: "v1", Kind: "NetworkPolicy", Resource: "networkpolicies", Namespaced: true,
		Base: base,
		New:  func() Object { return &networkingv1.NetworkPolicy{} },
		NewList: func(meta metav1.ListMeta, items []Object) runtime.Object {
			return &networkingv1.NetworkPolicyList{ListMeta: meta, Items: values[networkingv1.NetworkPolicy](items)}
		},
	}
}

// Events returns the kind Event. Only clients create events.
func Events() Kind {
	return Kind{
		Version: "v1", Kind: "Event", Resource: "events", Namespaced: true,
		New: func() Object { return &corev1.Event{} },
		NewList: func(meta metav1.ListMeta, items []Object) runtime.Object {
			return &corev1.EventList{ListMeta: meta, Items: values[corev1.Event](items)}
		},
	}
}

func values[T any](objects []Object) []T {
	all := make([]T, len(objects))
	for i, o := range objects {
		all[i] = *any(o).(*T)
	}
	return all
}
