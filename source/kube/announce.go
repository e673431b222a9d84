package kube

import (
	"context"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/types"
	typedcorev1 "k8s.io/client-go/kubernetes/typed/core/v1"
	"k8s.io/client-go/tools/record"
)

// Announce makes a warning event on this node's Node. It doesn't wait for the API server: client-go's recorder queues
// events and sends them again after a failure. The recorder joins equal events into one event, which counts them.
//
// To see the event: kubectl get events --namespace default --field-selector involvedObject.kind=Node
func (s *Source) Announce(ctx context.Context, reason, message string) {
	s.announcing.Do(func() {
		broadcaster := record.NewBroadcaster(record.WithContext(ctx))
		broadcaster.StartRecordingToSink(&typedcorev1.EventSinkImpl{Interface: s.Client.CoreV1().Events("")})
		s.recorder = broadcaster.NewRecorder(scheme(), corev1.EventSource{Component: "weir-agent", Host: s.Node})
	})
	// The UID is the node's name, as in kubelet's events: "kubectl describe node" shows only events with this UID.
	node := &corev1.ObjectReference{APIVersion: "v1", Kind: "Node", Name: s.Node, UID: types.UID(s.Node)}
	s.recorder.Event(node, corev1.EventTypeWarning, reason, message)
}

func scheme() *runtime.Scheme {
	s := runtime.NewScheme()
	_ = corev1.AddToScheme(s)
	return s
}
