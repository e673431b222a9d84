package kube

import (
	"context"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/types"
	typedcorev1 "k8s.io/client-go/kubernetes/typed/core/v1"
	"k8s.io/client-go/tools/record"
)

// Announce makes a warning event on this node's Node. client-go's recorder sends it from a queue, tries again while the
// API server is away, and counts repeated events instead of making new ones.
//
// Equivalent to: kubectl get events --field-selector involvedObject.kind=Node shows it
func (s *Source) Announce(ctx context.Context, reason, message string) {
	s.announcing.Do(func() {
		broadcaster := record.NewBroadcaster(record.WithContext(ctx))
		broadcaster.StartRecordingToSink(&typedcorev1.EventSinkImpl{Interface: s.Client.CoreV1().Events("")})
		s.recorder = broadcaster.NewRecorder(scheme(), corev1.EventSource{Component: "weir-agent", Host: s.Node})
	})
	// Kubelet's events carry the node's name as UID too, and "kubectl describe node" looks for that.
	node := &corev1.ObjectReference{APIVersion: "v1", Kind: "Node", Name: s.Node, UID: types.UID(s.Node)}
	s.recorder.Event(node, corev1.EventTypeWarning, reason, message)
}

func scheme() *runtime.Scheme {
	s := runtime.NewScheme()
	_ = corev1.AddToScheme(s) // its error would be two types of one name, which these aren't
	return s
}
